"""A control plane without a server: the workspaces loop, its records in memory, and a scripted node."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from structlog.testing import capture_logs
from structlog.typing import EventDict

from fairwater.domain.ids import WorkspaceId
from fairwater.domain.workspaces.deadlines import DeadlinePolicy
from fairwater.domain.workspaces.workspace import Event, Phase, Workspace
from fairwater.loops.workspaces import WorkspacesLoop
from fairwater.ports.agent import RunAgent
from fairwater.ports.records import WorkspaceRecords

from .memory_records import MemoryRecords
from .scripted_agent import Script, ScriptedAgent
from .virtual_clock import VirtualClock

ID, OTHER = WorkspaceId("abcdefghjkmn"), WorkspaceId("bcdefghjkmnp")


@dataclass
class ControlPlane:
    """`server_*` is what the loop is given: the records and the agent themselves, unless something stands between."""

    clock: VirtualClock
    records: MemoryRecords
    agent: ScriptedAgent
    logs: list[EventDict]
    server_records: WorkspaceRecords
    server_agent: RunAgent
    loop: WorkspacesLoop | None = None
    _task: asyncio.Task[None] | None = field(default=None)

    async def start_server(self) -> None:
        self.loop = WorkspacesLoop(self.server_records, self.server_agent, self.clock)
        self._task = asyncio.create_task(self.loop.run())

    async def kill_server(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        self.loop = self._task = None

    async def ask(self, event: Event, workspace: WorkspaceId = ID) -> Workspace:
        """What a person asks for by the API: written down, and the loop is woken."""
        run = self.records.rows[workspace].workspace.run
        after = await self.records.record(workspace, run, event, "asked for", self.clock.now())
        assert after is not None
        if self.loop is not None:
            self.loop.wake(workspace)
        return after

    async def started(self, workspace: WorkspaceId = ID) -> Workspace:
        await self.ask(Event.START, workspace)
        return await self.until(Phase.RUNNING, workspace)

    def workspace(self, workspace: WorkspaceId = ID) -> Workspace:
        return self.records.rows[workspace].workspace

    async def until(self, phase: Phase, workspace: WorkspaceId = ID, within_s: float = 60.0) -> Workspace:
        await self._until(lambda: self.workspace(workspace).phase is phase, f"{workspace} to be {phase}", within_s)
        return self.workspace(workspace)

    async def until_cleared(self, workspace: WorkspaceId = ID, within_s: float = 60.0) -> None:
        await self._until(lambda: self.records.rows[workspace].cleared, f"{workspace} to be cleared", within_s)

    async def _until(self, condition: Callable[[], bool], what: str, within_s: float) -> None:
        end_s = self.clock.elapsed_s() + within_s
        while not condition():
            self.records.written.clear()
            left_s = end_s - self.clock.elapsed_s()
            try:
                await asyncio.wait_for(self.records.written.wait(), left_s)
            except TimeoutError:
                raise AssertionError(f"waited {within_s} s for {what}: {self.records.rows}") from None

    def took_s(self, first: Event, second: Event) -> float:
        """From the first to the second in the history of `ID`."""
        at = {change.event: change.at for change in self.records.rows[ID].history}
        return (at[second] - at[first]).total_seconds()

    def bugs(self) -> list[EventDict]:
        return [line for line in self.logs if line["log_level"] == "error"]


@asynccontextmanager
async def control_plane(
    script: Script | None = None, policy: DeadlinePolicy | None = None, *, serving: bool = True
) -> AsyncIterator[ControlPlane]:
    """One stopped workspace, `ID`, and a node that knows nothing. At the end, nothing may have been a bug."""
    clock = VirtualClock()
    records = MemoryRecords(clock, policy)
    agent = ScriptedAgent(clock, script or Script())
    records.add(ID, clock.now())
    with capture_logs() as logs:
        plane = ControlPlane(clock, records, agent, logs, records, agent)
        try:
            if serving:
                await plane.start_server()
                await asyncio.sleep(0.1)  # the node has answered
            yield plane
        finally:
            await plane.kill_server()
            await agent.close()
    assert plane.bugs() == [], plane.bugs()
    assert not records.spinning, "the loop looked again at once, without end"
