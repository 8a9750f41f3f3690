"""What a person writes to name an image, and what is meant by it.

Decides which registry, repository, tag and digest a reference stands for, as Docker does: `debian:12` is
`docker.io/library/debian:12`. Refuses to know whether there is such an image.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum

from fairwater.domain.failure import Permanent

HOST = "host"
"""The reference of the machine's own programs."""


class Kind(StrEnum):
    HOST = "host"
    REGISTRY = "docker"
    OCI_FOLDER = "oci"
    OCI_ARCHIVE = "oci-archive"
    DOCKER_ARCHIVE = "docker-archive"


LOCAL = frozenset({Kind.OCI_FOLDER, Kind.OCI_ARCHIVE, Kind.DOCKER_ARCHIVE})
"""Folders and files of the machine."""


@dataclass(frozen=True, slots=True)
class Reference:
    """`host` (with `:port`) and `repository` are a registry's; `path` is a local one's, absolute.

    A registry's reference has a `tag` or a `digest` (`sha256:…`), which counts where both are written; a local one may
    have no tag.
    """

    kind: Kind
    host: str = ""
    repository: str = ""
    path: str = ""
    tag: str = ""
    digest: str = ""

    @property
    def local(self) -> bool:
        return self.kind in LOCAL

    @property
    def source(self) -> str:
        """Where the image comes from, without tag or digest."""
        return f"{self.host}/{self.repository}" if self.kind is Kind.REGISTRY else f"{self.kind}:{self.path}"

    def __str__(self) -> str:
        """The one way to write it."""
        if self.kind is Kind.HOST:
            return HOST
        return self.source + (f"@{self.digest}" if self.digest else f":{self.tag}" if self.tag else "")


_LENGTH_MAX = 1024
_PATH = re.compile(r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*(?:/[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*)*")
_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_LABEL = r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?"
_HOST = re.compile(rf"(?:{_LABEL}(?:\.{_LABEL})*|\[[0-9a-f:.]+\])(?::[0-9]{{1,5}})?", re.IGNORECASE)
_LOCAL_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.@+-]{0,127}")
_DOCKER = "docker.io"
_DOCKER_ALIASES = frozenset({"docker.io", "index.docker.io", "registry-1.docker.io", "registry.hub.docker.com"})


def parse_reference(text: str) -> Reference:
    """The image that `text` names.

    Raises:
        Permanent: `bad_image`, saying which part is wrong and what would be right.
    """
    written = text.strip()
    if not written:
        raise _bad(text, "it is empty: name an image such as debian:12")
    if len(written) > _LENGTH_MAX:
        raise _bad(text, f"it is longer than {_LENGTH_MAX} signs")
    if not written.isprintable() or " " in written:
        raise _bad(text, "it has a space or a control character in it")
    if written == HOST:
        return Reference(Kind.HOST)
    for kind in (Kind.OCI_FOLDER, Kind.OCI_ARCHIVE, Kind.DOCKER_ARCHIVE):
        if written.startswith(f"{kind}:"):
            return _parse_local(text, kind, written.removeprefix(f"{kind}:"))
    return _parse_registry(text, written.removeprefix("docker://"))


def _parse_local(text: str, kind: Kind, rest: str) -> Reference:
    path, _, tag = rest.partition(":")
    if not path.startswith("/"):
        raise _bad(text, f"after {kind}: comes an absolute path")
    names = [name for name in path.split("/") if name]
    if any(name in {".", ".."} for name in names):
        raise _bad(text, "its path has '.' or '..' in it: give the real path")
    if not names:
        raise _bad(text, "its path is the whole machine")
    name = tag.rpartition("/")[2] if kind is Kind.DOCKER_ARCHIVE else tag
    if kind is Kind.DOCKER_ARCHIVE and tag:
        _parse_registry(text, tag)  # docker-archive: names an image in it as a registry's
    elif name and not _LOCAL_TAG.fullmatch(name):
        raise _bad(text, f"{tag[:80]!r} is not a tag")
    return Reference(kind, path="/" + "/".join(names), tag=tag)


def _parse_registry(text: str, written: str) -> Reference:
    if "://" in written:
        raise _bad(text, "it is an address of the web: write an image as host/repository:tag")
    rest, at, digest = written.partition("@")
    if at and not _DIGEST.fullmatch(digest):
        raise _bad(text, f"after @ comes sha256: and 64 hexadecimal digits, not {digest[:80]!r}")
    host, slash, path = rest.partition("/")
    if not slash or not ("." in host or ":" in host or host == "localhost"):
        host, path = _DOCKER, rest
    if not _HOST.fullmatch(host) or len(host) > 255:
        raise _bad(text, f"{host[:80]!r} is not a host name, with a port or without one")
    host = host.lower()
    _, colon, port = host.rpartition(":")
    if colon and port.isdecimal() and not 0 < int(port) < 65536:
        raise _bad(text, f"{port} is not a port: 1 to 65535")
    repository, colon, tag = path.partition(":")
    if colon and not _TAG.fullmatch(tag):
        raise _bad(text, f"{tag[:80]!r} is not a tag: letters, digits, '.', '_' and '-', at most 128")
    if not _PATH.fullmatch(repository):
        why = "; names are in lower case" if repository != repository.lower() else ""
        raise _bad(text, f"{repository[:80]!r} is not the name of a repository{why}")
    if len(repository) > 255:
        raise _bad(text, "the name of its repository is longer than 255 signs")
    if host in _DOCKER_ALIASES:
        host = _DOCKER
        repository = repository if "/" in repository else f"library/{repository}"
    return Reference(Kind.REGISTRY, host, repository, tag="" if digest else tag or "latest", digest=digest)


def _bad(text: str, why: str) -> Permanent:
    shown = "".join(sign if sign.isprintable() else "?" for sign in text[:120])
    return Permanent(f"{shown!r} does not name an image: {why}", code="bad_image")
