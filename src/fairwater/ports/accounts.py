"""Accounts, organisations and tokens, as the API reads and writes them; each protocol belongs to one transaction."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Generic, Protocol, TypeVar

from fairwater.domain.ids import OrganisationId, UserId

ADMINISTRATOR = "admin"
"""The account of whoever speaks through the server's own unix socket as root or as the data's owner."""

T = TypeVar("T")


class Role(StrEnum):
    MEMBER = "member"
    OPERATOR = "operator"
    ADMIN = "admin"


@dataclass(frozen=True, slots=True)
class Page(Generic[T]):
    """Part of a list; `next` is the opaque cursor of what follows, None at the end."""

    items: tuple[T, ...]
    next: str | None = None


@dataclass(frozen=True, slots=True)
class Organisation:
    id: OrganisationId
    name: str
    created_at: datetime


@dataclass(frozen=True, slots=True)
class Account:
    """A person or a program. `organisations` in the order of joining; a new workspace belongs to the first.

    `dotfiles_url` is a repository brought into the home directory of each new workspace.
    """

    id: UserId
    name: str
    role: Role
    blocked: bool
    created_at: datetime
    organisations: tuple[Organisation, ...] = ()
    dotfiles_url: str | None = None


@dataclass(frozen=True, slots=True)
class Token:
    """A token without its secret, which only its holder has."""

    id: str
    user: UserId
    name: str
    created_at: datetime
    expires_at: datetime | None


@dataclass(frozen=True, slots=True)
class Allowance:
    """What the limits on starts need to know of an account: see `domain/abuse/rate.py`."""

    blocked: bool
    arrival: datetime | None
    active: int


class Accounts(Protocol):
    async def named(self, name: str) -> Account | None: ...

    async def find(self, user: UserId) -> Account | None: ...

    async def page(self, limit: int, cursor: str | None) -> Page[Account]:
        """Raises Permanent: `bad_cursor`."""
        ...

    async def add(self, name: str, role: Role, organisation: str, now: datetime) -> Account:
        """An account in the organisation of that name, which is made where there is none.

        Raises:
            Permanent: `name_taken`.
        """
        ...

    async def change(self, user: UserId, role: Role | None, blocked: bool | None) -> Account | None: ...

    async def set_dotfiles(self, user: UserId, url: str | None) -> Account | None: ...


class Organisations(Protocol):
    async def page(self, limit: int, cursor: str | None, member: UserId | None) -> Page[Organisation]:
        """All, or those of `member`. Raises Permanent: `bad_cursor`."""
        ...

    async def find(self, reference: str) -> Organisation | None:
        """By id, else by name."""
        ...


class StartAllowances(Protocol):
    async def allowance(self, user: UserId) -> Allowance | None:
        """Held until the transaction ends: two starts of one account never see the same allowance."""
        ...

    async def spend(self, user: UserId, arrival: datetime) -> None:
        """Keeps the account's theoretical arrival time."""
        ...


class Tokens(Protocol):
    """Secrets are 256 random bits, so that a plain SHA-256 of one is enough to keep."""

    async def holder(self, digest: str, now: datetime) -> tuple[Account, Token] | None:
        """Whose token has this SHA-256 (hex), unless it has expired."""
        ...

    async def add(self, user: UserId, name: str, digest: str, now: datetime, expires_at: datetime | None) -> Token: ...

    async def page(self, user: UserId, limit: int, cursor: str | None) -> Page[Token]:
        """Raises Permanent: `bad_cursor`."""
        ...

    async def remove(self, user: UserId, token: str) -> bool: ...


class LoginCodes(Protocol):
    async def add(self, user: UserId, digest: str, now: datetime, expires_at: datetime) -> None: ...

    async def redeem(self, digest: str, now: datetime) -> Account | None:
        """Uses the code up. None for one that is unknown, expired or used before."""
        ...
