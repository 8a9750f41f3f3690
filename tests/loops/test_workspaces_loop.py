"""The control plane brings about what people ask for, and believes of a node only what it has said. Time is virtual."""

from __future__ import annotations

import asyncio

import pytest

from fairwater.domain.failure import Permanent
from fairwater.domain.ids import RunNumber, WorkspaceId
from fairwater.domain.workspaces.run import Progress, RunFacts, RunState
from fairwater.domain.workspaces.workspace import Event, Phase

from .control_plane import ID, OTHER, control_plane
from .scripted_agent import Script
from .virtual_clock import BEGAN

pytestmark = pytest.mark.looptime

UP = [Event.START, Event.PLACED, Event.CONTENT_BEGAN, Event.READY]


async def test_a_workspace_asked_for_is_running_as_soon_as_its_node_says_so() -> None:
    async with control_plane() as plane:
        await asyncio.sleep(10)
        workspace = await plane.started()
        assert plane.records.events(ID) == UP
        assert plane.agent.begun == [(ID, 1)]
        assert workspace.since == plane.agent.known[ID].since, "0.2 s for the sandbox, 1 s for the content, none lost"


async def test_a_stopped_workspace_is_started_again_with_the_next_number() -> None:
    async with control_plane() as plane:
        await plane.started()
        await plane.ask(Event.STOP)
        await plane.until(Phase.STOPPED)
        await plane.started()
        assert plane.agent.begun == [(ID, 1), (ID, 2)]
        assert plane.records.events(ID) == [*UP, Event.STOP, Event.RELEASED, *UP]


async def test_a_start_that_the_node_refuses_fails_with_its_reason() -> None:
    async with control_plane() as plane:
        plane.agent.refuse_start = Permanent("there is no image 'nixos'", code="no_such_image")
        await plane.ask(Event.START)
        workspace = await plane.until(Phase.FAILED)
        assert workspace.reason == "there is no image 'nixos'"
        assert plane.records.events(ID) == [Event.START, Event.FAIL, Event.RELEASED]


async def test_a_start_that_fails_on_the_node_fails_with_its_reason_once_the_node_is_cleared() -> None:
    async with control_plane(Script(failure="https://example.org/x is not a git repository", stop_s=5)) as plane:
        await plane.ask(Event.START)
        stopping = await plane.until(Phase.STOPPING)
        assert stopping.failure == "https://example.org/x is not a git repository"
        failed = await plane.until(Phase.FAILED)
        assert failed.reason == "https://example.org/x is not a git repository"
        assert (failed.since - stopping.since).total_seconds() == pytest.approx(5)
        assert plane.agent.known[ID].state is RunState.ENDED


async def test_a_failed_workspace_can_be_started_again() -> None:
    async with control_plane(Script(failure="no space left")) as plane:
        await plane.ask(Event.START)
        await plane.until(Phase.FAILED)
        plane.agent.script = Script()
        assert (await plane.started()).failure is None


async def test_a_run_that_ends_by_itself_is_written_down_as_stopped() -> None:
    async with control_plane() as plane:
        await plane.started()
        await plane.agent.stop_run(ID, RunNumber(1))
        await plane.until(Phase.STOPPED)
        assert plane.records.events(ID)[-2:] == [Event.ENDED, Event.RELEASED]


async def test_the_progress_of_a_long_step_is_shown_and_taken_away() -> None:
    steps = tuple(Progress("receiving objects", done, 100, "objects") for done in (10, 50, 90))
    async with control_plane(Script(progress=steps)) as plane:
        await plane.started()
        assert plane.records.progress == [*((ID, step) for step in steps), (ID, None)]


async def test_a_running_workspace_that_is_deleted_is_stopped_and_leaves_nothing() -> None:
    async with control_plane() as plane:
        await plane.started()
        await plane.ask(Event.DELETE)
        await plane.until_cleared()
        assert plane.records.events(ID) == [*UP, Event.DELETE, Event.RELEASED]
        assert plane.agent.stops == [(ID, 1, False)]
        assert plane.agent.deleted == [ID]


@pytest.mark.parametrize("after_s", [0.0, 0.1, 0.5, 1.0, 1.3])
async def test_a_workspace_deleted_at_any_moment_of_its_start_leaves_nothing(after_s: float) -> None:
    async with control_plane() as plane:
        await plane.ask(Event.START)
        await asyncio.sleep(after_s)
        await plane.ask(Event.DELETE)
        await plane.until_cleared()
        assert ID not in plane.agent.known
        assert len(plane.agent.begun) <= 1
        assert plane.agent.deleted == [ID]


async def test_a_deletion_while_stopping_is_kept_until_the_run_is_over() -> None:
    async with control_plane(Script(stop_s=20)) as plane:
        await plane.started()
        await plane.ask(Event.STOP)
        await asyncio.sleep(5)
        await plane.ask(Event.DELETE)
        await asyncio.sleep(5)
        assert plane.agent.deleted == []
        await plane.until_cleared()
        assert plane.agent.deleted == [ID]


async def test_a_start_whose_reply_is_lost_is_not_begun_twice() -> None:
    async with control_plane() as plane:
        plane.agent.lose_replies = 2
        await plane.started()
        assert plane.agent.begun == [(ID, 1)]
        assert plane.records.events(ID) == UP


async def test_a_stop_whose_reply_is_lost_ends_all_the_same() -> None:
    async with control_plane() as plane:
        await plane.started()
        plane.agent.lose_replies = 2
        await plane.ask(Event.STOP)
        await plane.until(Phase.STOPPED)
        assert plane.records.events(ID) == [*UP, Event.STOP, Event.RELEASED]


@pytest.mark.parametrize("after_s", [0.0, 0.1, 0.5, 1.1, 5.0])
async def test_with_its_agent_away_for_30_s_nothing_is_lost_and_nothing_done_twice(after_s: float) -> None:
    async with control_plane() as plane:
        await plane.ask(Event.START)
        await asyncio.sleep(after_s)
        plane.agent.leave()
        await asyncio.sleep(30)
        assert Event.FAIL not in plane.records.events(ID)
        plane.agent.come_back()
        workspace = await plane.until(Phase.RUNNING, within_s=5)
        assert workspace.run == 1
        assert plane.agent.begun == [(ID, 1)]
        assert plane.agent.stops == []
        assert [event for event in plane.records.events(ID) if event is not Event.CONTENT_BEGAN] == [
            Event.START, Event.PLACED, Event.READY,
        ]  # fmt: skip


async def test_a_stop_while_the_agent_is_away_is_done_when_it_is_back() -> None:
    async with control_plane() as plane:
        await plane.started()
        plane.agent.leave()
        await plane.ask(Event.STOP)
        await asyncio.sleep(30)
        assert plane.workspace().phase is Phase.STOPPING
        plane.agent.come_back()
        await plane.until(Phase.STOPPED, within_s=5)
        assert plane.agent.stops == [(ID, 1, False)]


async def test_stale_facts_never_release_a_workspace() -> None:
    """The node knew nothing of the workspace when it was heard last; that is no proof of what holds now."""
    async with control_plane() as plane:
        await asyncio.sleep(5)
        plane.agent.leave()
        await plane.ask(Event.START)
        await asyncio.sleep(1)
        await plane.ask(Event.STOP)
        await asyncio.sleep(60)
        assert plane.workspace().phase is Phase.STOPPING
        plane.agent.come_back()
        await plane.until(Phase.STOPPED, within_s=35)


@pytest.mark.parametrize("event", [Event.START, Event.STOP])
async def test_what_waits_for_its_node_goes_on_as_soon_as_the_node_answers(event: Event) -> None:
    """Also where the node knows nothing of the workspace, and so has nothing to say of it."""
    async with control_plane(serving=False) as plane:
        plane.agent.leave()
        await plane.start_server()
        await asyncio.sleep(1)
        await plane.ask(Event.START)
        if event is Event.STOP:
            await plane.ask(Event.STOP)
        await asyncio.sleep(3)
        plane.agent.come_back()
        await plane.until(Phase.RUNNING if event is Event.START else Phase.STOPPED, within_s=5)


async def test_facts_heard_before_the_stop_never_release_a_workspace() -> None:
    """A start that reached the node unheard is found and stopped, not taken for released."""
    async with control_plane() as plane:
        await asyncio.sleep(5)
        plane.agent.lose_replies = 1
        await plane.ask(Event.START)
        plane.agent.break_streams()  # what the node says of the start is not heard
        await asyncio.sleep(0.05)
        assert plane.agent.begun == [(ID, 1)]
        await plane.ask(Event.STOP)
        await plane.until(Phase.STOPPED)
        assert plane.agent.stops == [(ID, 1, False)]
        assert plane.agent.known[ID].state is RunState.ENDED


async def test_a_running_workspace_that_its_node_no_longer_knows_fails_saying_so() -> None:
    async with control_plane() as plane:
        await plane.started()
        plane.agent.forget(ID)
        plane.agent.break_streams()
        workspace = await plane.until(Phase.FAILED)
        assert workspace.reason == "its node no longer knows the run"


@pytest.mark.parametrize("phase", [Phase.STOPPED, Phase.FAILED])
async def test_an_orphan_run_of_an_ended_workspace_is_stopped(phase: Phase) -> None:
    async with control_plane() as plane:
        plane.agent.script.failure = "broken" if phase is Phase.FAILED else None
        await plane.ask(Event.START)
        await plane.until(Phase.FAILED if phase is Phase.FAILED else Phase.RUNNING)
        if phase is Phase.STOPPED:
            await plane.ask(Event.STOP)
            await plane.until(Phase.STOPPED)
        plane.agent.hold(RunFacts(ID, RunNumber(1), RunState.RUNNING, "back from the dead", BEGAN))
        await asyncio.sleep(5)
        assert plane.agent.known[ID].state is RunState.ENDED
        assert plane.workspace().phase is phase


async def test_an_orphan_run_of_a_deleted_workspace_is_stopped_before_its_volume_goes() -> None:
    async with control_plane(serving=False) as plane:
        await plane.ask(Event.START)
        await plane.ask(Event.STOP)
        await plane.ask(Event.RELEASED)
        plane.agent.hold(RunFacts(ID, RunNumber(1), RunState.RUNNING, "running", BEGAN))
        await plane.ask(Event.DELETE)
        await plane.start_server()
        await plane.until_cleared()
        assert plane.agent.deleted == [ID]


async def test_a_run_of_before_is_stopped_before_the_next_begins() -> None:
    async with control_plane(serving=False) as plane:
        await plane.ask(Event.START)
        await plane.ask(Event.STOP)
        await plane.ask(Event.RELEASED)
        plane.agent.hold(RunFacts(ID, RunNumber(1), RunState.RUNNING, "running", BEGAN))
        await plane.ask(Event.START)
        await plane.start_server()
        await plane.until(Phase.RUNNING)
        assert plane.agent.stops == [(ID, 1, False)]
        assert plane.agent.begun == [(ID, 2)]


async def test_a_run_of_a_workspace_that_nobody_knows_is_left_alone() -> None:
    """It may belong to a database that was put back to an older state: what is not known is not destroyed."""
    async with control_plane() as plane:
        plane.agent.hold(RunFacts(OTHER, RunNumber(1), RunState.RUNNING, "running", BEGAN))
        await asyncio.sleep(60)
        assert plane.agent.known[OTHER].state is RunState.RUNNING
        assert plane.agent.deleted == []


async def test_a_workspace_whose_wake_was_lost_is_found_within_30_s() -> None:
    async with control_plane() as plane:
        await asyncio.sleep(5)
        now = plane.clock.now()
        await plane.records.record(ID, RunNumber(0), Event.START, "written by another server", now)
        await plane.until(Phase.RUNNING, within_s=32)


async def test_many_workspaces_are_started_at_once() -> None:
    async with control_plane() as plane:
        await asyncio.sleep(1)
        keys = [WorkspaceId(f"many{number:08d}") for number in range(200)]
        for key in keys:
            plane.records.add(key, plane.clock.now())
            await plane.ask(Event.START, key)
        for key in keys:
            await plane.until(Phase.RUNNING, key)
        assert plane.clock.elapsed_s() < 3
        assert sorted(plane.agent.begun) == sorted((key, 1) for key in keys)
