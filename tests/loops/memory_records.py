"""`ports.records.WorkspaceRecords` in memory: the domain's table and deadlines, and no database."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime

from fairwater.domain.failure import Permanent, Temporary
from fairwater.domain.ids import RunNumber, WorkspaceId
from fairwater.domain.workspaces.classes import STANDARD
from fairwater.domain.workspaces.deadlines import Deadline, DeadlinePolicy, deadline_on_entering
from fairwater.domain.workspaces.run import Progress, RunSpec
from fairwater.domain.workspaces.setup import Setup
from fairwater.domain.workspaces.workspace import AT_REST, Change, Event, Phase, Workspace, transition
from fairwater.ports.agent import StartRequest
from fairwater.ports.clock import Clock
from fairwater.ports.records import WorkspaceRecord

_LOADS_MAX = 200
"""Reads of one workspace in one instant; more is a loop that does not wait for anything."""


@dataclass
class Row:
    workspace: Workspace
    deadline: Deadline | None = None
    cleared: bool = False
    history: list[Change] = field(default_factory=list)


class MemoryRecords:
    """`away` makes every call fail as a database that does not answer does; `refusal`, every request for a start."""

    def __init__(self, clock: Clock, policy: DeadlinePolicy | None = None) -> None:
        self._clock = clock
        self._policy = policy or DeadlinePolicy()
        self._loads: Counter[tuple[WorkspaceId, datetime]] = Counter()
        self.rows: dict[WorkspaceId, Row] = {}
        self.setups: dict[WorkspaceId, Setup] = {}
        self.progress: list[tuple[WorkspaceId, Progress | None]] = []
        self.away = False
        self.refusal: Permanent | None = None
        self.written = asyncio.Event()
        self.spinning = False
        """Whether some object was ever looked at without end in one instant."""

    def add(self, workspace: WorkspaceId, now: datetime) -> None:
        """A stopped workspace without a run."""
        self.rows[workspace] = Row(Workspace(workspace, Phase.STOPPED, "created", now, RunNumber(0)))

    def events(self, workspace: WorkspaceId) -> list[Event]:
        return [change.event for change in self.rows[workspace].history]

    async def unfinished(self) -> tuple[WorkspaceId, ...]:
        self._answer()
        return tuple(key for key, row in self.rows.items() if not row.cleared and row.workspace.phase not in AT_REST)

    async def load(self, workspace: WorkspaceId) -> WorkspaceRecord | None:
        self._answer()
        # A loop that never waits would never let the virtual time go on: yield, and count.
        await asyncio.sleep(0)
        instant = (workspace, self._clock.now())
        self._loads[instant] += 1
        if self._loads[instant] > _LOADS_MAX:
            self.spinning = True
            await asyncio.Event().wait()  # enough has been seen
        row = self.rows.get(workspace)
        if row is None or row.cleared:
            return None
        return WorkspaceRecord(row.workspace, row.deadline)

    async def request(self, workspace: WorkspaceId, run: RunNumber) -> StartRequest | None:
        self._answer()
        row = self.rows.get(workspace)
        if self.refusal is not None:
            raise self.refusal
        if row is None or row.cleared or row.workspace.run != run:
            return None
        return StartRequest(run, RunSpec("host", STANDARD))

    async def record(
        self,
        workspace: WorkspaceId,
        run: RunNumber,
        event: Event,
        reason: str,
        now: datetime,
        then: Sequence[tuple[Event, str]] = (),
    ) -> Workspace | None:
        self._answer()
        row = self.rows.get(workspace)
        if row is None or row.workspace.run != run:
            return None
        after, deadline, lines = row.workspace, row.deadline, list(row.history)
        for each, why in ((event, reason), *then):
            before = after
            after = transition(replace(before, history=tuple(lines)), each, why, now)
            if after.phase is not before.phase:
                deadline = deadline_on_entering(after.phase, deadline, now, self._policy)
            if (after.phase, after.run, after.doomed) != (before.phase, before.run, before.doomed):
                lines.append(Change(each, after.phase, why, now))
        row.workspace, row.deadline, row.history = replace(after, history=()), deadline, lines
        self.written.set()
        return row.workspace

    async def note_progress(self, workspace: WorkspaceId, progress: Progress | None) -> None:
        self._answer()
        self.progress.append((workspace, progress))

    async def note_setup(self, workspace: WorkspaceId, setup: Setup) -> None:
        self._answer()
        self.setups[workspace] = setup

    async def cleared(self, workspace: WorkspaceId) -> None:
        self._answer()
        row = self.rows[workspace]
        if row.workspace.phase is Phase.DELETED:
            row.cleared, row.deadline = True, None
            self.written.set()

    def _answer(self) -> None:
        if self.away:
            raise Temporary("the database is away: try again in a moment", code="database_away", delay_s=1.0)
