"""Which server may act: never two, whatever becomes of their questions to the database. Time is virtual."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from itertools import chain, pairwise, repeat

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from structlog.testing import capture_logs

from fairwater.loops.lease import FOR_S, LeaseKeeper

from .memory_leases import Fate, MemoryLeases, Road, Trip
from .virtual_clock import BEGAN

pytestmark = pytest.mark.looptime

NAME = "workspaces"
ACTS_FOR_S = FOR_S * 7 / 8
TAKEN_WITHIN_S = FOR_S + 2.0


def time() -> float:
    return asyncio.get_running_loop().time()


class DatabaseClock:
    """Goes `rate` times as fast as this machine's, and shows another time."""

    def __init__(self, rate: float = 1.0) -> None:
        self.rate = rate

    def now(self) -> datetime:
        return BEGAN - timedelta(days=400) + timedelta(seconds=time() * self.rate)


@dataclass
class Server:
    """A keeper, its way to the database, and the times at which it began and ceased to be allowed to act."""

    keeper: LeaseKeeper
    road: Road
    turns: list[tuple[str, float]] = field(default_factory=list)
    tasks: list[asyncio.Task[None]] = field(default_factory=list)

    def begin(self) -> None:
        self.tasks = [asyncio.create_task(work) for work in (self.keeper.run(), self._follow())]

    async def die(self) -> None:
        """Without a word to the database."""
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)
        self.tasks = []

    async def end(self) -> None:
        await self.die()
        await self.keeper.release()

    async def _follow(self) -> None:
        while True:
            await self.keeper.gained()
            self.turns.append(("gained", round(time(), 3)))
            await self.keeper.lost()
            self.turns.append(("lost", round(time(), 3)))


@asynccontextmanager
async def servers(
    *names: str, kind: type[LeaseKeeper] = LeaseKeeper, clock: DatabaseClock | None = None
) -> AsyncIterator[list[Server]]:
    """Not begun yet. None of them may act while another may, which is looked at after every answer of the database."""
    leases = MemoryLeases((clock or DatabaseClock()).now)
    opened: list[Server] = []

    def at_most_one() -> None:
        acting = [server.keeper for server in opened if server.keeper.may_act()]
        assert len(acting) <= 1, f"at {time():.2f} s more than one may act: {[server.turns for server in opened]}"

    for name in names:
        road = Road(leases, happened=at_most_one)
        opened.append(Server(kind(road, NAME, name), road))
    with capture_logs() as logs:
        try:
            yield opened
            at_most_one()
        finally:
            for server in opened:
                await server.die()
    assert [line for line in logs if line["log_level"] == "error"] == []


async def test_it_is_renewed_after_a_third_of_its_time() -> None:
    async with servers("one") as (one,):
        one.begin()
        await asyncio.sleep(60)
        assert [question for question, _ in one.road.asked] == ["acquire"] + ["renew"] * (len(one.road.asked) - 1)
        pauses = {round(after - before, 3) for (_, before), (_, after) in pairwise(one.road.asked)}
        assert pauses == {round(FOR_S / 3, 3)}
        assert [turn for turn, _ in one.turns] == ["gained"]


@pytest.mark.parametrize("fate", [Fate.QUESTION_LOST, Fate.ANSWER_LOST, Fate.HANGS])
async def test_who_cannot_renew_stops_to_act_before_anybody_else_may(fate: Fate) -> None:
    async with servers("one", "other") as (one, other):
        one.road.trips = chain([Trip()], repeat(Trip(fate=fate)))
        one.begin()
        await one.keeper.gained()
        began = time()
        if fate is Fate.ANSWER_LOST:
            # Each of them has reached the database: it is not free before the last has run out.
            await asyncio.sleep(30)
            assert one.turns == [("gained", began), ("lost", began + ACTS_FOR_S)]
            return
        other.begin()
        await other.keeper.gained()
        renewed_s = FOR_S / 3 if fate is Fate.HANGS else 0.0
        assert one.turns == [("gained", began), ("lost", began + ACTS_FOR_S)]
        assert began + renewed_s + FOR_S <= time() <= began + renewed_s + FOR_S + 1


async def test_a_failed_renewal_is_tried_again_in_time() -> None:
    async with servers("one") as (one,):
        one.road.trips = iter([Trip(), Trip(fate=Fate.QUESTION_LOST), Trip(fate=Fate.QUESTION_LOST)])
        one.begin()
        await asyncio.sleep(30)
        assert [turn for turn, _ in one.turns] == ["gained"]
        pauses = [round(after - before, 2) for (_, before), (_, after) in pairwise(one.road.asked)]
        assert pauses[:4] == [2.67, 1.0, 1.0, 2.67]


async def test_the_time_counts_from_the_question_and_not_from_the_answer() -> None:
    async with servers("one") as (one,):
        one.road.trips = iter([Trip(back_s=3.0), Trip(fate=Fate.HANGS)])
        one.begin()
        await one.keeper.gained()
        assert time() == 3.0
        await one.keeper.lost()
        assert time() == pytest.approx(ACTS_FOR_S, abs=0.001)


async def test_an_answer_that_comes_too_late_allows_nothing() -> None:
    async with servers("one") as (one,):
        one.road.trips = iter([Trip(back_s=ACTS_FOR_S), Trip(there_s=1.0)])
        one.begin()
        await asyncio.sleep(ACTS_FOR_S + 0.5)
        assert not one.keeper.may_act()
        assert one.turns == []
        await one.keeper.gained()
        assert time() == ACTS_FOR_S + 1.0, "the lease is still its own: it asks at once"


async def test_one_that_is_killed_is_replaced_once_its_time_is_up() -> None:
    async with servers("one", "other") as (one, other):
        one.begin()
        await one.keeper.gained()
        other.begin()
        await asyncio.sleep(20)
        await one.die()
        renewed_at = one.road.asked[-1][1]
        await other.keeper.gained()
        assert renewed_at + FOR_S <= time() <= renewed_at + FOR_S + 1
        lease = other.keeper.current()
        assert lease is not None
        assert (lease.holder, lease.epoch) == ("other", 2)


async def test_what_is_released_at_the_end_is_free_at_once() -> None:
    async with servers("one", "other") as (one, other):
        one.begin()
        await one.keeper.gained()
        other.begin()
        await asyncio.sleep(20)
        await one.end()
        assert not one.keeper.may_act()
        ended = time()
        await other.keeper.gained()
        assert time() - ended <= 1


async def test_a_release_while_a_renewal_is_under_way_is_not_undone_by_it() -> None:
    async with servers("one", "other") as (one, other):
        one.road.trips = iter([Trip(), Trip(there_s=5.0)])
        one.begin()
        await asyncio.sleep(FOR_S / 3 + 1)
        assert one.road.asked[-1][0] == "renew"
        await one.end()
        other.begin()
        await other.keeper.gained()
        assert time() <= FOR_S / 3 + 2


async def test_an_end_while_the_database_is_away_is_no_failure() -> None:
    async with servers("one", "other") as (one, other):
        one.begin()
        await one.keeper.gained()
        one.road.away = True
        await one.end()
        assert not one.keeper.may_act()
        other.begin()
        await other.keeper.gained()
        assert FOR_S <= time() <= FOR_S + 1


async def test_one_that_holds_nothing_releases_nothing() -> None:
    async with servers("one", "other") as (one, other):
        one.begin()
        await one.keeper.gained()
        other.begin()
        await asyncio.sleep(1)
        await other.end()
        assert "release" not in [question for question, _ in other.road.asked]
        assert one.keeper.may_act()


async def test_after_an_outage_for_all_one_of_them_goes_on() -> None:
    async with servers("one", "other") as (one, other):
        one.begin()
        await one.keeper.gained()
        other.begin()
        for server in (one, other):
            server.road.away = True
        await asyncio.sleep(30)
        assert not one.keeper.may_act()
        assert not other.keeper.may_act()
        for server in (one, other):
            server.road.away = False
        await asyncio.sleep(1.5)
        assert [one.keeper.may_act(), other.keeper.may_act()].count(True) == 1


async def test_the_outages_are_told_and_no_bug() -> None:
    with capture_logs() as logs:
        async with servers("one") as (one,):
            one.road.away = True
            one.begin()
            await asyncio.sleep(3.5)
    assert {line["event"] for line in logs} <= {"lease_unsure"}


# ---------------------------------------------------------------- any interleaving

DELAYS_S = st.sampled_from([0.0, 0.0, 0.01, 0.5, 2.7, 5.0, 6.99, 7.0, 8.0, 12.0])
TRIPS = st.lists(st.builds(Trip, DELAYS_S, DELAYS_S, st.sampled_from(Fate)), max_size=12)
ENDS = st.lists(st.tuples(st.floats(0.5, 15.0), st.integers(0, 2), st.booleans()), max_size=5)


@settings(max_examples=150)
@given(roads=st.tuples(TRIPS, TRIPS, TRIPS), ends=ENDS, rate=st.floats(0.9, 1.1))
async def test_never_do_two_act_whatever_becomes_of_questions_and_answers(
    roads: tuple[list[Trip], list[Trip], list[Trip]], ends: list[tuple[float, int, bool]], rate: float
) -> None:
    """Three servers, some of which end or are killed and begin anew; the database's clock is not quite theirs."""
    async with servers("one", "other", "third", clock=DatabaseClock(rate)) as opened:
        for server, trips in zip(opened, roads, strict=True):
            server.road.trips = iter(trips)
            server.begin()
        for after_s, number, in_order in ends:
            await asyncio.sleep(after_s)
            server = opened[number]
            # What hangs for ever is given up: the store's own limits end it.
            await asyncio.wait({asyncio.ensure_future(server.end() if in_order else server.die())}, timeout=15)
            server.begin()
        await asyncio.sleep(1)
        for server in opened:
            await server.die()
            server.road.trips = iter(())
            server.begin()
        await asyncio.sleep(TAKEN_WITHIN_S * 1.2)
        assert [server.keeper.may_act() for server in opened].count(True) == 1, "and in the end, one does"


class CountsFromTheAnswer(LeaseKeeper):
    """The defence taken out."""

    async def _take_or_keep(self, began: float) -> None:
        await super()._take_or_keep(began)
        if self._lease is not None:
            self._keep(self._lease, time() + FOR_S)


@pytest.mark.parametrize("kind", [LeaseKeeper, CountsFromTheAnswer])
async def test_a_keeper_that_counts_from_the_answer_is_found_out(kind: type[LeaseKeeper]) -> None:
    async def late_answer() -> None:
        async with servers("one", "other", kind=kind) as (one, other):
            one.road.trips = iter([Trip(back_s=3.0), Trip(fate=Fate.QUESTION_LOST, there_s=60)])
            one.begin()
            other.begin()
            await other.keeper.gained()

    if kind is LeaseKeeper:
        await late_answer()
    else:
        with pytest.raises(AssertionError, match="more than one may act"):
            await late_answer()


def slow() -> Iterator[Trip]:
    while True:
        yield Trip(there_s=0.5, back_s=0.5)


async def test_a_slow_database_costs_nobody_the_lease() -> None:
    async with servers("one", "other") as (one, other):
        one.road.trips, other.road.trips = slow(), slow()
        one.begin()
        await one.keeper.gained()
        other.begin()
        await asyncio.sleep(120)
        assert [turn for turn, _ in one.turns] == ["gained"]
        assert other.turns == []
