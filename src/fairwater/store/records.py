"""What the workspaces loop reads and writes: `ports/records.py` over the database.

A loaded workspace carries no history: nothing the loop decides depends on it, and a rejected event reads it then.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime

from sqlalchemy import and_, bindparam, delete, or_, select, update

from fairwater.domain.failure import Temporary
from fairwater.domain.ids import OrganisationId, RunNumber, UserId, WorkspaceId
from fairwater.domain.workspaces.classes import WorkspaceClass
from fairwater.domain.workspaces.run import Progress
from fairwater.domain.workspaces.setup import Setup
from fairwater.domain.workspaces.workspace import AT_REST, Event, Phase, Workspace
from fairwater.ports.agent import StartRequest
from fairwater.ports.clock import Clock
from fairwater.ports.leases import Lease
from fairwater.ports.records import WorkspaceRecord
from fairwater.store.database import SqlDatabase, SqlTransaction
from fairwater.store.engine import Statements
from fairwater.store.leases import holds
from fairwater.store.life import HOLD, WITH_DEADLINE, advance, held
from fairwater.store.schema import USERS, WORKSPACES, DeadlineRow, WorkspaceRow
from fairwater.store.start_request import start_request

_LOOKED_AFTER = tuple(phase.value for phase in Phase if phase not in {*AT_REST, Phase.DELETED})
_UNFINISHED = select(WorkspaceRow.id).where(
    or_(
        WorkspaceRow.phase.in_(_LOOKED_AFTER),
        and_(WorkspaceRow.phase == Phase.DELETED.value, WorkspaceRow.cleared_at.is_(None)),
    )
)
_LOAD = WITH_DEADLINE.where(WORKSPACES.c.id == bindparam("key"))
_REQUEST = (
    select(WORKSPACES, USERS.c.dotfiles_url)
    .join(USERS, USERS.c.id == WORKSPACES.c.owner_id)
    .where(WORKSPACES.c.id == bindparam("key"))
)


class SqlWorkspaceRecords:
    """`progressed` is told of every step of a workspace's progress. With a `lease`, only its holder writes."""

    def __init__(
        self,
        database: SqlDatabase,
        classes: Mapping[str, WorkspaceClass],
        workspace_url: Callable[[WorkspaceId], str],
        clock: Clock,
        progressed: Callable[[WorkspaceId, Progress | None], None],
        lease: Callable[[], Lease | None] | None = None,
    ) -> None:
        self._database = database
        self._classes = classes
        self._workspace_url = workspace_url
        self._clock = clock
        self._progressed = progressed
        self._lease = lease

    async def unfinished(self) -> tuple[WorkspaceId, ...]:
        async with self._database.read() as transaction:
            rows = await transaction.connection.execute(_UNFINISHED)
            return tuple(WorkspaceId(row.id) for row in rows)

    async def load(self, workspace: WorkspaceId) -> WorkspaceRecord | None:
        row = await self._database.first(_LOAD, {"key": workspace})
        if row is None or row.cleared_at is not None:
            return None
        found = held(row)
        return WorkspaceRecord(found.workspace, found.deadline)

    async def request(self, workspace: WorkspaceId, run: RunNumber) -> StartRequest | None:
        """Secrets are opened here, and nowhere but for a start."""

        async def read(transaction: SqlTransaction) -> StartRequest | None:
            row = (await transaction.connection.execute(_REQUEST, {"key": workspace})).first()
            if row is None or row.run != run or row.cleared_at is not None:
                return None
            request = start_request(row, self._classes, self._workspace_url(workspace))
            if self._database.vault is None:
                return request
            secrets = await transaction.secrets.for_run(
                UserId(row.owner_id), OrganisationId(row.organisation_id), row.context_url
            )
            return replace(request, secrets=secrets)

        return await self._database.reading(read)

    async def record(
        self,
        workspace: WorkspaceId,
        run: RunNumber,
        event: Event,
        reason: str,
        now: datetime,
        then: Sequence[tuple[Event, str]] = (),
    ) -> Workspace | None:
        held_by_us = self._current_lease()

        async def write(transaction: SqlTransaction) -> Workspace | None:
            await self._check_lease(transaction.connection, held_by_us)
            await transaction.connection.execute(HOLD, {"key": workspace})
            row = (await transaction.connection.execute(_LOAD, {"key": workspace})).first()
            if row is None or row.run != run:
                return None
            after = held(row)
            for each, why in ((event, reason), *then):
                after = await advance(
                    transaction.connection, after, each, why, now, self._database.deadlines, transaction.changes.append
                )
            return after.workspace

        return await self._database.writing(write)

    async def note_progress(self, workspace: WorkspaceId, progress: Progress | None) -> None:
        self._database.seen.note_progress(workspace, progress)
        self._progressed(workspace, progress)

    async def note_setup(self, workspace: WorkspaceId, setup: Setup) -> None:
        self._database.seen.setups[workspace] = setup

    async def cleared(self, workspace: WorkspaceId) -> None:
        """What may be secret goes with the workspace; its history stays."""
        held_by_us = self._current_lease()

        async def write(transaction: SqlTransaction) -> None:
            await self._check_lease(transaction.connection, held_by_us)
            cleared = await transaction.connection.execute(
                update(WorkspaceRow)
                .where(WorkspaceRow.id == workspace, WorkspaceRow.phase == Phase.DELETED.value)
                .values(cleared_at=self._clock.now(), environment=[], command=None)
            )
            if cleared.rowcount:
                await transaction.connection.execute(delete(DeadlineRow).where(DeadlineRow.workspace_id == workspace))

        await self._database.writing(write)

    def _current_lease(self) -> Lease | None:
        """The lease that this server believes to hold; None where nobody needs one. Raises Temporary: `lease_lost`."""
        if self._lease is None:
            return None
        lease = self._lease()
        if lease is None:
            raise _lease_lost()
        return lease

    async def _check_lease(self, connection: Statements, lease: Lease | None) -> None:
        """`lease` is the newest, and stays so until the transaction ends."""
        if lease is not None and not await holds(connection, lease):
            raise _lease_lost()


def _lease_lost() -> Temporary:
    return Temporary("another server looks after workspaces now", code="lease_lost", delay_s=1.0)
