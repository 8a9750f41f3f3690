"""Workspaces and their history in the database, within one transaction: see `ports/catalogue.py`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import datetime
from functools import cache
from typing import Any

from sqlalchemy import Integer, Select, String, and_, bindparam, func, or_, select
from sqlalchemy.dialects.postgresql import insert

from fairwater.domain.failure import Permanent
from fairwater.domain.ids import OrganisationId, RunNumber, UserId, WorkspaceId, parse_workspace_id
from fairwater.domain.workspaces.deadlines import DeadlinePolicy
from fairwater.domain.workspaces.workspace import Event, Phase
from fairwater.ports.accounts import Page
from fairwater.ports.catalogue import Committed, Entry, HistoryLine, Order
from fairwater.store.cursors import read_cursor, read_moment, write_cursor
from fairwater.store.engine import Statements
from fairwater.store.life import HOLD, WITH_DEADLINE, Held, advance, held
from fairwater.store.schema import USERS, WORKSPACES, HistoryRow, OrganisationRow, WorkspaceRow
from fairwater.store.seen import Seen

_CANDIDATES = 16
_SEEN = (
    WITH_DEADLINE.add_columns(USERS.c.name.label("owner_name"), OrganisationRow.name.label("organisation_name"))
    .join(USERS, USERS.c.id == WORKSPACES.c.owner_id)
    .join(OrganisationRow, OrganisationRow.id == WORKSPACES.c.organisation_id)
)
_OF_KEY = WORKSPACES.c.id == bindparam("key")
_OF_OWNER = WORKSPACES.c.owner_id == bindparam("owner")
_BY_ID = _SEEN.where(_OF_KEY)
_OWN_BY_ID = _BY_ID.where(_OF_OWNER)
_ADD = insert(WORKSPACES).on_conflict_do_nothing().returning(WORKSPACES.c.id)
_LIVE = WorkspaceRow.phase != Phase.DELETED.value


class SqlCatalogue:
    def __init__(
        self,
        connection: Statements,
        deadlines: DeadlinePolicy,
        seen: Seen,
        committed: Callable[[Committed], None],
        *,
        writing: bool,
    ) -> None:
        self._connection = connection
        self._deadlines = deadlines
        self._seen = seen
        self._committed = committed
        self._writing = writing

    async def find(self, reference: str, owner: UserId | None, asking: UserId) -> Entry:
        return self._entry(await self._find_row(reference, owner, asking))

    async def page(self, owner: UserId | None, phase: Phase | None, limit: int, cursor: str | None) -> Page[Entry]:
        query = _page(owned=owner is not None, live=phase is None, goes_on=cursor is not None)
        values: dict[str, Any] = {"owner": owner, "phase": phase, "most": limit + 1}
        if cursor is not None:
            created_text, values["last"] = read_cursor(cursor, 2)
            values["created_at"] = read_moment(created_text)
        rows = (await self._connection.execute(query, values)).all()
        entries = tuple(self._entry(row) for row in rows[:limit])
        more = len(rows) > limit
        return Page(
            entries, write_cursor(entries[-1].created_at.isoformat(), entries[-1].workspace.id) if more else None
        )

    async def names_like(self, owner: UserId, beginning: str) -> frozenset[str]:
        rows = await self._connection.execute(
            select(WorkspaceRow.name).where(
                WorkspaceRow.owner_id == owner, _LIVE, WorkspaceRow.name.startswith(beginning, autoescape=True)
            )
        )
        return frozenset(row.name for row in rows)

    async def add(
        self, workspace: WorkspaceId, owner: UserId, organisation: OrganisationId, order: Order, now: datetime
    ) -> Entry:
        values = {
            "id": workspace,
            "name": order.name,
            "owner_id": owner,
            "organisation_id": organisation,
            "context_url": order.context_url,
            "workspace_class": order.workspace_class,
            "image": order.image,
            "image_asked": order.image_asked,
            "command": list(order.command) if order.command is not None else None,
            "environment": [list(pair) for pair in order.environment],
            "local_allowed": order.local_allowed,
            "phase": Phase.STOPPED.value,
            "reason": "created",
            "since": now,
            "run": RunNumber(0),
            "failure": None,
            "doomed": False,
            "created_at": now,
        }
        added = await self._connection.execute(_ADD, values)
        if added.first() is None:
            raise Permanent(
                f"you have a workspace named '{order.name}' already: choose another name, or start that one",
                code="name_taken",
            )
        # Nobody else sees it yet: there is nothing to hold.
        row = (await self._connection.execute(_BY_ID, {"key": workspace})).one()
        return self._entry(row)

    async def apply(self, entry: Entry, event: Event, reason: str, now: datetime, *, force: bool = False) -> Entry:
        before = Held(entry.workspace, entry.deadline, entry.owner, entry.workspace_class)
        after = await advance(
            self._connection, before, event, reason, now, self._deadlines, self._committed, force=force
        )
        return replace(entry, workspace=after.workspace, deadline=after.deadline)

    async def _find_row(self, reference: str, owner: UserId | None, asking: UserId) -> Any:
        if _is_id(reference):
            row = await self._row(reference, owner)
            if row is not None:
                return row
        found = await self._named_row(reference, owner, asking)
        row = await self._row(found.id, owner) if self._writing else found
        if row is None:
            raise no_such_workspace(reference)
        return row

    async def _row(self, workspace: str, owner: UserId | None) -> Any:
        """Held, where the transaction writes: read after the lock, for what was read before may have changed since."""
        if self._writing:
            await self._connection.execute(HOLD, {"key": workspace})
        query = _BY_ID if owner is None else _OWN_BY_ID
        return (await self._connection.execute(query, {"key": workspace, "owner": owner})).first()

    async def _named_row(self, reference: str, owner: UserId | None, asking: UserId) -> Any:
        query = _SEEN
        if owner is not None:
            query = query.where(WorkspaceRow.owner_id == owner)
        named = or_(WorkspaceRow.name == reference, WorkspaceRow.id.startswith(reference, autoescape=True))
        rows = (await self._connection.execute(query.where(_LIVE, named).limit(_CANDIDATES))).all()
        by_name = [row for row in rows if row.name == reference]
        for candidates in ([row for row in by_name if row.owner_id == asking], by_name, rows):
            if len(candidates) == 1:
                return candidates[0]
            if candidates:
                ids = ", ".join(row.id for row in candidates[:5])
                raise Permanent(
                    f"{reference[:80]!r} fits more than one workspace ({ids}): give more of the id", code="ambiguous"
                )
        raise no_such_workspace(reference)

    def _entry(self, row: Any) -> Entry:
        found = held(row)
        return Entry(
            workspace=found.workspace,
            name=row.name,
            owner=found.owner,
            owner_name=row.owner_name,
            organisation=row.organisation_name,
            context_url=row.context_url,
            workspace_class=row.workspace_class,
            image=row.image,
            command=tuple(row.command) if row.command is not None else None,
            created_at=row.created_at,
            deadline=found.deadline,
            progress=self._seen.progress.get(found.workspace.id),
            image_asked=row.image_asked,
            setup=self._seen.setups.get(found.workspace.id),
        )


class SqlHistory:
    def __init__(self, connection: Statements) -> None:
        self._connection = connection

    async def after(
        self, sequence: int, limit: int, owner: UserId | None, workspace: WorkspaceId | None
    ) -> tuple[HistoryLine, ...]:
        query = select(HistoryRow.__table__).where(HistoryRow.sequence > sequence)
        if owner is not None:
            query = query.where(HistoryRow.owner_id == owner)
        if workspace is not None:
            query = query.where(HistoryRow.workspace_id == workspace)
        rows = await self._connection.execute(query.order_by(HistoryRow.sequence).limit(limit))
        return tuple(
            HistoryLine(
                sequence=row.sequence,
                workspace=WorkspaceId(row.workspace_id),
                owner=UserId(row.owner_id),
                event=Event(row.event),
                phase=Phase(row.phase),
                reason=row.reason,
                run=RunNumber(row.run),
                at=row.at,
            )
            for row in rows
        )

    async def newest(self) -> int:
        return (await self._connection.execute(select(func.max(HistoryRow.sequence)))).scalar() or 0


@cache
def _page(*, owned: bool, live: bool, goes_on: bool) -> Select[Any]:
    """A page of workspaces, the newest first: built once, for SQLAlchemy then need not look at its parts."""
    most = bindparam("most", type_=Integer)
    query = _SEEN.order_by(WORKSPACES.c.created_at.desc(), WORKSPACES.c.id.desc()).limit(most)
    query = query.where(_LIVE if live else WORKSPACES.c.phase == bindparam("phase"))
    if owned:
        query = query.where(_OF_OWNER)
    if goes_on:
        at, last = bindparam("created_at", type_=WORKSPACES.c.created_at.type), bindparam("last", type_=String)
        older = and_(WORKSPACES.c.created_at == at, WORKSPACES.c.id < last)
        query = query.where(or_(WORKSPACES.c.created_at < at, older))
    return query


def no_such_workspace(reference: str) -> Permanent:
    return Permanent(
        f"there is no workspace {reference[:80]!r} among those you may see: `fairwater workspace list` shows them",
        code="no_such_workspace",
    )


def _is_id(reference: str) -> bool:
    try:
        parse_workspace_id(reference)
    except Permanent:
        return False
    return True
