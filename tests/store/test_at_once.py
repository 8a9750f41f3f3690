"""A transaction that runs as a whole in one thread: whole or not at all, however it ends."""

from __future__ import annotations

import asyncio
import threading

import pytest
from sqlalchemy import text

from fairwater.domain.failure import Permanent, Temporary
from fairwater.domain.workspaces.workspace import Event, Phase
from fairwater.ports.accounts import Account, Role
from fairwater.store import postgres_session
from fairwater.store.database import SqlTransaction
from fairwater.store.postgres_at_once import AtOnce

from .conftest import NOW, Store

WITHIN_S = 10.0


async def add_ada(transaction: SqlTransaction) -> Account:
    return await transaction.accounts.add("ada", Role.MEMBER, "default", NOW)


async def there(store: Store) -> bool:
    return await store.database.reading(lambda transaction: transaction.accounts.named("ada")) is not None


async def test_what_is_written_at_once_is_there_and_told(store: Store) -> None:
    entry = await store.workspace(await store.account())

    async def start(transaction: SqlTransaction) -> Phase:
        found = await transaction.workspaces.find(entry.workspace.id, None, entry.owner)
        return (await transaction.workspaces.apply(found, Event.START, "asked for", NOW)).workspace.phase

    assert await store.database.writing(start) is Phase.PENDING
    assert [change.event for change in store.told] == [Event.START]


async def test_a_refusal_takes_all_back_and_reaches_who_asked(store: Store) -> None:
    async def refuse(transaction: SqlTransaction) -> None:
        await add_ada(transaction)
        raise Permanent("not today", code="refused")

    with pytest.raises(Permanent, match="not today"):
        await store.database.writing(refuse)
    assert not await there(store)
    assert store.told == []


async def test_events_of_one_word_are_written_as_a_whole(store: Store) -> None:
    entry = await store.workspace(await store.account())
    key = entry.workspace.id
    async with store.database.write() as transaction:
        started = await transaction.workspaces.apply(entry, Event.START, "asked for", NOW)
    with pytest.raises(Permanent):
        await store.records.record(
            key, started.workspace.run, Event.PLACED, "accepted", NOW, [(Event.RELEASED, "never")]
        )
    record = await store.records.load(key)
    assert record is not None
    assert record.workspace.phase is Phase.PENDING
    after = await store.records.record(
        key, started.workspace.run, Event.PLACED, "accepted", NOW, [(Event.READY, "running")]
    )
    assert after is not None
    assert after.phase is Phase.RUNNING
    lines = await store.database.reading(lambda transaction: transaction.history.after(0, 10, None, key))
    assert [line.event for line in lines] == [Event.START, Event.PLACED, Event.READY]
    assert [change.event for change in store.told] == [Event.START, Event.PLACED, Event.READY]


async def test_what_awaits_something_else_is_a_bug_and_leaves_nothing(postgres_store: Store) -> None:
    async def wait(transaction: SqlTransaction) -> None:
        await add_ada(transaction)
        await asyncio.sleep(0)

    with pytest.raises(RuntimeError, match="awaited something else"):
        await postgres_store.database.writing(wait)
    assert not await there(postgres_store)


async def test_who_is_cancelled_has_written_nothing(postgres_store: Store) -> None:
    begun = threading.Event()

    async def sleep(transaction: SqlTransaction) -> None:
        await add_ada(transaction)
        begun.set()
        await transaction.connection.execute(text("SELECT pg_sleep(4)"))

    sleeping = asyncio.create_task(postgres_store.database.writing(sleep))
    assert await asyncio.to_thread(begun.wait, WITHIN_S)
    sleeping.cancel()
    async with asyncio.timeout(2):
        with pytest.raises(asyncio.CancelledError):
            await sleeping
        assert not await there(postgres_store)


async def test_who_is_cancelled_before_the_commit_has_written_nothing(postgres_store: Store) -> None:
    begun, go_on = threading.Event(), threading.Event()

    async def dawdle(transaction: SqlTransaction) -> None:
        await add_ada(transaction)
        begun.set()
        go_on.wait(WITHIN_S)

    dawdling = asyncio.create_task(postgres_store.database.writing(dawdle))
    assert await asyncio.to_thread(begun.wait, WITHIN_S)
    dawdling.cancel()
    asyncio.get_running_loop().call_later(0.05, go_on.set)
    with pytest.raises(asyncio.CancelledError):
        await dawdling
    assert not await there(postgres_store)


async def test_an_answer_that_is_overdue_ends_the_wait(postgres_store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(postgres_session, "ANSWER_S", 0.5)

    async def sleep(transaction: SqlTransaction) -> None:
        for _ in range(3):  # each in its time
            await transaction.connection.execute(text("SELECT pg_sleep(0.3)"))
        await transaction.connection.execute(text("SELECT pg_sleep(4)"))

    async with asyncio.timeout(3):
        with pytest.raises(Temporary, match="no answer for"):
            await postgres_store.database.reading(sleep)


async def test_a_commit_that_was_not_answered_is_told_when_it_is_seen(
    postgres_store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    entry = await postgres_store.workspace(await postgres_store.account())
    following = asyncio.create_task(postgres_store.database.follow())
    commit = AtOnce.commit

    async def answered_by_nobody(self: AtOnce) -> None:
        await commit(self)
        raise Temporary("the connection broke", code="database_busy")

    async def start(transaction: SqlTransaction) -> None:
        found = await transaction.workspaces.find(entry.workspace.id, None, entry.owner)
        await transaction.workspaces.apply(found, Event.START, "asked for", NOW)

    try:
        listener = postgres_store.database._listener
        assert listener is not None
        await asyncio.wait_for(listener.listening.wait(), WITHIN_S)
        with monkeypatch.context() as patch:
            patch.setattr(AtOnce, "commit", answered_by_nobody)
            with pytest.raises(Temporary):
                await postgres_store.database.writing(start)
        assert postgres_store.told == []
        await asyncio.wait_for(postgres_store.heard.wait(), WITHIN_S)
        assert [change.event for change in postgres_store.told] == [Event.START]
    finally:
        following.cancel()
        await asyncio.gather(following, return_exceptions=True)


async def test_a_connection_that_has_ended_meanwhile_is_no_failure(postgres_store: Store) -> None:
    await postgres_store.account()
    async with postgres_store.database.write() as transaction:
        mine = "pid <> pg_backend_pid() AND datname = current_database()"
        await transaction.connection.execute(
            text(f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE {mine}")
        )
    assert await there(postgres_store)
    await postgres_store.database.ping()
