"""What a git URL asks for: where to clone from, what to check out, and under which name.

Understands the addresses people paste: clone URLs (https, ssh, `git@host:path`, `file://`), and pages of GitHub,
GitLab and Bitbucket (`/tree/BRANCH`, `/commit/SHA`, `/releases/tag/TAG`). A `#REF` at the end of a clone URL
names a branch, tag or commit. Every part is treated as hostile: it will stand in a command line of git.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum
from urllib.parse import quote, unquote, urlsplit

from fairwater.domain.failure import Permanent


class Scheme(StrEnum):
    HTTPS = "https"
    HTTP = "http"
    SSH = "ssh"
    FILE = "file"


@dataclass(frozen=True, slots=True)
class Context:
    """A repository and what to check out of it.

    `ref` is a branch, tag or commit as written, None for the default branch; `name` is the folder the checkout
    gets below `/workspace`.
    """

    clone_url: str
    scheme: Scheme
    host: str
    name: str
    ref: str | None = None


_COMMIT = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
_NAME = re.compile(r"[A-Za-z0-9._][A-Za-z0-9._-]{0,99}")
_HOST = re.compile(
    r"(?:[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?)(?:\.[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?)*|\[[0-9A-Fa-f:.]+\]"
)
_SCP = re.compile(r"(?P<user>[A-Za-z0-9._-]+)@(?P<host>[^/:@\s]+):(?!//)(?P<path>[^\s]+)")
_USER = re.compile(r"[A-Za-z0-9._-]{1,64}")
_MAX_LENGTH = 2048


def is_commit(ref: str) -> bool:
    """Whether `ref` is the full name of a commit (SHA-1 or SHA-256)."""
    return _COMMIT.fullmatch(ref) is not None


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
    if parts.query:  # it may hold a token, and the URL is kept and shown
        raise _bad(f"{text[:80]!r} has a query: leave out what follows the '?'")
    path, ref = _page(host, unquote(parts.path))
    ref = _ref(unquote(parts.fragment)) if parts.fragment else ref
    segments = [segment for segment in path.split("/") if segment]
    if not segments or any(segment in {".", ".."} or segment.startswith("-") for segment in segments):
        raise _bad(f"{text[:80]!r} names no repository: it should read {scheme}://{shown}/organisation/repository")
    user = f"{parts.username}@" if parts.username else "git@" if scheme is Scheme.SSH else ""
    netloc = f"{user}{shown}" + (f":{port}" if port is not None else "")
    clone_url = f"{scheme}://{netloc}/{'/'.join(_quote(segment) for segment in segments)}"
    return Context(clone_url, scheme, host, _folder(segments[-1]), ref)


def _local(path: str, host: str, fragment: str) -> Context:
    if host not in {"", "localhost"}:
        raise _bad(f"file://{host}/… names another machine; write file:///path/to/repository")
    segments = [segment for segment in path.split("/") if segment]
    if not segments or any(segment in {".", ".."} for segment in segments):
        raise _bad("a file:// URL needs an absolute path without '..', such as file:///srv/git/repo")
    clone_url = "file:///" + "/".join(_quote(segment) for segment in segments)
    return Context(clone_url, Scheme.FILE, "", _folder(segments[-1]), _ref(fragment) if fragment else None)


def _page(host: str, path: str) -> tuple[str, str | None]:
    """Splits the path of a page (`/org/repo/tree/branch`) into the repository's path and the ref."""
    repository, on_gitlab, page = path.partition("/-/")  # GitLab, on any host
    segments = path.strip("/").split("/")
    if on_gitlab:
        kind, *rest = page.strip("/").split("/")
    elif len(segments) > 2 and (host in {"github.com", "bitbucket.org"} or segments[2] in {"tree", "commit"}):
        repository, kind, rest = "/".join(segments[:2]), segments[2], segments[3:]
    else:
        return path, None
    if rest and kind in {"tree", "commit", "commits", "tags"}:
        return repository, _ref("/".join(rest))
    if rest and kind == "src":  # Bitbucket: a branch, then a path in it
        return repository, _ref(rest[0])
    if kind == "releases" and len(rest) > 1 and rest[0] == "tag":
        return repository, _ref("/".join(rest[1:]))
    raise _bad(f"a page of kind '{kind}' is not supported; give the repository, a branch (/tree/…), tag or commit")


def _ref(text: str) -> str:
    """`text` as a git ref, by the rules of git-check-ref-format that keep it from being an option or a range."""
    bad = (
        not text
        or len(text) > 250
        or text == "@"
        or text.startswith(("-", "/", "."))
        or text.endswith(("/", ".", ".lock"))
        or any(part in text for part in ("..", "@{", "//", "\\", "/.", ".lock/"))
        or not text.isprintable()
        or any(sign in " ~^:?*[" for sign in text)
    )
    if bad:
        raise _bad(f"{text[:80]!r} is not the name of a branch, tag or commit")
    return text


def _folder(segment: str) -> str:
    name = segment.removesuffix(".git")
    if not _NAME.fullmatch(name) or name in {".", "..", ".git"} or name.startswith(".fairwater"):
        raise _bad(f"{segment[:80]!r} cannot be the name of a repository's folder: letters, digits, '.', '_', '-'")
    return name


def _quote(segment: str) -> str:
    return quote(segment, safe="~._-+@")


def _bad(message: str) -> Permanent:
    return Permanent(message, code="bad_context_url")
