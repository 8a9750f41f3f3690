"""The server is killed after anything it does, and its successor ends in the same place."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime

import pytest

from fairwater.domain.ids import RunNumber, WorkspaceId
from fairwater.domain.workspaces.run import Progress, RunFacts, RunState
from fairwater.domain.workspaces.setup import Setup
from fairwater.domain.workspaces.workspace import Event, Phase, Workspace
from fairwater.ports.agent import Hello, RunAgent, StartRequest
from fairwater.ports.records import WorkspaceRecord, WorkspaceRecords

from .control_plane import ID, ControlPlane, control_plane
from .scripted_agent import Script

pytestmark = pytest.mark.looptime

ACTS_MAX = 60


@dataclass
class Gallows:
    """Counts what is done to the world; after the act number `fatal`, whoever did it never hears of it."""

    fatal: int
    acts: list[str] = field(default_factory=list)
    fallen: asyncio.Event = field(default_factory=asyncio.Event)

    async def after(self, act: str) -> None:
        self.acts.append(act)
        if len(self.acts) == self.fatal:
            self.fallen.set()
            await asyncio.Event().wait()


@dataclass
class MortalAgent:
    agent: RunAgent
    gallows: Gallows

    async def hello(self) -> Hello:
        return await self.agent.hello()

    async def runs(self) -> tuple[RunFacts, ...]:
        return await self.agent.runs()

    async def start_run(self, workspace: WorkspaceId, request: StartRequest) -> RunFacts:
        facts = await self.agent.start_run(workspace, request)
        await self.gallows.after("start_run")
        return facts

    async def stop_run(self, workspace: WorkspaceId, run: RunNumber, *, force: bool = False) -> RunFacts | None:
        facts = await self.agent.stop_run(workspace, run, force=force)
        await self.gallows.after("stop_run")
        return facts

    async def delete_volume(self, workspace: WorkspaceId, run: RunNumber) -> None:
        await self.agent.delete_volume(workspace, run)
        await self.gallows.after("delete_volume")

    def changes(self) -> AsyncIterator[RunFacts]:
        return self.agent.changes()


@dataclass
class MortalRecords:
    records: WorkspaceRecords
    gallows: Gallows

    async def unfinished(self) -> tuple[WorkspaceId, ...]:
        return await self.records.unfinished()

    async def load(self, workspace: WorkspaceId) -> WorkspaceRecord | None:
        return await self.records.load(workspace)

    async def request(self, workspace: WorkspaceId, run: RunNumber) -> StartRequest | None:
        return await self.records.request(workspace, run)

    async def record(
        self,
        workspace: WorkspaceId,
        run: RunNumber,
        event: Event,
        reason: str,
        now: datetime,
        then: Sequence[tuple[Event, str]] = (),
    ) -> Workspace | None:
        after = await self.records.record(workspace, run, event, reason, now, then)
        for each in (event, *(later for later, _ in then)):
            await self.gallows.after(each)
        return after

    async def note_progress(self, workspace: WorkspaceId, progress: Progress | None) -> None:
        await self.records.note_progress(workspace, progress)

    async def note_setup(self, workspace: WorkspaceId, setup: Setup) -> None:
        await self.records.note_setup(workspace, setup)

    async def cleared(self, workspace: WorkspaceId) -> None:
        await self.records.cleared(workspace)
        await self.gallows.after("cleared")


async def whole_life(plane: ControlPlane) -> None:
    await plane.started()
    await plane.ask(Event.STOP)
    await plane.until(Phase.STOPPED)
    await plane.started()
    await plane.ask(Event.DELETE)
    await plane.until_cleared()


async def failing_start(plane: ControlPlane) -> None:
    await plane.ask(Event.START)
    await plane.until(Phase.FAILED)


async def kill_and_succeed(plane: ControlPlane, gallows: Gallows, *, pause_s: float) -> None:
    """Waits for the fatal act; the server is gone after it, and `pause_s` later there is another."""
    await gallows.fallen.wait()
    await plane.kill_server()
    await asyncio.sleep(pause_s)
    await plane.start_server()


@pytest.mark.parametrize("pause_s", [0.0, 10.0], ids=["at once", "10 s later"])
@pytest.mark.parametrize(("life", "script"), [(whole_life, Script()), (failing_start, Script(failure="broken"))])
async def test_killed_after_any_act_its_successor_ends_in_the_same_place(
    life: object, script: Script, pause_s: float
) -> None:
    assert callable(life)
    undisturbed = None
    for fatal in range(ACTS_MAX):
        async with control_plane(script, serving=False) as plane:
            gallows = Gallows(fatal)
            plane.server_agent = MortalAgent(plane.agent, gallows)
            plane.server_records = MortalRecords(plane.records, gallows)
            await plane.start_server()
            killing = asyncio.create_task(kill_and_succeed(plane, gallows, pause_s=pause_s))
            try:
                await life(plane)
            finally:
                killing.cancel()
                await asyncio.gather(killing, return_exceptions=True)
            outcome = (
                plane.workspace().phase,
                plane.workspace().reason,
                [event for event in plane.records.events(ID) if event is not Event.CONTENT_BEGAN],
                plane.agent.begun,
                plane.agent.known.get(ID, None) and plane.agent.known[ID].state,
                set(plane.agent.deleted),
            )
            if fatal == 0:
                undisturbed = outcome
            assert outcome == undisturbed, f"killed after act {fatal}: {gallows.acts}"
            if fatal and not gallows.fallen.is_set():
                assert fatal > 5, gallows.acts
                return
    pytest.fail(f"more than {ACTS_MAX} acts")


async def test_servers_that_die_all_the_time_get_there_too() -> None:
    async with control_plane(serving=False) as plane:
        await plane.ask(Event.START)
        for _ in range(40):
            await plane.start_server()
            await asyncio.sleep(0.07)
            await plane.kill_server()
        await plane.start_server()
        await plane.until(Phase.RUNNING, within_s=2)
        assert plane.agent.begun == [(ID, 1)]
        assert plane.agent.known[ID].state is RunState.RUNNING


async def test_two_servers_at_once_do_nothing_twice() -> None:
    """One that was thought dead may still be acting for a while."""
    async with control_plane() as plane:
        second = ControlPlane(plane.clock, plane.records, plane.agent, plane.logs, plane.records, plane.agent)
        await second.start_server()
        try:
            await whole_life(plane)
        finally:
            await second.kill_server()
        assert plane.agent.begun == [(ID, 1), (ID, 2)]
        assert plane.records.events(ID).count(Event.READY) == 2
        assert set(plane.agent.deleted) == {ID}
        plane.logs[:] = [line for line in plane.logs if line.get("event") != "loop_iteration_failed"]
