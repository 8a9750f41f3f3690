"""What the workspaces loop reads and writes: `ports/records.py` over the database.

A loaded workspace carries no history: nothing the loop decides depends on it, and a rejected event reads it then.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import datetime

from sqlalchemy import and_, bindparam, delete, or_, select, update

from fairwater.domain.ids import RunNumber, WorkspaceId
from fairwater.domain.workspaces.classes import WorkspaceClass
from fairwater.domain.workspaces.run import Progress
from fairwater.domain.workspaces.workspace import AT_REST, Event, Phase, Workspace
from fairwater.ports.clock import Clock
from fairwater.ports.records import WorkspaceRecord
from fairwater.store.database import SqlDatabase
from fairwater.store.life import WITH_DEADLINE, advance, held
from fairwater.store.schema import WORKSPACES, DeadlineRow, WorkspaceRow
from fairwater.store.start_request import start_request

_AT_REST = tuple(sorted(phase.value for phase in (*AT_REST, Phase.DELETED)))
_UNFINISHED = select(WorkspaceRow.id).where(
    or_(
        WorkspaceRow.phase.not_in(_AT_REST),
        and_(WorkspaceRow.phase == Phase.DELETED.value, WorkspaceRow.cleared_at.is_(None)),
    )
)
_LOAD = WITH_DEADLINE.where(WORKSPACES.c.id == bindparam("key"))
_LOAD_AND_HOLD = _LOAD.with_for_update(of=WORKSPACES)


class SqlWorkspaceRecords:
    """`progressed` is told of every step of a workspace's progress."""

    def __init__(
        self,
        database: SqlDatabase,
        classes: Mapping[str, WorkspaceClass],
        workspace_url: Callable[[WorkspaceId], str],
        clock: Clock,
        progressed: Callable[[WorkspaceId, Progress | None], None],
    ) -> None:
        self._database = database
        self._classes = classes
        self._workspace_url = workspace_url
        self._clock = clock
        self._progressed = progressed

    async def unfinished(self) -> tuple[WorkspaceId, ...]:
        async with self._database.read() as transaction:
            rows = await transaction.connection.execute(_UNFINISHED)
            return tuple(WorkspaceId(row.id) for row in rows)

    async def load(self, workspace: WorkspaceId) -> WorkspaceRecord | None:
        """None for a workspace that is unknown or cleared. Raises Permanent: `no_such_class`."""
        async with self._database.read() as transaction:
            row = (await transaction.connection.execute(_LOAD, {"key": workspace})).first()
        if row is None or row.cleared_at is not None:
            return None
        found = held(row)
        request = start_request(row, self._classes, self._workspace_url(workspace))
        return WorkspaceRecord(found.workspace, found.deadline, request)

    async def record(
        self, workspace: WorkspaceId, run: RunNumber, event: Event, reason: str, now: datetime
    ) -> Workspace | None:
        async with self._database.write() as transaction:
            row = (await transaction.connection.execute(_LOAD_AND_HOLD, {"key": workspace})).first()
            if row is None or row.run != run:
                return None
            after = await advance(
                transaction.connection,
                held(row),
                event,
                reason,
                now,
                self._database.deadlines,
                transaction.changes.append,
            )
        return after.workspace

    async def note_progress(self, workspace: WorkspaceId, progress: Progress | None) -> None:
        if progress is None:
            self._database.progress.pop(workspace, None)
        else:
            self._database.progress[workspace] = progress
        self._progressed(workspace, progress)

    async def cleared(self, workspace: WorkspaceId) -> None:
        """What may be secret goes with the workspace; its history stays."""
        async with self._database.write() as transaction:
            cleared = await transaction.connection.execute(
                update(WorkspaceRow)
                .where(WorkspaceRow.id == workspace, WorkspaceRow.phase == Phase.DELETED.value)
                .values(cleared_at=self._clock.now(), environment=[], command=None)
            )
            if not cleared.rowcount:
                return
            await transaction.connection.execute(delete(DeadlineRow).where(DeadlineRow.workspace_id == workspace))
