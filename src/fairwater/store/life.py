"""Writes one step of a workspace's life: the row, its deadline and a line of its history, in the caller's transaction.

What the step leads to is the domain's table; this module only reads and writes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from sqlalchemy import bindparam, delete, insert, select, update

from fairwater.domain.ids import RunNumber, UserId, WorkspaceId
from fairwater.domain.workspaces.deadlines import Deadline, DeadlineKind, DeadlinePolicy, deadline_on_entering
from fairwater.domain.workspaces.workspace import (
    Change,
    Event,
    Phase,
    TransitionRejected,
    Workspace,
    transition,
)
from fairwater.ports.catalogue import Committed
from fairwater.store.engine import Statements
from fairwater.store.schema import DEADLINES, HISTORY, WORKSPACES, HistoryRow

WITH_DEADLINE = select(
    WORKSPACES, DEADLINES.c.kind.label("deadline_kind"), DEADLINES.c.at.label("deadline_at")
).outerjoin(DEADLINES, DEADLINES.c.workspace_id == WORKSPACES.c.id)
"""All that decisions need of a workspace in one row: what `held` reads."""

HOLD = select(WORKSPACES.c.id).where(WORKSPACES.c.id == bindparam("key")).with_for_update(key_share=True)
"""Keeps others from changing the workspace until the transaction ends; to be read only then.

Without `key_share`, adding a line of history (which refers to the row) would wait for it too, holding its turn.
"""

_WRITE = update(WORKSPACES).where(WORKSPACES.c.id == bindparam("key"))
_APPEND = insert(HISTORY)
_SET_DEADLINE = insert(DEADLINES)
_MOVE_DEADLINE = update(DEADLINES).where(DEADLINES.c.workspace_id == bindparam("key"))
_CLEAR_DEADLINE = delete(DEADLINES).where(DEADLINES.c.workspace_id == bindparam("key"))
_HISTORY_SHOWN = 8


@dataclass(frozen=True, slots=True)
class Held:
    """A workspace as read in this transaction. Its history is left unread until somebody asks for it."""

    workspace: Workspace
    deadline: Deadline | None
    owner: UserId
    workspace_class: str
    asked_at: datetime | None = None


def held(row: Any) -> Held:
    """From a row of `WITH_DEADLINE`."""
    workspace = Workspace(
        id=WorkspaceId(row.id),
        phase=Phase(row.phase),
        reason=row.reason,
        since=row.since,
        run=RunNumber(row.run),
        failure=row.failure,
        doomed=row.doomed,
    )
    deadline = Deadline(DeadlineKind(row.deadline_kind), row.deadline_at) if row.deadline_kind else None
    return Held(workspace, deadline, UserId(row.owner_id), row.workspace_class, row.asked_at)


async def advance(
    connection: Statements,
    now_held: Held,
    event: Event,
    reason: str,
    now: datetime,
    policy: DeadlinePolicy,
    committed: Callable[[Committed], None],
    *,
    force: bool = False,
) -> Held:
    """Applies `event`, tells `committed` what is to be told after the commit, and returns the workspace as it is then.

    Raises:
        TransitionRejected: with the workspace's history.
    """
    before = now_held.workspace
    try:
        after = transition(before, event, reason, now)
    except TransitionRejected:
        history = await _history(connection, before.id)
        raise TransitionRejected(replace(before, history=history), event) from None
    deadline = now_held.deadline
    if after.phase is not before.phase:
        deadline = deadline_on_entering(after.phase, deadline, now, policy)
    if force and after.phase is Phase.STOPPING:
        # What is overdue is killed: a forced stop is one whose time is up at once.
        deadline = Deadline(DeadlineKind.STOPPING, min(now, deadline.at) if deadline else now)
    if deadline != now_held.deadline:
        await _write_deadline(connection, before.id, now_held.deadline, deadline)
    asked_at = now if after.run != before.run else now_held.asked_at
    if after is not before:
        await _write_workspace(connection, now_held.owner, after, event, reason, asked_at, now)
        committed(Committed(before.phase, after, event, after.reason, now_held.workspace_class, asked_at, now))
    return replace(now_held, workspace=replace(after, history=()), deadline=deadline, asked_at=asked_at)


async def put(
    connection: Statements, before: Held, after: Workspace, event: Event, now: datetime, policy: DeadlinePolicy
) -> None:
    """Writes `after` as it is, whatever the table says: with the deadline of its phase, and a line of its history.

    Of another run, neither the deadline nor the time it was asked for holds any more.
    """
    same_run = after.run == before.workspace.run
    deadline = before.deadline if same_run else None
    if after.phase is not before.workspace.phase or not same_run:
        deadline = deadline_on_entering(after.phase, deadline, now, policy)
    if deadline != before.deadline:
        await _write_deadline(connection, after.id, before.deadline, deadline)
    asked_at = before.asked_at if same_run else None
    await _write_workspace(connection, before.owner, after, event, after.reason, asked_at, now)


async def _write_workspace(
    connection: Statements,
    owner: UserId,
    after: Workspace,
    event: Event,
    reason: str,
    asked_at: datetime | None,
    now: datetime,
) -> None:
    await connection.execute(
        _WRITE,
        {
            "key": after.id,
            "phase": after.phase.value,
            "reason": after.reason,
            "since": after.since,
            "run": after.run,
            "failure": after.failure,
            "doomed": after.doomed,
            "asked_at": asked_at,
        },
    )
    last = after.history[-1] if after.history else Change(event, after.phase, reason, now)
    await connection.append(
        _APPEND,
        {
            "workspace_id": after.id,
            "owner_id": owner,
            "event": event.value,
            "phase": after.phase.value,
            "reason": last.reason,
            "run": after.run,
            "at": now,
        },
    )


async def _write_deadline(
    connection: Statements, workspace: WorkspaceId, before: Deadline | None, after: Deadline | None
) -> None:
    if after is None:
        await connection.execute(_CLEAR_DEADLINE, {"key": workspace})
    elif before is None:
        await connection.execute(_SET_DEADLINE, {"workspace_id": workspace, "kind": after.kind.value, "at": after.at})
    else:
        await connection.execute(_MOVE_DEADLINE, {"key": workspace, "kind": after.kind.value, "at": after.at})


async def _history(connection: Statements, workspace: WorkspaceId) -> tuple[Change, ...]:
    rows = await connection.execute(
        select(HistoryRow.event, HistoryRow.phase, HistoryRow.reason, HistoryRow.at)
        .where(HistoryRow.workspace_id == workspace)
        .order_by(HistoryRow.sequence.desc())
        .limit(_HISTORY_SHOWN)
    )
    return tuple(Change(Event(row.event), Phase(row.phase), row.reason, row.at) for row in reversed(rows.all()))
