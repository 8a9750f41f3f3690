"""A workspace that is not where it must be in time: deadlines are rows, and hold whether or not the node answers."""

from __future__ import annotations

import asyncio

import pytest

from fairwater.domain.workspaces.deadlines import DeadlinePolicy
from fairwater.domain.workspaces.run import RunState
from fairwater.domain.workspaces.workspace import Event, Phase

from .control_plane import ID, control_plane
from .scripted_agent import Script

pytestmark = pytest.mark.looptime

POLICY = DeadlinePolicy(startup_s=120, init_s=900, stopping_s=120)


async def test_a_run_that_does_not_come_up_fails_at_its_deadline_and_is_ended_on_the_node() -> None:
    async with control_plane(Script(start_s=None), POLICY) as plane:
        await plane.ask(Event.START)
        await plane.until(Phase.CREATING)
        workspace = await plane.until(Phase.FAILED, within_s=130)
        assert workspace.reason == "did not start in time: starting"
        assert plane.took_s(Event.START, Event.FAIL) == pytest.approx(120, abs=0.01)
        assert plane.agent.known[ID].state is RunState.ENDED


async def test_content_that_does_not_come_fails_at_its_own_deadline() -> None:
    async with control_plane(Script(init_s=None), POLICY) as plane:
        await plane.ask(Event.START)
        workspace = await plane.until(Phase.FAILED, within_s=1000)
        assert workspace.reason == "its content was not there in time: cloning"
        assert plane.took_s(Event.CONTENT_BEGAN, Event.FAIL) == pytest.approx(900, abs=0.01)


async def test_a_stop_that_takes_too_long_is_forced_at_its_deadline() -> None:
    async with control_plane(Script(stop_s=None, kill_s=0.5), POLICY) as plane:
        await plane.started()
        await plane.ask(Event.STOP)
        await plane.until(Phase.STOPPED, within_s=130)
        assert plane.agent.stops[0] == (ID, 1, False)
        assert set(plane.agent.stops[1:]) == {(ID, 1, True)}
        assert plane.took_s(Event.STOP, Event.RELEASED) == pytest.approx(120.5, abs=0.01)


async def test_a_stop_that_not_even_force_brings_about_is_repeated_in_moderation() -> None:
    """Such as a volume that cannot be unmounted: the node is told again now and then, and nothing is a bug."""
    async with control_plane(Script(stop_s=None, kill_s=None), POLICY) as plane:
        await plane.started()
        await plane.ask(Event.STOP)
        await asyncio.sleep(180)
        assert plane.workspace().phase is Phase.STOPPING
        forced = [stop for stop in plane.agent.stops if stop[2]]
        assert 1 <= len(forced) <= 61
        assert plane.bugs() == []


async def test_a_start_fails_at_its_deadline_though_its_node_never_answered() -> None:
    async with control_plane(policy=POLICY, serving=False) as plane:
        plane.agent.leave()
        await plane.start_server()
        await plane.ask(Event.START)
        await asyncio.sleep(119)
        assert plane.workspace().phase is Phase.PENDING
        await asyncio.sleep(2)
        assert plane.workspace().phase is Phase.STOPPING
        assert plane.workspace().failure == "did not start in time"


@pytest.mark.parametrize("heard_before", [True, False], ids=["stale", "missing"])
async def test_a_stop_overdue_while_its_node_is_away_waits_quietly(heard_before: bool) -> None:
    """A deadline that has passed is no reason to look again at once, for ever."""
    async with control_plane(policy=POLICY, serving=False) as plane:
        if not heard_before:
            plane.agent.leave()
        await plane.start_server()
        await asyncio.sleep(1)
        plane.agent.leave()
        await plane.ask(Event.START)
        await plane.ask(Event.STOP)
        await asyncio.sleep(300)
        assert plane.workspace().phase is Phase.STOPPING
        assert not plane.records.spinning
        plane.agent.come_back()
        await plane.until(Phase.STOPPED, within_s=35)


async def test_a_deadline_that_passed_while_no_server_ran_holds() -> None:
    async with control_plane(Script(start_s=None), POLICY) as plane:
        await plane.ask(Event.START)
        await plane.until(Phase.CREATING)
        await plane.kill_server()
        await asyncio.sleep(3600)
        assert plane.workspace().phase is Phase.CREATING
        await plane.start_server()
        assert (await plane.until(Phase.FAILED, within_s=2)).reason == "did not start in time: starting"


async def test_the_database_away_for_a_while_costs_no_workspace() -> None:
    async with control_plane(policy=POLICY, serving=False) as plane:
        await plane.ask(Event.START)
        plane.records.away = True
        await plane.start_server()
        await asyncio.sleep(20)
        plane.records.away = False
        await plane.until(Phase.RUNNING, within_s=2)
        assert {line["event"] for line in plane.logs if line.get("code") == "database_away"} >= {"sweep_delayed"}
        plane.logs.clear()
