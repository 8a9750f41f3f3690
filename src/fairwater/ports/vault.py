"""What people give Fairwater to keep for them: credentials for hosts, and variables, secret or not.

A secret goes in and never comes out again but into a run of its owner (`for_run`). Each protocol belongs to one
transaction (`ports/database.py`).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from typing import Protocol

from fairwater.domain.ids import OrganisationId, UserId
from fairwater.domain.workspaces.secrets import Credential, CredentialKind, RunSecrets

CREDENTIALS_MAX = 64
VARIABLES_MAX = 256
"""Of one account, or of one organisation."""
VARIABLES_BYTES_MAX = 256 * 1024
"""All together: those of a person and of an organisation fit into what Linux hands to a process (execve(2): 2 MiB)."""
VALUE_BYTES_MAX = 32 * 1024


@dataclass(frozen=True, slots=True)
class Holder:
    """Whose variables they are: a person's, or an organisation's, for the runs of all its members."""

    id: UserId | OrganisationId
    organisation: bool = False


@dataclass(frozen=True, slots=True)
class StoredCredential:
    """A credential without its secret. `fingerprint` is that of an SSH key's public half: `SHA256:…`."""

    id: str
    kind: CredentialKind
    host: str
    username: str
    plain_http: bool
    fingerprint: str | None
    created_at: datetime


@dataclass(frozen=True, slots=True)
class Variable:
    """`repository` is a pattern (`domain/workspaces/pattern.py`), "" for every repository."""

    name: str
    value: str = field(repr=False)
    repository: str = ""
    secret: bool = False


@dataclass(frozen=True, slots=True)
class StoredVariable:
    """`value` is None where it is secret."""

    id: str
    name: str
    value: str | None = field(repr=False)
    repository: str
    secret: bool
    created_at: datetime


class Credentials(Protocol):
    async def credentials(self, user: UserId) -> tuple[StoredCredential, ...]:
        """By host, then kind."""
        ...

    async def put_credential(
        self, user: UserId, credential: Credential, fingerprint: str | None, now: datetime
    ) -> StoredCredential:
        """In place of the one of the same kind for the same host, where there is one.

        Raises:
            Permanent: `too_many_credentials`.
        """
        ...

    async def remove_credential(self, user: UserId, credential: str) -> bool: ...


class Variables(Protocol):
    async def variables(self, holder: Holder) -> tuple[StoredVariable, ...]:
        """By name, then pattern."""
        ...

    async def put_variable(self, holder: Holder, variable: Variable, now: datetime) -> StoredVariable:
        """In place of the one of the same name for the same repositories, where there is one.

        Raises:
            Permanent: `too_many_variables`, also where all together hold too much.
        """
        ...

    async def remove_variable(self, holder: Holder, variable: str) -> bool: ...


class Secrets(Credentials, Variables, Protocol):
    async def for_run(self, owner: UserId, organisation: OrganisationId, context_url: str) -> RunSecrets:
        """What a run of `owner`'s on that repository may use. A person's variable goes before an organisation's, and
        among one holder's the one with the more specific pattern.

        Raises:
            Permanent: `wrong_master_key`, where something of it cannot be opened.
        """
        ...

    async def prove_key(self, now: datetime) -> None:
        """At start: that the master key is the one of this database, which a new database takes as its own.

        Raises:
            Permanent: `wrong_master_key`.
        """
        ...

    async def rotate(self, now: datetime) -> int:
        """Seals everything anew with the first key, so that the others are needed no longer; how many things."""
        ...
