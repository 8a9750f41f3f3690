"""Who asks: the account behind a token, or the local administrator at the server's unix socket.

Decides who somebody is; refuses to know what they may do (`authorisation.py`).
"""

from __future__ import annotations

import asyncio
import hashlib
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta

from starlette.exceptions import HTTPException
from starlette.requests import HTTPConnection

from fairwater.domain.failure import Permanent
from fairwater.domain.ids import UserId
from fairwater.ports.accounts import ADMINISTRATOR, Account, Role, Token
from fairwater.ports.clock import Clock
from fairwater.ports.database import Database
from fairwater.server.options import ServerOptions
from fairwater.serving.peers import PEER_UID

TOKEN_PREFIX = "fw_"  # noqa: S105 - what every token begins with, so that scanners find leaked ones
_SECRET_BYTES = 32
_CACHED_MAX = 4096
_LOCAL = "local administrator"


@dataclass(frozen=True, slots=True)
class Principal:
    """`local`: at the unix socket of this machine. `token` is the id of the token that was shown, None for local.

    `as_of` counts the changes of accounts that were known when this was found out.
    """

    account: Account
    local: bool = False
    token: str | None = None
    as_of: int = 0

    @property
    def id(self) -> UserId:
        return self.account.id

    @property
    def is_staff(self) -> bool:
        return self.account.role in {Role.OPERATOR, Role.ADMIN}


@dataclass(frozen=True, slots=True)
class _Cached:
    account: Account
    token: Token | None
    until: datetime


def new_secret() -> tuple[str, str]:
    """A token of 256 random bits, and its digest: only the latter is kept."""
    secret = TOKEN_PREFIX + secrets.token_urlsafe(_SECRET_BYTES)
    return secret, digest_of(secret)


def digest_of(secret: str) -> str:
    """SHA-256 is enough: what is random cannot be guessed from a list, however fast the function is."""
    return hashlib.sha256(secret.encode()).hexdigest()


class Authenticator:
    def __init__(self, database: Database, clock: Clock, options: ServerOptions) -> None:
        self._database = database
        self._clock = clock
        self._options = options
        self._cached: dict[str, _Cached] = {}
        self._changes = 0
        self._changed: dict[UserId, int] = {}
        self._open: set[tuple[UserId, str | None, asyncio.Event]] = set()

    async def principal(self, connection: HTTPConnection) -> Principal:
        """Raises Permanent: `blocked`; HTTPException 401, where nobody can be recognised."""
        as_of = self._changes
        header = connection.headers.get("authorization")
        if header is not None:
            scheme, _, secret = header.partition(" ")
            if scheme.lower() != "bearer" or not secret.strip():
                raise _unknown("the Authorization header must read 'Bearer TOKEN'")
            known = await self._holder(digest_of(secret.strip()))
            if known is None or known.token is None:
                raise _unknown("the token is not valid, or no longer: log in again")
            principal = Principal(known.account, token=known.token.id, as_of=as_of)
        elif connection.scope.get(PEER_UID) in self._options.administrator_uids:
            principal = Principal((await self._administrator()).account, local=True, as_of=as_of)
        else:
            raise _unknown("a token is needed: send 'Authorization: Bearer TOKEN'")
        if principal.account.blocked:
            raise blocked()
        return principal

    def forget(self, user: UserId, token: str | None = None, *, may_stay: bool = False) -> None:
        """To be called after a change of an account or a token: believed no longer, and its open streams end.

        `may_stay`: nothing has changed of what it may do, and its streams go on.
        """
        self._changes += 1
        self._cached.clear()
        if may_stay:
            return
        self._changed[user] = self._changes
        for holder, shown, revoked in tuple(self._open):
            if holder == user and (token is None or token == shown):
                revoked.set()

    def forget_all(self) -> None:
        """To be called when every account may have changed: nobody is believed, and all open streams end."""
        self._changes += 1
        self._cached.clear()
        for holder, _, revoked in tuple(self._open):
            self._changed[holder] = self._changes
            revoked.set()

    @contextmanager
    def staying(self, principal: Principal, revoked: asyncio.Event) -> Iterator[None]:
        """For a connection that stays open: `revoked` is set once the account or token is good no longer."""
        entry = (principal.id, principal.token, revoked)
        self._open.add(entry)
        if self._changed.get(principal.id, 0) > principal.as_of:
            revoked.set()  # between the request's beginning and here
        try:
            yield
        finally:
            self._open.discard(entry)

    async def _holder(self, digest: str) -> _Cached | None:
        now = self._clock.now()
        cached = self._cached.get(digest)
        if cached is None or cached.until <= now:
            changes = self._changes
            found = await self._database.reading(lambda transaction: transaction.tokens.holder(digest, now))
            if found is None:
                self._cached.pop(digest, None)
                return None
            cached = self._believe(digest, *found, now, changes)
        if cached.token is not None and cached.token.expires_at is not None and cached.token.expires_at <= now:
            return None
        return cached

    async def _administrator(self) -> _Cached:
        now = self._clock.now()
        cached = self._cached.get(_LOCAL)
        if cached is not None and cached.until > now:
            return cached
        changes = self._changes
        async with self._database.read() as transaction:
            account = await transaction.accounts.named(ADMINISTRATOR)
        if account is None:
            account = await self._first_administrator(now)
        return self._believe(_LOCAL, account, None, now, changes)

    async def _first_administrator(self, now: datetime) -> Account:
        """Of the first requests to a new database, at any of its servers, one makes the account."""
        try:
            async with self._database.write() as transaction:
                return await transaction.accounts.named(ADMINISTRATOR) or await transaction.accounts.add(
                    ADMINISTRATOR, Role.ADMIN, "default", now
                )
        except Permanent as failure:
            if failure.code != "name_taken":
                raise
        async with self._database.read() as transaction:
            account = await transaction.accounts.named(ADMINISTRATOR)
        assert account is not None, "accounts are never removed"
        return account

    def _believe(self, key: str, account: Account, token: Token | None, now: datetime, changes: int) -> _Cached:
        cached = _Cached(account, token, now + timedelta(seconds=self._options.account_cache_s))
        if changes == self._changes:  # else what was read may be from before the change
            if len(self._cached) >= _CACHED_MAX:
                self._cached.clear()
            self._cached[key] = cached
        return cached


def blocked() -> Permanent:
    return Permanent("your account is blocked: ask an administrator of this Fairwater", code="blocked")


def _unknown(detail: str) -> HTTPException:
    return HTTPException(401, detail, headers={"WWW-Authenticate": "Bearer"})
