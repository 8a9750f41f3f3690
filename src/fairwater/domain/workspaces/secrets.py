"""What a run may use and nobody may read: credentials for hosts, and secret variables.

Never part of what is logged, shown or written to a disk in the clear; `repr` leaves the secrets out.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum


class CredentialKind(StrEnum):
    TOKEN = "token"  # noqa: S105 - user name and password or token, for https (git and image registries)
    SSH_KEY = "ssh-key"


@dataclass(frozen=True, slots=True)
class Credential:
    """What opens `host` (with `:port` where it is not the usual one).

    `secret` is a token or password, or a private key in OpenSSH's or PEM's form without a passphrase. `plain_http`: it
    may be sent without TLS, because the person said so.
    """

    kind: CredentialKind
    host: str
    username: str
    secret: str = field(repr=False)
    plain_http: bool = False


@dataclass(frozen=True, slots=True)
class RunSecrets:
    """`environment` are the person's and the project's variables, secret or not."""

    credentials: tuple[Credential, ...] = ()
    environment: tuple[tuple[str, str], ...] = field(default=(), repr=False)

    def token_for(self, host: str, *, plain_http: bool = False) -> Credential | None:
        """The token for `host`, which without TLS must be one that may be sent so."""
        for credential in self.credentials:
            if credential.kind is CredentialKind.TOKEN and credential.host == host.lower():
                return credential if credential.plain_http or not plain_http else None
        return None

    def keys(self) -> tuple[Credential, ...]:
        return tuple(credential for credential in self.credentials if credential.kind is CredentialKind.SSH_KEY)
