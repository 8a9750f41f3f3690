"""PostgreSQL stops answering, or is killed: requests are told to come back, and all goes on when it is there again."""

from __future__ import annotations

import asyncio
import gc
import time
from collections.abc import AsyncIterator

import pytest
from sqlalchemy import event
from tests.servers.postgres import Cluster

from fairwater.domain.failure import Temporary
from fairwater.domain.workspaces.workspace import Event
from fairwater.ports.accounts import Account
from fairwater.store import postgres_engine, postgres_session
from fairwater.store.migration import upgrade
from fairwater.store.postgres_engine import ANSWER_S

from .conftest import NOW, Store, open_store

# A connection that the server ends while SQLAlchemy's pool is setting it up, the pool leaves to the garbage collector.
pytestmark = [pytest.mark.long, pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")]

BACK_WITHIN_S = 15.0


@pytest.fixture
async def server(own_postgres: Cluster) -> AsyncIterator[Store]:
    url = own_postgres.create()
    await upgrade(url)
    opened = open_store(url)
    following = asyncio.create_task(opened.database.follow())
    yield opened
    following.cancel()
    await asyncio.gather(following, return_exceptions=True)
    await opened.database.close()
    gc.collect()


async def create(store: Store, owner: Account, key: str) -> str:
    """A start with an idempotency key, repeated by its client until it is answered: "done", or "done before"."""
    while True:
        try:
            async with store.database.write() as transaction:
                claim = await transaction.keys.claim(owner.id, key, "print", NOW)
                if claim is not None:
                    return "done before"
                entry = await transaction.workspaces.find(f"repo-{key}", None, owner.id)
                await transaction.workspaces.apply(entry, Event.START, "asked for", NOW)
            return "done"
        except Temporary as failure:
            if failure.code not in {"database_away", "database_busy"}:
                raise
            await asyncio.sleep(failure.delay_s / 10)


async def back(store: Store) -> None:
    async with asyncio.timeout(BACK_WITHIN_S):
        while True:
            try:
                await store.database.ping()
                return
            except Temporary as failure:
                if failure.code != "database_away":
                    raise
                await asyncio.sleep(0.1)


async def away(store: Store) -> None:
    """Waits until it is known to be away."""
    async with asyncio.timeout(BACK_WITHIN_S):
        while True:
            try:
                await store.database.ping()
            except Temporary as failure:
                if failure.code != "database_away":
                    raise
                return
            await asyncio.sleep(0.05)


async def test_a_database_that_stops_answering_is_told_within_seconds_and_then_at_once(
    server: Store, own_postgres: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(postgres_session, "ANSWER_S", 1.0)
    owner = await server.account()
    own_postgres.halt()
    try:
        began = time.monotonic()
        asked = [asyncio.create_task(server.database.ping()) for _ in range(40)]
        ended = await asyncio.gather(*asked, return_exceptions=True)
        assert {(type(end), getattr(end, "code", None)) for end in ended} <= {
            (Temporary, "database_away"),
            (Temporary, "database_busy"),
        }
        assert time.monotonic() - began < BACK_WITHIN_S
        began = time.monotonic()
        for _ in range(50):
            with pytest.raises(Temporary, match="away"):
                await server.database.ping()
        assert time.monotonic() - began < 0.5, "while it is known to be away, nobody waits"
    finally:
        own_postgres.go_on()
    await back(server)
    async with server.database.read() as transaction:
        assert await transaction.accounts.find(owner.id) is not None


async def test_a_database_that_stops_while_a_connection_is_set_up_holds_nobody_up(
    server: Store, own_postgres: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(postgres_engine, "CONNECT_S", 1)
    await server.database.ping()
    server.database.engine.dispose()  # so that the next one opens a connection
    event.listen(server.database.engine, "connect", lambda *_: own_postgres.halt(), insert=True, once=True)
    began = time.monotonic()
    try:
        with pytest.raises(Temporary) as refused:
            async with asyncio.timeout(ANSWER_S * 2):
                await server.database.ping()
    finally:
        own_postgres.go_on()
    assert refused.value.code == "database_away"
    assert time.monotonic() - began < ANSWER_S
    await back(server)


@pytest.mark.parametrize("how", ["killed", "halted"])
async def test_under_load_nothing_is_lost_and_nothing_done_twice(
    server: Store, own_postgres: Cluster, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(postgres_session, "ANSWER_S", 2.0)
    owner = await server.account()
    keys = [str(number) for number in range(300)]
    for key in keys:
        await server.workspace(owner, f"repo-{key}")
    clients = asyncio.gather(*(create(server, owner, key) for key in keys))
    await asyncio.sleep(0.2)
    assert not clients.done()
    if how == "killed":
        own_postgres.kill()
        await away(server)
        await asyncio.to_thread(own_postgres.start)
    else:
        own_postgres.halt()
        await away(server)
        await asyncio.sleep(1)
        own_postgres.go_on()
    answers = await asyncio.wait_for(clients, 60)
    assert set(answers) <= {"done", "done before"}
    async with server.database.read() as transaction:
        lines = await transaction.history.after(0, 1000, None, None)
    assert len(lines) == len(keys), "each was started, and none twice"
    assert len({line.workspace for line in lines}) == len(keys)
    async with asyncio.timeout(BACK_WITHIN_S):
        while len(server.told) < len(keys):
            server.heard.clear()
            await server.heard.wait()
    assert len({change.after.id for change in server.told}) == len(server.told) == len(keys), "each was told once"
