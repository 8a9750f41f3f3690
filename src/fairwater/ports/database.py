"""The database as the API uses it: one transaction a request."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol, TypeVar

from fairwater.domain.ids import UserId, WorkspaceId
from fairwater.ports.accounts import Accounts, LoginCodes, Organisations, StartAllowances, Tokens
from fairwater.ports.catalogue import Catalogue, History
from fairwater.ports.vault import Secrets

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer kept for an idempotency key. `body` None: the answer was a secret, shown once and not kept."""

    status: int
    body: str | None
    location: str | None = None


@dataclass(frozen=True, slots=True)
class Claim:
    """What is kept for a key. `answer` is None while the request that brought it is under way, or was cut off."""

    fingerprint: str
    answer: Answer | None


@dataclass(frozen=True, slots=True)
class Restored:
    """What came of a restoration: the rows of each table, and the workspaces that run on a node and that the backup
    does not know. Nobody looks after those any more."""

    rows: Mapping[str, int]
    unknown: tuple[WorkspaceId, ...] = ()


class IdempotencyKeys(Protocol):
    async def claim(self, user: UserId, key: str, fingerprint: str, now: datetime) -> Claim | None:
        """Takes the key for this request: None when it was free, else what is kept for it. Forgets keys after a day."""
        ...

    async def keep(self, user: UserId, key: str, answer: Answer) -> None: ...

    async def release(self, user: UserId, key: str) -> None:
        """Makes the key free again: nothing was done."""
        ...


class Transaction(Protocol):
    """All of it is in the database after the block, or nothing is; what was changed is told to others only after."""

    @property
    def workspaces(self) -> Catalogue: ...
    @property
    def history(self) -> History: ...
    @property
    def accounts(self) -> Accounts: ...
    @property
    def organisations(self) -> Organisations: ...
    @property
    def allowances(self) -> StartAllowances: ...
    @property
    def tokens(self) -> Tokens: ...
    @property
    def codes(self) -> LoginCodes: ...
    @property
    def keys(self) -> IdempotencyKeys: ...
    @property
    def secrets(self) -> Secrets: ...


class Database(Protocol):
    """Nothing else may be awaited inside a transaction: others wait for it."""

    def read(self) -> AbstractAsyncContextManager[Transaction]:
        """One consistent view; it must not be written through. Raises Temporary: `database_busy`, `database_away`."""
        ...

    def write(self) -> AbstractAsyncContextManager[Transaction]:
        """Raises Temporary: `database_busy`, `database_away`."""
        ...

    async def reading(self, work: Callable[[Transaction], Awaitable[T]]) -> T:
        """`work` within `read`, at less cost: all of it may run in a thread of its own, at once."""
        ...

    async def writing(self, work: Callable[[Transaction], Awaitable[T]]) -> T:
        """`work` within `write`, likewise."""
        ...

    async def ping(self) -> None:
        """That the database answers. Raises Temporary: `database_busy`, `database_away`."""
        ...
