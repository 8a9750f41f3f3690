"""For which host a credential is, however a person writes it: one way of writing each host, so that it is found."""

from __future__ import annotations

import re

from fairwater.domain.failure import Permanent
from fairwater.domain.workspaces.secrets import CredentialKind

_LABEL = r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?"
_HOST = re.compile(rf"(?P<name>{_LABEL}(?:\.{_LABEL})*|\[[0-9a-f:.]+\])(?::(?P<port>\d{{1,5}}))?")
_SCHEME = re.compile(r"[a-z][a-z0-9+.-]*://")
_LENGTH_MAX = 253
_DOCKER = frozenset({"index.docker.io", "registry-1.docker.io", "registry.hub.docker.com"})
"""Other names of docker.io: https://github.com/distribution/reference, `normalize.go`."""


def parse_credential_host(text: str, kind: CredentialKind, *, plain_http: bool) -> str:
    """The host in small letters, with its port where that is not the usual one; a whole URL may be given.

    Raises:
        Permanent: `bad_host`.
    """
    written = _SCHEME.sub("", text.strip().lower(), count=1).partition("/")[0].rpartition("@")[2]
    found = _HOST.fullmatch(written)
    if found is None or len(written) > _LENGTH_MAX or not 0 < int(found["port"] or 1) <= 65_535:
        raise Permanent(f"{text[:80]!r} is not a host: write github.com or git.example.org:8443", code="bad_host")
    usual = 22 if kind is CredentialKind.SSH_KEY else 80 if plain_http else 443
    if found["name"] in _DOCKER:
        return "docker.io"
    port = f":{int(found['port'])}" if found["port"] and int(found["port"]) != usual else ""
    return found["name"] + port
