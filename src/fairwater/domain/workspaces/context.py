"""What a git URL asks for: where to clone from, what to check out, and under which name.

Understands the addresses people paste: clone URLs (https, ssh, `git@host:path`, `file://`), and pages of git hosts
(`git_pages`). A `#REF` at the end of a clone URL names a branch, tag or commit. Every part is treated as hostile: it
will stand in a command line of git.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum
from urllib.parse import parse_qsl, quote, unquote, urlsplit

from fairwater.domain.failure import Permanent
from fairwater.domain.workspaces.git_pages import Page, read_page
from fairwater.domain.workspaces.git_refs import check_ref


class Scheme(StrEnum):
    HTTPS = "https"
    HTTP = "http"
    SSH = "ssh"
    FILE = "file"


@dataclass(frozen=True, slots=True)
class Context:
    """A repository and what to check out of it.

    `ref` is a branch, tag or commit as written, or the ref of a pull request, None for the default branch; `ref_path`,
    in its place, is a ref followed by a folder, which only the repository can tell apart. `name` is the folder the
    checkout gets below `/workspace`. Where `scheme` is ssh, `clone_url` may be of the form `user@host:path`.
    """

    clone_url: str
    scheme: Scheme
    host: str
    name: str
    ref: str | None = None
    ref_path: str | None = None


_NAME = re.compile(r"[A-Za-z0-9._][A-Za-z0-9._-]{0,99}")
_HOST = re.compile(
    r"(?:[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?)(?:\.[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?)*|\[[0-9A-Fa-f:.]+\]"
)
_SCP = re.compile(r"(?P<user>[A-Za-z0-9._-]+)@(?P<host>[^/:@\s]+):(?!//)(?P<path>[^\s]+)")
_SCP_SEGMENT = re.compile(r"[A-Za-z0-9._~+@%,=-]+")
_USER = re.compile(r"[A-Za-z0-9._-]{1,64}")
_VIEWS = frozenset({"tab", "plain", "ref_type", "diff", "w", "view", "expanded", "display"})
"""Parts of a query that only say how a page is shown."""
_VIEW = re.compile(r"[A-Za-z0-9]{0,12}(-[A-Za-z0-9]{1,8}){0,4}")
"""What they hold: nothing that could be a token."""
_ANCHOR = re.compile(r"(?:L|lines-)[0-9][0-9CL:-]*")
_MAX_LENGTH = 2048


def parse_context(url: str) -> Context:
    """The repository and the ref that `url` asks for.

    Raises:
        Permanent: `bad_context_url`, saying which part is wrong and how to write it.
    """
    text = url.strip()
    if not text:
        raise _bad("a git URL is needed, such as https://github.com/org/repo")
    if len(text) > _MAX_LENGTH:
        raise _bad(f"a git URL has at most {_MAX_LENGTH} characters")
    if " " in text or not text.isprintable():
        raise _bad(f"{text[:80]!r} holds white space or control characters; write a space in a URL as %20")
    scp = _SCP.fullmatch(text)
    if scp and "://" not in text:
        path, _, ref = scp["path"].partition("#")
        if not path.startswith("/"):
            return _relative_to_home(scp["user"], scp["host"], path, unquote(ref))
        text = f"ssh://{scp['user']}@{scp['host']}/{path.lstrip('/')}" + (f"#{ref}" if ref else "")
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError as error:
        raise _bad(f"{text[:80]!r} is not a URL: {error}") from None
    if parts.scheme not in set(Scheme):
        raise _bad(f"{text[:80]!r} does not begin with https://, ssh://, git@host: or file://")
    scheme = Scheme(parts.scheme)
    for part in (unquote(parts.path), unquote(parts.fragment)):
        if not part.isprintable():
            raise _bad(f"{text[:80]!r} holds control characters or bytes that are not UTF-8")
    if scheme is Scheme.FILE:
        return _local(unquote(parts.path), parts.netloc, unquote(parts.fragment))
    if port == 0:
        raise _bad("port 0 is not a port: leave it out, or give the one of the server")
    if parts.password or (parts.username and scheme is not Scheme.SSH):
        raise _bad("a git URL must not carry a user name or password: it would be kept and shown")
    host = parts.hostname or ""
    shown = f"[{host}]" if ":" in host else host
    if not _HOST.fullmatch(shown):
        raise _bad(f"{shown[:80]!r} is not a host name")
    if parts.username and not (_USER.fullmatch(parts.username) and not parts.username.startswith("-")):
        raise _bad("the user name in the URL may hold letters, digits, '.', '_' and '-'")
    if parts.query and not _only_views(parts.query):  # it may hold a token, and the URL is kept and shown
        raise _bad("the address has a query: leave out what follows the '?'")
    page = read_page(host, unquote(parts.path)) if scheme is not Scheme.SSH else Page(unquote(parts.path))
    ref, ref_path = page.ref, page.ref_path
    fragment = unquote(parts.fragment)
    if fragment and not (page.anchored or parts.query or (ref_path and _ANCHOR.fullmatch(fragment))):
        ref, ref_path = check_ref(fragment), None
    segments = [segment for segment in page.repository.split("/") if segment]
    if not segments or any(segment in {".", ".."} or segment.startswith("-") for segment in segments):
        raise _bad(f"{text[:80]!r} names no repository: it should read {scheme}://{shown}/organisation/repository")
    user = f"{parts.username}@" if parts.username else "git@" if scheme is Scheme.SSH else ""
    netloc = f"{user}{shown}" + (f":{port}" if port is not None else "")
    clone_url = f"{scheme}://{netloc}/{'/'.join(_quote(segment) for segment in segments)}"
    return Context(clone_url, scheme, host, _folder(segments[-1]), ref, ref_path)


def _local(path: str, host: str, fragment: str) -> Context:
    if host not in {"", "localhost"}:
        raise _bad(f"file://{host}/… names another machine; write file:///path/to/repository")
    segments = [segment for segment in path.split("/") if segment]
    if not segments or any(segment in {".", ".."} for segment in segments):
        raise _bad("a file:// URL needs an absolute path without '..', such as file:///srv/git/repo")
    clone_url = "file:///" + "/".join(_quote(segment) for segment in segments)
    return Context(clone_url, Scheme.FILE, "", _folder(segments[-1]), check_ref(fragment) if fragment else None)


def _relative_to_home(user: str, host: str, path: str, fragment: str) -> Context:
    """`user@host:path`, as ssh understands it: from the user's home directory on that host. It is kept as it is, since
    no URL says the same to every server."""
    if not _HOST.fullmatch(host) or user.startswith("-") or not _USER.fullmatch(user):
        raise _bad(f"{user[:40]!r} at {host[:80]!r} is no user of a host")
    segments = [segment for segment in path.split("/") if segment]
    if not segments or any(
        segment in {".", ".."} or segment.startswith("-") or not _SCP_SEGMENT.fullmatch(segment) for segment in segments
    ):
        raise _bad(f"{path[:80]!r} names no repository: it should read {user}@{host}:organisation/repository")
    clone_url = f"{user}@{host.lower()}:{'/'.join(segments)}"
    ref = check_ref(fragment) if fragment else None
    return Context(clone_url, Scheme.SSH, host.lower(), _folder(segments[-1]), ref)


def _only_views(query: str) -> bool:
    pairs = parse_qsl(query, keep_blank_values=True)
    return bool(pairs) and all(name in _VIEWS and _VIEW.fullmatch(value) for name, value in pairs)


def _folder(segment: str) -> str:
    name = segment.removesuffix(".git")
    if not _NAME.fullmatch(name) or name in {".", "..", ".git"} or name.startswith(".fairwater"):
        raise _bad(f"{segment[:80]!r} cannot be the name of a repository's folder: letters, digits, '.', '_', '-'")
    return name


def _quote(segment: str) -> str:
    return quote(segment, safe="~._-+@")


def _bad(message: str) -> Permanent:
    return Permanent(message, code="bad_context_url")
