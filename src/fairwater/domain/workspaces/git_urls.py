"""The addresses of repositories, as git writes them: `scheme://host/path`, or `user@host:path` for ssh."""

from __future__ import annotations

from urllib.parse import unquote, urlsplit

from fairwater.domain.failure import Permanent
from fairwater.domain.workspaces.context import Scheme, parse_context
from fairwater.domain.workspaces.run import Source
from fairwater.domain.workspaces.secrets import CredentialKind, RunSecrets


def source_of(url: str) -> Source:
    """What `url`, as a person or a repository writes it, asks for. Raises Permanent: `bad_context_url`."""
    context = parse_context(url)
    return Source(
        context.clone_url, context.name, context.ref, local=context.scheme is Scheme.FILE, ref_path=context.ref_path
    )


def is_ssh(clone_url: str) -> bool:
    return "://" not in clone_url or clone_url.startswith("ssh://")


def host_of(clone_url: str) -> str:
    """The host, with `:port` where it is not the usual one; "" for a folder."""
    if "://" not in clone_url:
        return clone_url.partition(":")[0].rpartition("@")[2].lower()
    parts = urlsplit(clone_url)
    host = parts.hostname or ""
    host = f"[{host}]" if ":" in host else host
    usual = {"https": 443, "http": 80, "ssh": 22}.get(parts.scheme)
    return host if parts.port in {None, usual} else f"{host}:{parts.port}"


def has_key_for(secrets: RunSecrets, clone_url: str) -> bool:
    """Whether one of the SSH keys is for the host of `clone_url`: no other host is offered any."""
    return is_ssh(clone_url) and any(
        credential.kind is CredentialKind.SSH_KEY and credential.host in _names_of(clone_url)
        for credential in secrets.credentials
    )


def _names_of(clone_url: str) -> frozenset[str]:
    host = host_of(clone_url)
    return frozenset(
        {host, host.partition(":")[0]} if not host.startswith("[") else {host, host.partition("]")[0] + "]"}
    )


def path_of(source: Source) -> str:
    """The folder of this machine that a `file://` source names."""
    return unquote(urlsplit(source.clone_url).path)


def resolve_url(base: str, url: str) -> str:
    """`url` of a submodule, which may be relative (`./x`, `../x`) to the repository at `base`, as git resolves it.

    Raises Permanent: `bad_context_url`, where it leads above the host's root.
    """
    if not url.startswith(("./", "../")):
        return url
    if "://" in base:
        scheme, _, rest = base.partition("://")
        root, _, path = rest.partition("/")
        front, joint = f"{scheme}://{root}/", path
    else:
        root, _, joint = base.partition(":")
        front = f"{root}:"
    names = [name for name in joint.split("/") if name]
    for name in url.split("/"):
        if name == "..":
            if not names:
                raise Permanent(f"{url[:80]!r} leads above the root of its host", code="bad_context_url")
            names.pop()
        elif name not in {"", "."}:
            names.append(name)
    return front + "/".join(names)


def same_repository(clone_url: str) -> str:
    """What tells repositories apart: two URLs of one are given the same."""
    return clone_url.rstrip("/").removesuffix(".git").lower()
