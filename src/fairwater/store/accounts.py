"""Accounts, organisations and allowances in the database, within one transaction: see `ports/accounts.py`."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from secrets import token_hex
from typing import Any

from sqlalchemy import bindparam, func, select, update
from sqlalchemy.dialects.postgresql import insert

from fairwater.domain.failure import Permanent
from fairwater.domain.ids import OrganisationId, UserId
from fairwater.domain.workspaces.workspace import ACTIVE
from fairwater.ports.accounts import Account, Allowance, Organisation, Page, Role
from fairwater.store.cursors import read_cursor, write_cursor
from fairwater.store.engine import Statements
from fairwater.store.schema import USERS, WORKSPACES, MembershipRow, OrganisationRow, UserRow

_ID_BYTES = 8
_ACTIVE = tuple(sorted(phase.value for phase in ACTIVE))
_HOLD = select(USERS.c.id).where(USERS.c.id == bindparam("key")).with_for_update(key_share=True)
_ALLOWANCE = select(
    USERS.c.blocked,
    USERS.c.start_arrival,
    select(func.count())
    .select_from(WORKSPACES)
    .where(WORKSPACES.c.owner_id == USERS.c.id, WORKSPACES.c.phase.in_(_ACTIVE))
    .scalar_subquery()
    .label("active"),
).where(USERS.c.id == bindparam("key"))
_SPEND = update(USERS).where(USERS.c.id == bindparam("key"))


class SqlAccounts:
    def __init__(self, connection: Statements) -> None:
        self._connection = connection

    async def named(self, name: str) -> Account | None:
        return await self._one(UserRow.name == name)

    async def find(self, user: UserId) -> Account | None:
        return await self._one(UserRow.id == user)

    async def page(self, limit: int, cursor: str | None) -> Page[Account]:
        query = select(UserRow.__table__).order_by(UserRow.name).limit(limit + 1)
        if cursor is not None:
            query = query.where(UserRow.name > read_cursor(cursor, 1)[0])
        rows = (await self._connection.execute(query)).all()
        accounts = await self._with_organisations(rows[:limit])
        return Page(accounts, write_cursor(accounts[-1].name) if len(rows) > limit else None)

    async def add(self, name: str, role: Role, organisation: str, now: datetime) -> Account:
        joined = await self._organisation(organisation, now)
        user = UserId("u" + token_hex(_ID_BYTES))
        added = await self._connection.execute(
            insert(UserRow)
            .values(id=user, name=name, role=role.value, blocked=False, created_at=now)
            .on_conflict_do_nothing()
            .returning(UserRow.id)
        )
        if added.first() is None:
            raise Permanent(f"there is an account named '{name}' already", code="name_taken")
        await self._connection.execute(
            insert(MembershipRow).values(user_id=user, organisation_id=joined.id, joined_at=now)
        )
        return Account(user, name, role, False, now, (joined,))

    async def change(self, user: UserId, role: Role | None, blocked: bool | None) -> Account | None:
        values = {"role": role.value if role else None, "blocked": blocked}
        given = {name: value for name, value in values.items() if value is not None}
        if given:
            await self._connection.execute(update(UserRow).where(UserRow.id == user).values(given))
        return await self.find(user)

    async def set_dotfiles(self, user: UserId, url: str | None) -> Account | None:
        await self._connection.execute(update(UserRow).where(UserRow.id == user).values(dotfiles_url=url))
        return await self.find(user)

    async def allowance(self, user: UserId) -> Allowance | None:
        # Counted only once it is held: a query that waits for a lock counts what was there before.
        await self._connection.execute(_HOLD, {"key": user})
        row = (await self._connection.execute(_ALLOWANCE, {"key": user})).first()
        return None if row is None else Allowance(row.blocked, row.start_arrival, row.active)

    async def spend(self, user: UserId, arrival: datetime) -> None:
        await self._connection.execute(_SPEND, {"key": user, "start_arrival": arrival})

    async def _one(self, condition: Any) -> Account | None:
        rows = (await self._connection.execute(select(UserRow.__table__).where(condition))).all()
        accounts = await self._with_organisations(rows)
        return accounts[0] if accounts else None

    async def _with_organisations(self, rows: Sequence[Any]) -> tuple[Account, ...]:
        found: dict[str, list[Organisation]] = {row.id: [] for row in rows}
        memberships = await self._connection.execute(
            select(MembershipRow.user_id, OrganisationRow.__table__)
            .join(OrganisationRow, OrganisationRow.id == MembershipRow.organisation_id)
            .where(MembershipRow.user_id.in_(found))
            .order_by(MembershipRow.joined_at, OrganisationRow.name)
        )
        for row in memberships:
            found[row.user_id].append(organisation_of(row))
        return tuple(
            Account(
                UserId(row.id),
                row.name,
                Role(row.role),
                row.blocked,
                row.created_at,
                tuple(found[row.id]),
                row.dotfiles_url,
            )
            for row in rows
        )

    async def _organisation(self, name: str, now: datetime) -> Organisation:
        made = OrganisationId("o" + token_hex(_ID_BYTES))
        await self._connection.execute(
            insert(OrganisationRow).values(id=made, name=name, created_at=now).on_conflict_do_nothing()
        )
        query = select(OrganisationRow.__table__).where(OrganisationRow.name == name)
        return organisation_of((await self._connection.execute(query)).one())


class SqlOrganisations:
    def __init__(self, connection: Statements) -> None:
        self._connection = connection

    async def find(self, reference: str) -> Organisation | None:
        for column in (OrganisationRow.id, OrganisationRow.name):
            row = (await self._connection.execute(select(OrganisationRow.__table__).where(column == reference))).first()
            if row is not None:
                return organisation_of(row)
        return None

    async def page(self, limit: int, cursor: str | None, member: UserId | None) -> Page[Organisation]:
        query = select(OrganisationRow.__table__).order_by(OrganisationRow.name).limit(limit + 1)
        if cursor is not None:
            query = query.where(OrganisationRow.name > read_cursor(cursor, 1)[0])
        if member is not None:
            query = query.join(MembershipRow, MembershipRow.organisation_id == OrganisationRow.id).where(
                MembershipRow.user_id == member
            )
        rows = (await self._connection.execute(query)).all()
        items = tuple(organisation_of(row) for row in rows[:limit])
        return Page(items, write_cursor(items[-1].name) if len(rows) > limit else None)


def organisation_of(row: Any) -> Organisation:
    return Organisation(OrganisationId(row.id), row.name, row.created_at)
