"""What the control plane believes of a node: nothing before it has answered, and how old everything else is."""

from __future__ import annotations

import asyncio
import gc
import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import timedelta

import pytest
from structlog.testing import capture_logs

from fairwater.domain.failure import Temporary
from fairwater.domain.ids import RunNumber, WorkspaceId
from fairwater.domain.reading import Known, Missing, Stale
from fairwater.domain.workspaces.control import AskFacts, plan_workspace
from fairwater.domain.workspaces.run import RunFacts, RunState
from fairwater.domain.workspaces.workspace import Phase, Workspace
from fairwater.loops.node_watch import NodeWatch

from .scripted_agent import ScriptedAgent
from .virtual_clock import BEGAN, VirtualClock

pytestmark = pytest.mark.looptime

ID, OTHER = WorkspaceId("abcdefghjkmn"), WorkspaceId("bcdefghjkmnp")


def facts(
    workspace: WorkspaceId = ID, run: int = 1, state: RunState = RunState.RUNNING, *, revision: int = 1
) -> RunFacts:
    return RunFacts(workspace, RunNumber(run), state, str(state), BEGAN, revision=revision)


class Watched:
    """A watch on a scripted agent, and what it told of."""

    def __init__(self) -> None:
        self.clock = VirtualClock()
        self.agent = ScriptedAgent(self.clock)
        self.told: list[RunFacts] = []
        self.watch = NodeWatch(self.agent, self.clock, self.told.append)


@asynccontextmanager
async def following(watched: Watched) -> AsyncIterator[None]:
    """Follows for as long as the block lasts, and says when following ended by itself."""
    task = asyncio.create_task(watched.watch.follow())
    try:
        with capture_logs():
            yield
    finally:
        ended = task.done()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await watched.agent.close()
    assert not ended, "following must not end by itself"


async def until(condition: Callable[[], object], within_s: float = 60.0) -> None:
    async with asyncio.timeout(within_s):
        while not condition():  # noqa: ASYNC110 - virtual time costs nothing
            await asyncio.sleep(0.1)


async def test_nothing_is_known_before_the_first_answer() -> None:
    watched = Watched()
    reading = watched.watch.reading(ID)
    assert reading == Missing("the node has not been asked yet")
    watched.agent.leave()
    async with following(watched):
        await asyncio.sleep(10)
        assert watched.watch.reading(ID) == Missing("the node agent does not answer")


async def test_what_is_learned_before_the_first_full_answer_is_not_taken_for_all() -> None:
    watched = Watched()
    watched.watch.learn(facts())
    assert isinstance(watched.watch.reading(ID), Missing)
    assert isinstance(watched.watch.reading(OTHER), Missing)


async def test_all_is_known_and_told_after_the_first_answer() -> None:
    watched = Watched()
    watched.agent.hold(facts())
    async with following(watched):
        await asyncio.sleep(3)
        assert watched.watch.reading(ID) == Known(facts(), watched.clock.now()), "said and not unsaid"
        assert watched.told == [facts()]
        assert watched.watch.broken is None


async def test_each_change_is_known_and_told_at_once() -> None:
    watched = Watched()
    async with following(watched):
        await asyncio.sleep(3)
        watched.agent.hold(facts(state=RunState.STARTING))
        watched.agent.hold(facts(state=RunState.RUNNING))
        await asyncio.sleep(0.01)
        assert [change.state for change in watched.told] == [RunState.STARTING, RunState.RUNNING]
        assert watched.watch.reading(ID) == Known(facts(revision=2), watched.clock.now())


async def test_a_change_between_the_opening_of_the_stream_and_the_full_answer_is_not_lost() -> None:
    watched = Watched()
    plain_runs = watched.agent.runs

    async def slow_runs() -> tuple[RunFacts, ...]:
        answer = await plain_runs()
        watched.agent.hold(facts(state=RunState.STARTING))
        await asyncio.sleep(2)
        return answer

    watched.agent.runs = slow_runs  # type: ignore[method-assign]
    async with following(watched):
        await asyncio.sleep(3)
        reading = watched.watch.reading(ID)
        assert isinstance(reading, Known)
        assert reading.value == facts(state=RunState.STARTING)


async def test_that_a_run_is_absent_is_as_old_as_the_question() -> None:
    watched = Watched()
    async with following(watched):
        await asyncio.sleep(100)
        assert watched.watch.reading(ID) == Known(None, BEGAN)
        await watched.watch.ask()
        assert watched.watch.reading(ID) == Known(None, BEGAN + timedelta(seconds=100))


async def test_the_time_of_asking_counts_and_not_that_of_the_answer() -> None:
    watched = Watched()
    plain_runs = watched.agent.runs

    async def slow_runs() -> tuple[RunFacts, ...]:
        answer = await plain_runs()
        await asyncio.sleep(7)
        return answer

    watched.agent.runs = slow_runs  # type: ignore[method-assign]
    async with following(watched):
        await asyncio.sleep(50)
        assert watched.watch.reading(ID) == Known(None, BEGAN)


@pytest.mark.parametrize("phase", [Phase.CREATING, Phase.INITIALIZING, Phase.RUNNING, Phase.STOPPING])
async def test_an_absence_older_than_the_phase_makes_the_loop_ask_anew(phase: Phase) -> None:
    watched = Watched()
    async with following(watched):
        await asyncio.sleep(100)
        workspace = Workspace(ID, phase, "entered", watched.clock.now(), RunNumber(1))
        await asyncio.sleep(1)
        now = watched.clock.now()
        assert plan_workspace(workspace, None, watched.watch.reading(ID), now).steps == (AskFacts(),)
        await watched.watch.ask()
        assert AskFacts() not in plan_workspace(workspace, None, watched.watch.reading(ID), now).steps


async def test_what_was_known_is_stale_while_the_stream_is_broken() -> None:
    watched = Watched()
    watched.agent.hold(facts())
    async with following(watched):
        await asyncio.sleep(5)
        watched.agent.leave()
        await asyncio.sleep(10)
        assert watched.watch.reading(ID) == Stale(facts(), BEGAN, "the node agent does not answer")
        assert watched.watch.reading(OTHER) == Stale(None, BEGAN, "the node agent does not answer")
        assert watched.watch.broken == "the node agent does not answer"


async def test_a_stream_that_ends_without_a_word_is_broken_too() -> None:
    watched = Watched()
    watched.agent.hold(facts())
    async with following(watched):
        await asyncio.sleep(5)
        watched.agent.break_streams()
        await asyncio.sleep(0.1)
        assert watched.watch.reading(ID) == Stale(facts(), BEGAN, "the node ended its stream of changes")
        await until(lambda: isinstance(watched.watch.reading(ID), Known))


async def test_it_reconnects_and_learns_what_it_missed() -> None:
    watched = Watched()
    watched.agent.hold(facts(state=RunState.STARTING))
    watched.agent.hold(facts(OTHER))
    async with following(watched):
        await asyncio.sleep(5)
        watched.agent.leave()
        watched.agent.hold(facts(state=RunState.RUNNING))
        watched.agent.forget(OTHER)
        await asyncio.sleep(30)
        watched.told.clear()
        watched.agent.come_back()
        await until(lambda: isinstance(watched.watch.reading(ID), Known), 2)
        assert watched.watch.reading(ID) == Known(facts(revision=2), watched.clock.now())
        reading = watched.watch.reading(OTHER)
        assert isinstance(reading, Known)
        assert reading.value is None
        assert watched.told == [facts(revision=2)]
        watched.agent.hold(facts(state=RunState.STOPPING))
        await until(lambda: len(watched.told) == 2, 1)


async def test_a_node_that_is_away_is_asked_about_twice_a_second_and_logged_once() -> None:
    watched = Watched()
    watched.agent.leave()
    task = asyncio.create_task(watched.watch.follow())
    with capture_logs() as logs:
        await asyncio.sleep(30)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert 50 <= watched.agent.asked <= 70
    assert [line["event"] for line in logs] == ["node_watch_broken"]


async def test_a_bug_in_what_the_node_says_is_not_taken_for_silence() -> None:
    """An answer that cannot be understood is no failure of the port's kinds, and what was known is stale after it."""
    watched = Watched()
    watched.agent.hold(facts())
    async with following(watched):
        await asyncio.sleep(5)
        watched.agent.break_streams(ValueError("'paused' is not a state of a run"))
        await asyncio.sleep(0.1)
        assert isinstance(watched.watch.reading(ID), Stale)
        watched.agent.hold(facts(state=RunState.ENDED))
        await until(lambda: watched.watch.reading(ID) == Known(watched.agent.known[ID], watched.clock.now()))


async def test_a_listener_that_fails_does_not_end_the_watch() -> None:
    watched = Watched()
    told = watched.told

    def listener(change: RunFacts) -> None:
        told.append(change)
        if len(told) == 1:
            raise ValueError("a bug")

    watched.watch = NodeWatch(watched.agent, watched.clock, listener)
    async with following(watched):
        await asyncio.sleep(1)
        watched.agent.hold(facts(state=RunState.STARTING))
        await asyncio.sleep(5)
        watched.agent.hold(facts(state=RunState.RUNNING))
        await until(lambda: told[-1].state is RunState.RUNNING)


async def test_one_stream_is_open_at_most_however_often_reading_everything_fails() -> None:
    watched = Watched()

    async def too_slow() -> tuple[RunFacts, ...]:
        raise Temporary("the node agent took too long to answer", code="agent_slow")

    watched.agent.runs = too_slow  # type: ignore[method-assign]
    async with following(watched):
        await asyncio.sleep(20)
        assert watched.agent.streams <= 1


async def test_no_stream_stays_open_behind_the_watch() -> None:
    watched = Watched()
    async with following(watched):
        await asyncio.sleep(5)
        assert watched.agent.streams == 1
    await asyncio.sleep(1)
    assert watched.agent.streams == 0


async def test_failures_of_the_stream_are_all_heard() -> None:
    """A task whose failure nobody asked for is a line in the log of the loop's exception handler, each half second."""
    unheard: list[dict[str, object]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _loop, context: unheard.append(context))
    watched = Watched()
    watched.agent.leave()
    async with following(watched):
        await asyncio.sleep(5)
    gc.collect()
    await asyncio.sleep(0)
    assert unheard == []


@pytest.mark.parametrize("seed", range(20))
async def test_the_later_revision_is_kept_whatever_the_order(seed: int) -> None:
    watched = Watched()
    async with following(watched):
        await asyncio.sleep(1)
        said = [facts(run=run, revision=revision) for run in (1, 2, 3) for revision in (1, 2, 3, 4)]
        random.Random(seed).shuffle(said)
        for each in said:
            watched.watch.learn(each)
        assert watched.watch.reading(ID) == Known(facts(run=3, revision=4), watched.clock.now())


async def test_of_one_revision_the_word_heard_last_counts() -> None:
    """Progress moves within a revision."""
    watched = Watched()
    async with following(watched):
        await asyncio.sleep(1)
        watched.watch.learn(facts(state=RunState.INITIALIZING))
        watched.watch.learn(facts(state=RunState.RUNNING))
        assert watched.watch.reading(ID) == Known(facts(state=RunState.RUNNING), watched.clock.now())


async def test_a_slow_full_answer_does_not_undo_what_was_said_meanwhile() -> None:
    watched = Watched()
    watched.agent.hold(facts(state=RunState.STARTING))
    async with following(watched):
        await asyncio.sleep(1)
        old = tuple(watched.agent.known.values())

        async def slow_runs() -> tuple[RunFacts, ...]:
            await asyncio.sleep(2)
            return old

        watched.agent.runs = slow_runs  # type: ignore[method-assign]
        asking = asyncio.create_task(watched.watch.ask())
        await asyncio.sleep(1)
        watched.agent.hold(facts(state=RunState.RUNNING))
        await asking
        assert watched.watch.reading(ID) == Known(facts(revision=2), watched.clock.now())


async def test_what_is_forgotten_is_absent() -> None:
    watched = Watched()
    watched.agent.hold(facts())
    async with following(watched):
        await asyncio.sleep(1)
        watched.watch.forget(ID)
        watched.watch.forget(OTHER)
        assert watched.watch.reading(ID) == Known(None, BEGAN)
