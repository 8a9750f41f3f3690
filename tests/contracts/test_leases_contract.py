"""The contract of `ports.leases.Leases`: the database of each kind, and the fake that the loops are tested with."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import text
from tests.loops.memory_leases import MemoryLeases
from tests.servers.databases import postgres as postgres
from tests.servers.databases import postgres_url as postgres_url
from tests.servers.databases import sqlite_url as sqlite_url

from fairwater.domain.workspaces.deadlines import DeadlinePolicy
from fairwater.ports.leases import Lease, Leases
from fairwater.store.database import SqlDatabase
from fairwater.store.leases import SqlLeases

NAME, ELSE = "workspaces", "something-else"
FOR_S = 600.0
"""Longer than any test takes, on a clock that is not the test's."""


class HandClock:
    """Time that passes when a test says so."""

    def __init__(self) -> None:
        self.time = datetime(2022, 4, 11, 8, 0, tzinfo=UTC)

    def now(self) -> datetime:
        return self.time


@dataclass
class Desk:
    """Two servers' ways to the same leases. `run_out` lets the time of every lease pass; `passes`: it is free then."""

    one: Leases
    other: Leases
    run_out: Callable[[], Awaitable[None]]
    passes: bool = True

    async def taken(self, holder: str = "one", name: str = NAME) -> Lease:
        lease = await (self.other if holder == "other" else self.one).acquire(name, holder, FOR_S)
        assert lease is not None
        return lease


@asynccontextmanager
async def in_memory(_request: pytest.FixtureRequest) -> AsyncIterator[Desk]:
    clock = HandClock()
    leases = MemoryLeases(clock.now)

    async def run_out() -> None:
        clock.time += timedelta(seconds=FOR_S)

    yield Desk(leases, leases, run_out)


@asynccontextmanager
async def in_sqlite(request: pytest.FixtureRequest) -> AsyncIterator[Desk]:
    """Of one process: another has no way to the lease while this one is there, however much time has passed."""
    database = SqlDatabase.open(request.getfixturevalue("sqlite_url"), DeadlinePolicy(), lambda change: None)
    clock = HandClock()
    leases = SqlLeases(database, clock)

    async def run_out() -> None:
        clock.time += timedelta(seconds=FOR_S)

    yield Desk(leases, leases, run_out, passes=False)
    await database.close()


@asynccontextmanager
async def in_postgres(request: pytest.FixtureRequest) -> AsyncIterator[Desk]:
    """Of two servers, whose own clocks are far from the database's."""
    url = request.getfixturevalue("postgres_url")
    databases = [SqlDatabase.open(url, DeadlinePolicy(), lambda change: None) for _ in range(2)]
    one, other = (SqlLeases(database, HandClock()) for database in databases)

    async def run_out() -> None:
        async with databases[0].write() as transaction:
            await transaction.connection.execute(
                text(f"UPDATE leases SET expires_at = expires_at - '{FOR_S} s'::interval")
            )

    yield Desk(one, other, run_out)
    for database in databases:
        await database.close()


@pytest.fixture(params=[in_memory, in_sqlite, in_postgres], ids=["memory", "sqlite", "postgresql"])
async def desk(request: pytest.FixtureRequest) -> AsyncIterator[Desk]:
    opened: AbstractAsyncContextManager[Desk] = request.param(request)
    async with opened as desk:
        yield desk


@pytest.fixture(params=[in_memory, in_postgres], ids=["memory", "postgresql"])
async def shared(request: pytest.FixtureRequest) -> AsyncIterator[Desk]:
    """Not SQLite's: that is for one server alone."""
    opened: AbstractAsyncContextManager[Desk] = request.param(request)
    async with opened as desk:
        yield desk


async def test_what_nobody_has_asked_for_is_held_by_nobody(desk: Desk) -> None:
    assert await desk.one.held(NAME) is None


async def test_a_free_lease_is_given_and_held(desk: Desk) -> None:
    lease = await desk.taken()
    assert (lease.name, lease.holder) == (NAME, "one")
    assert await desk.other.held(NAME) == lease


async def test_what_somebody_holds_is_given_to_nobody_else(shared: Desk) -> None:
    lease = await shared.taken()
    assert await shared.other.acquire(NAME, "other", FOR_S) is None
    assert await shared.other.held(NAME) == lease


async def test_of_many_who_ask_at_once_one_is_given_it(shared: Desk) -> None:
    asked = [(shared.one, shared.other)[number % 2].acquire(NAME, f"server-{number}", FOR_S) for number in range(8)]
    given = [lease for lease in await asyncio.gather(*asked) if lease is not None]
    assert len(given) == 1
    assert await shared.one.held(NAME) == given[0]


async def test_its_own_holder_is_given_it_anew(desk: Desk) -> None:
    """A server that did not hear of it asks again."""
    first = await desk.taken()
    again = await desk.taken()
    assert again.epoch >= first.epoch
    assert await desk.one.held(NAME) == again


async def test_a_renewal_keeps_the_epoch_and_moves_the_end(desk: Desk) -> None:
    lease = await desk.taken()
    renewed = await desk.one.renew(lease, FOR_S * 2)
    assert renewed is not None
    assert replace(renewed, expires_at=lease.expires_at) == lease
    assert timedelta(seconds=FOR_S) <= renewed.expires_at - lease.expires_at < timedelta(seconds=FOR_S + 60)
    assert await desk.one.held(NAME) == renewed


async def test_after_its_time_it_is_held_by_nobody_and_given_to_the_next_with_a_greater_epoch(shared: Desk) -> None:
    lease = await shared.taken()
    await shared.run_out()
    assert await shared.one.held(NAME) is None
    taken = await shared.taken("other")
    assert taken.epoch > lease.epoch
    assert await shared.one.renew(lease, FOR_S) is None
    assert await shared.one.held(NAME) == taken


async def test_one_that_ran_out_unnoticed_is_renewed(desk: Desk) -> None:
    lease = await desk.taken()
    await desk.run_out()
    renewed = await desk.one.renew(lease, FOR_S)
    assert renewed is not None
    assert renewed.epoch == lease.epoch
    assert await desk.one.held(NAME) == renewed


async def test_of_a_renewal_and_a_taking_at_once_one_is_done(shared: Desk) -> None:
    lease = await shared.taken()
    for _ in range(10):
        await shared.run_out()
        renewed, taken = await asyncio.gather(
            shared.one.renew(lease, FOR_S), shared.other.acquire(NAME, "other", FOR_S)
        )
        assert [renewed is None, taken is None].count(True) == 1
        if taken is not None:
            await shared.other.release(taken)
            lease = await shared.taken()


async def test_what_is_released_is_free_at_once(desk: Desk) -> None:
    lease = await desk.taken()
    await desk.one.release(lease)
    assert await desk.one.held(NAME) is None
    taken = await desk.taken("other")
    assert taken.epoch > lease.epoch


async def test_its_own_holder_takes_it_anew_after_a_release_with_a_greater_epoch(desk: Desk) -> None:
    lease = await desk.taken()
    await desk.one.release(lease)
    assert (await desk.taken()).epoch > lease.epoch
    assert await desk.one.renew(lease, FOR_S) is None, "what was under way at the release brings it not back"


async def test_a_release_of_what_was_lost_takes_nothing_from_the_next_holder(shared: Desk) -> None:
    lease = await shared.taken()
    await shared.run_out()
    taken = await shared.taken("other")
    await shared.one.release(lease)
    assert await shared.one.held(NAME) == taken


async def test_an_epoch_is_never_given_twice(desk: Desk) -> None:
    epochs = []
    for number in range(6):
        lease = await desk.taken(("one", "other")[number % 2])
        epochs.append(lease.epoch)
        if number % 3 or not desk.passes:
            await desk.one.release(lease)
        else:
            await desk.run_out()
    assert epochs == sorted(set(epochs))


async def test_leases_of_different_names_have_nothing_to_do_with_each_other(desk: Desk) -> None:
    lease = await desk.taken()
    another = await desk.taken("other", ELSE)
    await desk.one.release(lease)
    assert await desk.one.held(ELSE) == another
    assert await desk.one.held(NAME) is None


async def test_on_sqlite_a_lease_goes_with_its_process_and_not_with_the_time(sqlite_url: str) -> None:
    clock = HandClock()
    databases = [SqlDatabase.open(sqlite_url, DeadlinePolicy(), lambda change: None) for _ in range(2)]
    one, other = (SqlLeases(database, clock) for database in databases)
    lease = await one.acquire(NAME, "one", FOR_S)
    assert lease is not None
    clock.time += timedelta(seconds=FOR_S * 2)
    assert await other.acquire(NAME, "other", FOR_S) is None
    await one.release(lease)
    taken = await other.acquire(NAME, "other", FOR_S)
    assert taken is not None
    assert taken.epoch > lease.epoch
    for database in databases:
        await database.close()
