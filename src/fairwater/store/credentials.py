"""Tokens, login codes and idempotency keys in the database, within one transaction. Knows digests, never a secret."""

from __future__ import annotations

from datetime import datetime, timedelta
from secrets import token_hex
from typing import Any

from sqlalchemy import and_, bindparam, delete, or_, select, update
from sqlalchemy.dialects.postgresql import insert

from fairwater.domain.ids import UserId
from fairwater.ports.accounts import Account, Page, Token
from fairwater.ports.database import Answer, Claim
from fairwater.store.accounts import SqlAccounts
from fairwater.store.cursors import read_cursor, write_cursor
from fairwater.store.engine import Statements
from fairwater.store.schema import IdempotencyRow, LoginCodeRow, Row, TokenRow

KEY_LIFETIME = timedelta(hours=24)
_KEYS = Row.metadata.tables["idempotency_keys"]
_OF_KEY = and_(_KEYS.c.user_id == bindparam("by"), _KEYS.c.key == bindparam("claimed"))
_FORGET_KEYS = delete(_KEYS).where(_KEYS.c.created_at <= bindparam("until"))
_CLAIM_KEY = insert(_KEYS).on_conflict_do_nothing().returning(_KEYS.c.key)
_KEPT = select(_KEYS).where(_OF_KEY)
_KEEP = update(_KEYS).where(_OF_KEY)


class SqlTokens:
    def __init__(self, connection: Statements) -> None:
        self._connection = connection

    async def holder(self, digest: str, now: datetime) -> tuple[Account, Token] | None:
        query = select(TokenRow.__table__).where(
            TokenRow.digest == digest, or_(TokenRow.expires_at.is_(None), TokenRow.expires_at > now)
        )
        row = (await self._connection.execute(query)).first()
        if row is None:
            return None
        account = await SqlAccounts(self._connection).find(UserId(row.user_id))
        return (account, _token(row)) if account else None

    async def add(self, user: UserId, name: str, digest: str, now: datetime, expires_at: datetime | None) -> Token:
        token = Token("t" + token_hex(8), user, name, now, expires_at)
        await self._connection.execute(
            insert(TokenRow).values(
                id=token.id, user_id=user, name=name, digest=digest, created_at=now, expires_at=expires_at
            )
        )
        return token

    async def page(self, user: UserId, limit: int, cursor: str | None) -> Page[Token]:
        query = select(TokenRow.__table__).where(TokenRow.user_id == user).order_by(TokenRow.id).limit(limit + 1)
        if cursor is not None:
            query = query.where(TokenRow.id > read_cursor(cursor, 1)[0])
        rows = (await self._connection.execute(query)).all()
        items = tuple(_token(row) for row in rows[:limit])
        return Page(items, write_cursor(items[-1].id) if len(rows) > limit else None)

    async def remove(self, user: UserId, token: str) -> bool:
        result = await self._connection.execute(delete(TokenRow).where(TokenRow.user_id == user, TokenRow.id == token))
        return result.rowcount > 0


class SqlLoginCodes:
    def __init__(self, connection: Statements) -> None:
        self._connection = connection

    async def add(self, user: UserId, digest: str, now: datetime, expires_at: datetime) -> None:
        await self._connection.execute(delete(LoginCodeRow).where(LoginCodeRow.expires_at <= now))
        await self._connection.execute(insert(LoginCodeRow).values(digest=digest, user_id=user, expires_at=expires_at))

    async def redeem(self, digest: str, now: datetime) -> Account | None:
        # Deleting and learning whose it was in one statement: of two who come at once, one gets nothing.
        result = await self._connection.execute(
            delete(LoginCodeRow)
            .where(LoginCodeRow.digest == digest, LoginCodeRow.expires_at > now)
            .returning(LoginCodeRow.user_id)
        )
        row = result.first()
        return await SqlAccounts(self._connection).find(UserId(row.user_id)) if row else None


class SqlIdempotencyKeys:
    def __init__(self, connection: Statements) -> None:
        self._connection = connection

    async def claim(self, user: UserId, key: str, fingerprint: str, now: datetime) -> Claim | None:
        await self._connection.execute(_FORGET_KEYS, {"until": now - KEY_LIFETIME})
        # Of two who claim at once, the second waits here until the first has answered.
        claimed = await self._connection.execute(
            _CLAIM_KEY, {"user_id": user, "key": key, "fingerprint": fingerprint, "created_at": now}
        )
        if claimed.first() is not None:
            return None
        row = (await self._connection.execute(_KEPT, {"by": user, "claimed": key})).one()
        answer = Answer(row.status, row.body, row.location) if row.status is not None else None
        return Claim(row.fingerprint, answer)

    async def keep(self, user: UserId, key: str, answer: Answer) -> None:
        await self._connection.execute(
            _KEEP,
            {"by": user, "claimed": key, "status": answer.status, "body": answer.body, "location": answer.location},
        )

    async def release(self, user: UserId, key: str) -> None:
        await self._connection.execute(
            delete(IdempotencyRow).where(IdempotencyRow.user_id == user, IdempotencyRow.key == key)
        )


def _token(row: Any) -> Token:
    return Token(row.id, UserId(row.user_id), row.name, row.created_at, row.expires_at)
