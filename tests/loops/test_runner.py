"""When the one loop looks at an object, and what it does about failures. Time is virtual."""

from __future__ import annotations

import asyncio
from collections import defaultdict, deque
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any

import pytest
from structlog.testing import capture_logs

from fairwater.domain.failure import Permanent, Temporary
from fairwater.domain.plan import Plan, Waiting
from fairwater.loops.runner import LoopRunner

from .virtual_clock import VirtualClock

pytestmark = pytest.mark.looptime

STEP: Plan[str] = Plan(("step",))
NOTHING: Plan[str] = Plan()
WITHIN_S = 5.0


class Workshop:
    """A reconciler that plans what is laid out for it, and notes when it was asked to do what."""

    name = "workshop"

    def __init__(self) -> None:
        self.clock = VirtualClock()
        self.plans: dict[str, deque[Plan[str] | Exception]] = defaultdict(deque)
        self.observed: dict[str, list[float]] = defaultdict(list)
        self.applied: list[tuple[str, str]] = []
        self.rejections: list[tuple[str, str, str]] = []
        self.delays: list[tuple[str, str]] = []
        self.at_once: dict[str, int] = defaultdict(int)
        self.at_once_max = self.one_object_at_once_max = 0
        self.work: Callable[[str, str], Awaitable[None]] = self._nothing
        self.when_delayed: Exception | None = None

    def lay_out(self, key: str, *plans: Plan[str] | Exception) -> None:
        self.plans[key].extend(plans)

    async def observe(self, key: str) -> Plan[str]:
        self.observed[key].append(self.clock.elapsed_s())
        plan = self.plans[key].popleft() if self.plans[key] else NOTHING
        if isinstance(plan, Exception):
            raise plan
        return plan

    def plan(self, key: str, facts: Plan[str]) -> Plan[str]:
        return facts

    async def apply(self, key: str, step: str) -> None:
        self.at_once[key] += 1
        self.at_once_max = max(self.at_once_max, sum(self.at_once.values()))
        self.one_object_at_once_max = max(self.one_object_at_once_max, self.at_once[key])
        try:
            await self.work(key, step)
            self.applied.append((key, step))
        finally:
            self.at_once[key] -= 1

    async def rejected(self, key: str, step: str, failure: Permanent) -> None:
        self.rejections.append((key, step, failure.code))

    async def delayed(self, key: str, failure: Temporary) -> None:
        self.delays.append((key, failure.code))
        if self.when_delayed:
            raise self.when_delayed

    @staticmethod
    async def _nothing(_key: str, _step: str) -> None:
        return


@pytest.fixture
async def open_runner() -> AsyncIterator[Callable[..., tuple[Workshop, LoopRunner[str, Plan[str], str]]]]:
    """To be called inside of a test, where time is virtual."""
    opened = []

    def make(**options: Any) -> tuple[Workshop, LoopRunner[str, Plan[str], str]]:
        workshop = Workshop()
        opened.append(LoopRunner(workshop, workshop.clock, **options))
        return workshop, opened[-1]

    yield make
    for runner in opened:
        await asyncio.wait_for(runner.close(), WITHIN_S)


Open = Callable[..., tuple[Workshop, LoopRunner[str, Plan[str], str]]]


async def idle(runner: LoopRunner[str, Plan[str], str], within_s: float = 600.0) -> None:
    """Until nothing is looked after any more."""
    async with asyncio.timeout(within_s):
        while runner.active():  # noqa: ASYNC110 - virtual time costs nothing
            await asyncio.sleep(0.5)


def at(*times_s: float) -> Any:
    return pytest.approx(list(times_s), abs=0.02)


async def test_nothing_is_looked_at_unless_poked(open_runner: Open) -> None:
    workshop, runner = open_runner()
    await asyncio.sleep(100)
    assert not workshop.observed
    assert runner.active() == 0


async def test_a_poked_object_is_planned_and_applied_until_its_plan_is_empty(open_runner: Open) -> None:
    workshop, runner = open_runner()
    workshop.lay_out("a", Plan(("one", "two")), Plan(("three",)))
    runner.poke("a")
    await idle(runner)
    assert workshop.applied == [("a", "one"), ("a", "two"), ("a", "three")]
    assert workshop.observed["a"] == at(0, 0, 0)


async def test_an_object_poked_while_it_is_worked_on_is_looked_at_again(open_runner: Open) -> None:
    workshop, runner = open_runner()

    async def poked_meanwhile(key: str, step: str) -> None:
        runner.poke(key)
        await asyncio.sleep(1)

    workshop.work = poked_meanwhile
    workshop.lay_out("a", STEP)
    runner.poke("a")
    await idle(runner)
    assert workshop.observed["a"] == at(0, 1, 1), "once after the step, and once for the poke"


async def test_a_poke_during_the_last_look_is_not_lost(open_runner: Open) -> None:
    workshop, runner = open_runner()
    seen: list[str] = []
    plan_before = workshop.plan

    def plan(key: str, facts: Plan[str]) -> Plan[str]:
        seen.append(key)
        if len(seen) == 1:
            runner.poke(key)
        return plan_before(key, facts)

    workshop.plan = plan  # type: ignore[method-assign]
    runner.poke("a")
    await idle(runner)
    assert seen == ["a", "a"]


async def test_one_object_is_never_worked_on_twice_at_once(open_runner: Open) -> None:
    workshop, runner = open_runner()
    workshop.work = lambda _key, _step: asyncio.sleep(0.3)
    workshop.lay_out("a", *[STEP] * 20)
    for _ in range(100):
        runner.poke("a")
        runner.poke("b")
        await asyncio.sleep(0.05)
    await idle(runner)
    assert len(workshop.applied) == 20
    assert workshop.one_object_at_once_max == 1


async def test_different_objects_are_worked_on_at_once_but_no_more_than_allowed(open_runner: Open) -> None:
    workshop, runner = open_runner(parallel=3)
    workshop.work = lambda _key, _step: asyncio.sleep(1)
    keys = [f"object {number}" for number in range(10)]
    for key in keys:
        workshop.lay_out(key, STEP)
        runner.poke(key)
    await idle(runner)
    assert workshop.at_once_max == 3
    assert sorted(key for key, _ in workshop.applied) == sorted(keys)
    assert workshop.clock.elapsed_s() == pytest.approx(4.0, abs=0.6), "ten steps of 1 s, three at once"


async def test_what_waits_takes_no_place_of_those_that_work(open_runner: Open) -> None:
    workshop, runner = open_runner(parallel=1)
    workshop.lay_out("waits", Temporary("later", delay_s=50))
    workshop.lay_out("works", STEP)
    runner.poke("waits")
    await asyncio.sleep(1)
    runner.poke("works")
    await asyncio.sleep(1)
    assert workshop.applied == [("works", "step")]


async def test_a_temporary_failure_waits_its_own_delay(open_runner: Open) -> None:
    workshop, runner = open_runner()
    workshop.lay_out("a", Temporary("first", code="busy", delay_s=7), Temporary("again", code="full", delay_s=2))
    runner.poke("a")
    await idle(runner)
    assert workshop.observed["a"] == at(0, 7, 9)
    assert workshop.delays == [("a", "busy"), ("a", "full")]


async def test_a_temporary_failure_of_a_step_leaves_the_steps_behind_it_undone(open_runner: Open) -> None:
    workshop, runner = open_runner()

    async def refuse_the_first(_key: str, step: str) -> None:
        if step == "one" and workshop.clock.elapsed_s() < 1:
            raise Temporary("not yet", code="busy", delay_s=3)

    workshop.work = refuse_the_first
    workshop.lay_out("a", Plan(("one", "two")), Plan(("one", "two")))
    runner.poke("a")
    await idle(runner)
    assert workshop.applied == [("a", "one"), ("a", "two")]
    assert workshop.observed["a"] == at(0, 3, 3)


async def test_a_poke_ends_the_wait_after_a_temporary_failure(open_runner: Open) -> None:
    workshop, runner = open_runner()
    workshop.lay_out("a", Temporary("later", delay_s=60))
    runner.poke("a")
    await asyncio.sleep(5)
    runner.poke("a")
    await idle(runner)
    assert workshop.observed["a"] == at(0, 5)


async def test_a_permanent_failure_is_handed_over_and_planned_anew(open_runner: Open) -> None:
    workshop, runner = open_runner()

    async def refuse_the_first(_key: str, step: str) -> None:
        if step == "one":
            raise Permanent("never", code="no_such_image")

    workshop.work = refuse_the_first
    workshop.lay_out("a", Plan(("one", "two")), Plan(("clear",)))
    runner.poke("a")
    await idle(runner)
    assert workshop.rejections == [("a", "one", "no_such_image")]
    assert workshop.applied == [("a", "clear")], "what stood behind the rejected step is not done"
    assert workshop.observed["a"] == at(0, 0, 0)


async def test_a_bug_backs_off_ever_longer_and_is_logged_each_time(open_runner: Open) -> None:
    workshop, runner = open_runner()
    with capture_logs() as logs:
        workshop.lay_out("a", *[ValueError("a bug")] * 7)
        runner.poke("a")
        await idle(runner)
    assert workshop.observed["a"] == at(0, 0.2, 1.2, 4.2, 14.2, 44.2, 74.2, 104.2)
    failed = [line for line in logs if line["event"] == "loop_iteration_failed"]
    assert [line["retry_in_s"] for line in failed] == [0.2, 1.0, 3.0, 10.0, 30.0, 30.0, 30.0]
    assert {(line["loop"], line["key"], line["log_level"]) for line in failed} == {("workshop", "a", "error")}


async def test_a_bug_of_one_object_does_not_hold_up_another(open_runner: Open) -> None:
    workshop, runner = open_runner(parallel=1)
    with capture_logs():
        workshop.lay_out("broken", *[ValueError("a bug")] * 5)
        workshop.lay_out("sound", *[Plan(waiting=_until(workshop, 1.0 * second)) for second in range(1, 5)])
        runner.poke("broken")
        runner.poke("sound")
        await idle(runner)
    assert workshop.observed["sound"] == at(0, 1, 2, 3, 4)


async def test_the_backoff_begins_anew_once_all_went_well(open_runner: Open) -> None:
    workshop, runner = open_runner()
    with capture_logs() as logs:
        bug = ValueError("a bug")
        workshop.lay_out("a", bug, bug, Plan(waiting=_until(workshop, 100.0)), bug)
        runner.poke("a")
        await idle(runner)
    assert [line["retry_in_s"] for line in logs] == [0.2, 1.0, 0.2]
    assert workshop.observed["a"] == at(0, 0.2, 1.2, 100, 100.2)


async def test_a_bug_while_a_delay_is_told_does_not_end_the_looking_after(open_runner: Open) -> None:
    workshop, runner = open_runner()
    with capture_logs():
        workshop.when_delayed = ValueError("a bug")
        workshop.lay_out("a", Temporary("later", delay_s=2), STEP)
        runner.poke("a")
        await asyncio.sleep(60)
    assert workshop.applied == [("a", "step")]


async def test_the_deadline_of_a_plan_is_kept_without_a_poke(open_runner: Open) -> None:
    workshop, runner = open_runner()
    workshop.lay_out("a", Plan(waiting=_until(workshop, 90.0)), STEP)
    runner.poke("a")
    await asyncio.sleep(89)
    assert workshop.observed["a"] == at(0)
    await idle(runner)
    assert workshop.observed["a"] == at(0, 90, 90)


async def test_a_poke_before_the_deadline_is_heard(open_runner: Open) -> None:
    workshop, runner = open_runner()
    workshop.lay_out("a", Plan(waiting=_until(workshop, 90.0)), Plan(waiting=_until(workshop, 90.0)))
    runner.poke("a")
    await asyncio.sleep(10)
    runner.poke("a")
    await idle(runner)
    assert workshop.observed["a"] == at(0, 10, 90)


async def test_a_plan_that_waits_without_a_deadline_is_left_until_poked(open_runner: Open) -> None:
    workshop, runner = open_runner()
    workshop.lay_out("a", Plan(waiting=Waiting("somebody", workshop.clock.now())))
    runner.poke("a")
    await asyncio.sleep(1000)
    assert workshop.observed["a"] == at(0)
    assert runner.active() == 0


async def test_plans_that_change_nothing_are_a_bug_after_64_of_them(open_runner: Open) -> None:
    workshop, runner = open_runner()
    with capture_logs() as logs:
        workshop.lay_out("a", *[STEP] * 65)
        runner.poke("a")
        await asyncio.sleep(0.1)
        assert len(workshop.applied) == 64
        assert [line["event"] for line in logs] == ["loop_iteration_failed"]
        await idle(runner)
    assert len(workshop.applied) == 65, "it goes on after the backoff"


@pytest.mark.parametrize("waiting_for", ["a step", "a delay", "a deadline", "a backoff", "a place"])
async def test_closing_interrupts_whatever_is_waited_for(open_runner: Open, waiting_for: str) -> None:
    workshop, runner = open_runner(parallel=1)
    interrupted = asyncio.Event()

    async def never_ends(_key: str, _step: str) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            interrupted.set()

    workshop.work = never_ends
    plans: dict[str, Plan[str] | Exception] = {
        "a step": STEP,
        "a delay": Temporary("later", delay_s=1e6),
        "a deadline": Plan(waiting=_until(workshop, 1e6)),
        "a backoff": ValueError("a bug"),
        "a place": STEP,
    }
    with capture_logs():
        workshop.lay_out("a", plans[waiting_for])
        runner.poke("a")
        if waiting_for == "a place":
            runner.poke("b")
        await asyncio.sleep(0.1)
        await asyncio.wait_for(runner.close(), WITHIN_S)
    assert workshop.clock.elapsed_s() == pytest.approx(0.1)
    assert interrupted.is_set() == (waiting_for in {"a step", "a place"})
    assert runner.active() == 0
    looks = {key: len(times) for key, times in workshop.observed.items()}
    runner.poke("a")
    await asyncio.sleep(1e5)
    assert {key: len(times) for key, times in workshop.observed.items()} == looks == {"a": 1}


@pytest.mark.parametrize("turns", range(6))
async def test_closing_is_not_held_up_by_a_poke_a_moment_before(open_runner: Open, turns: int) -> None:
    """On Python before 3.12, `asyncio.wait_for` swallows a cancellation that comes along with what it waits for."""
    workshop, runner = open_runner()
    workshop.lay_out("a", *[Plan(waiting=_until(workshop, 1000.0 * number)) for number in range(1, 4)])
    runner.poke("a")
    await asyncio.sleep(1)
    runner.poke("a")
    for _ in range(turns):
        await asyncio.sleep(0)
    async with not_later_than(0.5):
        await runner.close()


async def test_after_closing_nothing_is_left_that_runs(open_runner: Open) -> None:
    workshop, runner = open_runner()
    for number in range(20):
        workshop.lay_out(str(number), Plan(waiting=_until(workshop, 1000.0)))
        runner.poke(str(number))
    await asyncio.sleep(1)
    before = asyncio.all_tasks()
    await runner.close()
    assert len(before) - len(asyncio.all_tasks()) >= 20


@asynccontextmanager
async def not_later_than(seconds: float) -> AsyncIterator[None]:
    loop = asyncio.get_running_loop()
    began = loop.time()
    yield
    assert loop.time() - began <= seconds


def _until(workshop: Workshop, second: float) -> Waiting:
    """Waits until `second` of the test."""
    now = workshop.clock.now()
    return Waiting("time to pass", now, now + timedelta(seconds=second - workshop.clock.elapsed_s()))
