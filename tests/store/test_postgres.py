"""Several servers on one PostgreSQL, each with several transactions at once."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import psycopg
import pytest
from sqlalchemy import text
from starlette.requests import HTTPConnection
from tests.servers.postgres import Cluster

from fairwater.domain.failure import Permanent, Temporary
from fairwater.domain.workspaces.workspace import Event, Phase
from fairwater.ports.accounts import Role
from fairwater.ports.catalogue import Entry
from fairwater.server.authentication import Authenticator
from fairwater.server.options import ServerOptions
from fairwater.serving.peers import PEER_UID
from fairwater.store.migration import upgrade
from fairwater.store.postgres import PostgresConnections
from fairwater.store.postgres_session import Threaded

from .conftest import NOW, StillClock, Store, open_store

WITHIN_S = 10.0


@pytest.fixture
async def servers(postgres_url: str) -> AsyncIterator[tuple[Store, Store]]:
    """Two, that hear of each other."""
    opened = open_store(postgres_url), open_store(postgres_url)
    following = [asyncio.create_task(store.database.follow()) for store in opened]
    for store in opened:
        await listening(store)
    yield opened
    for task in following:
        task.cancel()
    await asyncio.gather(*following, return_exceptions=True)
    for store in opened:
        await store.database.close()


async def listening(store: Store) -> None:
    assert store.database._listener is not None
    await asyncio.wait_for(store.database._listener.listening.wait(), WITHIN_S)


async def start(store: Store, entry: Entry) -> None:
    async with store.database.write() as transaction:
        found = await transaction.workspaces.find(entry.workspace.id, None, entry.owner)
        await transaction.workspaces.apply(found, Event.START, "asked for", NOW)


async def told(store: Store, count: int) -> None:
    """Waits until the store has heard of so many changes."""
    async with asyncio.timeout(WITHIN_S):
        while len(store.told) < count:
            store.heard.clear()
            await store.heard.wait()


async def waits(task: asyncio.Task[object]) -> bool:
    """Whether the task waits for somebody else, after it had time enough to end."""
    done, _ = await asyncio.wait({task}, timeout=0.3)
    return not done


async def test_what_one_server_commits_the_other_hears_of_and_its_own_it_tells_once(
    servers: tuple[Store, Store],
) -> None:
    one, other = servers
    entries = [await one.workspace(await one.account(f"user-{number}"), f"repo-{number}") for number in range(3)]
    await asyncio.gather(start(one, entries[0]), start(other, entries[1]), start(one, entries[2]))
    for store in servers:
        await told(store, 3)
    assert sorted((change.after.id, change.elsewhere) for change in one.told) == sorted(
        (entry.workspace.id, entry is entries[1]) for entry in entries
    )
    assert sorted((change.after.id, change.elsewhere) for change in other.told) == sorted(
        (entry.workspace.id, entry is not entries[1]) for entry in entries
    )
    heard = next(change for change in other.told if change.after.id == entries[0].workspace.id)
    said = next(change for change in one.told if change.after.id == entries[0].workspace.id)
    assert (heard.before, heard.event, heard.after.run, heard.asked_at, heard.at, heard.workspace_class) == (
        said.before, said.event, said.after.run, said.asked_at, said.at, said.workspace_class,
    )  # fmt: skip


async def test_a_listener_whose_connection_was_ended_misses_nothing(servers: tuple[Store, Store]) -> None:
    one, other = servers
    owner = await one.account()
    entries = [await one.workspace(owner, f"repo-{number}") for number in range(4)]
    for entry in entries:
        async with other.database.read() as transaction:
            await transaction.connection.execute(
                text("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE query LIKE 'LISTEN%'")
            )
        await start(one, entry)
    await told(other, len(entries))
    await told(one, len(entries))
    assert [change.after.id for change in other.told] == [entry.workspace.id for entry in entries]
    assert [change.elsewhere for change in one.told] == [False] * len(entries)


async def test_a_commit_that_was_not_answered_is_told_when_it_is_seen(
    servers: tuple[Store, Store], monkeypatch: pytest.MonkeyPatch
) -> None:
    one, _ = servers
    entry = await one.workspace(await one.account())
    commit = Threaded.commit

    async def answered_by_nobody(self: Threaded) -> None:
        await commit(self)
        raise Temporary("the connection broke", code="database_busy")

    with monkeypatch.context() as patch:
        patch.setattr(Threaded, "commit", answered_by_nobody)
        with pytest.raises(Temporary):
            await start(one, entry)
    assert one.told == []
    await told(one, 1)
    assert one.told[0].elsewhere


async def test_a_line_of_history_is_never_seen_before_an_earlier_one(servers: tuple[Store, Store]) -> None:
    one, other = servers
    first = await one.workspace(await one.account("ada"), "first")
    second = await one.workspace(await one.account("bob"), "second")
    async with one.database.write() as transaction:
        found = await transaction.workspaces.find(first.workspace.id, None, first.owner)
        await transaction.workspaces.apply(found, Event.START, "asked for", NOW)
        late: asyncio.Task[object] = asyncio.create_task(start(other, second))
        assert await waits(late)
        async with other.database.read() as reading:
            assert await reading.history.newest() == 0
    await late
    async with other.database.read() as reading:
        lines = await reading.history.after(0, 10, None, None)
    assert [line.workspace for line in lines] == [first.workspace.id, second.workspace.id]


async def test_a_stream_of_history_misses_nothing_under_many_writers(servers: tuple[Store, Store]) -> None:
    owners = [await servers[0].account(f"user-{number}") for number in range(8)]
    entries = [await servers[0].workspace(owner, owner.name) for owner in owners]

    async def live(number: int, entry: Entry) -> None:
        for turn in range(5):
            store = servers[(number + turn) % 2]
            await start(store, entry)
            for event in (Event.STOP, Event.RELEASED):
                record = await store.records.load(entry.workspace.id)
                assert record is not None
                await store.records.record(entry.workspace.id, record.workspace.run, event, event, NOW)

    living = asyncio.gather(*(live(number, entry) for number, entry in enumerate(entries)))
    seen: list[int] = []
    while not living.done() or not seen or seen[-1] < 8 * 5 * 3:
        async with servers[1].database.read() as transaction:
            seen += [line.sequence for line in await transaction.history.after(seen[-1] if seen else 0, 7, None, None)]
    await living
    assert seen == list(range(1, 8 * 5 * 3 + 1))


async def test_two_starts_of_one_account_never_see_the_same_allowance(servers: tuple[Store, Store]) -> None:
    one, other = servers
    owner = await one.account()
    entry = await one.workspace(owner)

    async def allowance() -> int:
        async with other.database.write() as transaction:
            allowed = await transaction.allowances.allowance(owner.id)
            assert allowed is not None
            return allowed.active

    async with one.database.write() as transaction:
        await transaction.allowances.allowance(owner.id)
        second: asyncio.Task[object] = asyncio.create_task(allowance())
        assert await waits(second)
        found = await transaction.workspaces.find(entry.workspace.id, None, entry.owner)
        await transaction.workspaces.apply(found, Event.START, "asked for", NOW)
    assert await second == 1


async def test_who_waited_for_a_workspace_sees_all_of_what_was_done_to_it(servers: tuple[Store, Store]) -> None:
    one, other = servers
    entry = await one.workspace(await one.account())

    async def stop() -> Entry:
        async with other.database.write() as transaction:
            found = await transaction.workspaces.find("repo", None, entry.owner)
            assert found.workspace.phase is Phase.PENDING
            assert found.deadline is not None
            return await transaction.workspaces.apply(found, Event.STOP, "stop", NOW)

    async with one.database.write() as transaction:
        found = await transaction.workspaces.find(entry.workspace.id, None, entry.owner)
        stopping: asyncio.Task[Entry] = asyncio.create_task(stop())
        assert await waits(stopping)
        await transaction.workspaces.apply(found, Event.START, "asked for", NOW)
    assert (await stopping).workspace.phase is Phase.STOPPING


async def test_an_idempotency_key_is_taken_by_one_of_two_servers(servers: tuple[Store, Store]) -> None:
    one, other = servers
    owner = await one.account()

    async def claim(store: Store) -> bool:
        async with store.database.write() as transaction:
            return await transaction.keys.claim(owner.id, "key", "print", NOW) is None

    assert sorted(await asyncio.gather(*(claim(store) for store in (one, other, one, other)))) == [False] * 3 + [True]


async def test_the_first_requests_of_the_local_administrator_make_one_account(servers: tuple[Store, Store]) -> None:
    options, local = ServerOptions(administrator_uids=frozenset({0})), {"type": "http", "headers": [], PEER_UID: 0}
    several = [Authenticator(servers[number % 2].database, StillClock(), options) for number in range(8)]
    principals = await asyncio.gather(*(each.principal(HTTPConnection(local)) for each in several))
    assert len({principal.id for principal in principals}) == 1


async def test_a_refusal_within_a_transaction_leaves_it_usable(store: Store) -> None:
    owner = await store.account("ada")
    await store.workspace(owner)
    async with store.database.write() as transaction:
        with pytest.raises(Permanent, match="ada"):
            await transaction.accounts.add("ada", Role.MEMBER, "default", NOW)
        await transaction.accounts.add("bob", Role.MEMBER, "default", NOW)
    with pytest.raises(Permanent) as refused:
        await store.workspace(owner)
    assert refused.value.code == "name_taken"
    async with store.database.read() as transaction:
        assert await transaction.accounts.named("bob") is not None


async def test_who_locks_each_other_out_is_told_to_come_back(servers: tuple[Store, Store]) -> None:
    one, other = servers
    entries = [await one.workspace(await one.account(name), name) for name in ("ada", "bob")]
    held = [asyncio.Event(), asyncio.Event()]

    async def take(store: Store, number: int) -> None:
        async with store.database.write() as transaction:
            await transaction.workspaces.find(entries[number].workspace.id, None, entries[number].owner)
            held[number].set()
            await held[1 - number].wait()
            await transaction.workspaces.find(entries[1 - number].workspace.id, None, entries[1 - number].owner)

    ended = await asyncio.gather(take(one, 0), take(other, 1), return_exceptions=True)
    refused = [end for end in ended if end is not None]
    assert [(type(end), getattr(end, "code", "")) for end in refused] == [(Temporary, "database_busy")]


async def test_who_is_cancelled_gives_back_what_it_holds_at_once(postgres_store: Store) -> None:
    async def sleep() -> None:
        async with postgres_store.database.write() as transaction:
            await transaction.connection.execute(text("SELECT pg_sleep(4)"))

    sleeping = [asyncio.create_task(sleep()) for _ in range(30)]
    await asyncio.sleep(0.3)
    for task in sleeping:
        task.cancel()
    async with asyncio.timeout(2):
        await asyncio.gather(*sleeping, return_exceptions=True)
        await postgres_store.database.ping()
        await postgres_store.account()


async def test_more_than_there_are_connections_take_turns(postgres_store: Store) -> None:
    await asyncio.gather(*(postgres_store.account(f"user-{number}") for number in range(100)))
    connections = postgres_store.database.connections
    assert isinstance(connections, PostgresConnections)
    async with postgres_store.database.read() as transaction:
        count = await transaction.connection.execute(
            text(
                "SELECT count(*) FROM pg_stat_activity "
                "WHERE application_name = 'fairwater' AND datname = current_database()"
            )
        )
    assert count.scalar_one() <= 10


@pytest.mark.parametrize("value", ["a\0b", "\ud800", "x" * 10_000])
async def test_what_the_database_cannot_hold_is_refused_as_such(postgres_store: Store, value: str) -> None:
    with pytest.raises(Permanent) as refused:
        await postgres_store.account(value)
    assert refused.value.code == "bad_value"
    await postgres_store.account("ada")


async def test_a_database_that_is_not_there_is_named_without_the_password(postgres_url: str) -> None:
    base, _, _ = postgres_url.rpartition("/")
    with pytest.raises(Permanent) as refused:
        await upgrade(base.replace("fairwater@", "fairwater:hush@") + "/nowhere")
    assert refused.value.code == "database_refused"
    assert "nowhere" in refused.value.message
    assert "hush" not in refused.value.message


@pytest.fixture
def guarded(own_postgres: Cluster) -> Cluster:
    """Knows `locked`, who needs a password, and `weak`, who may look and make nothing."""
    rules = own_postgres.folder / "data/pg_hba.conf"
    rules.write_text(f"host all locked 127.0.0.1/32 scram-sha-256\n{rules.read_text()}")
    with psycopg.connect(own_postgres.conninfo("postgres"), autocommit=True) as connection:
        connection.execute("CREATE ROLE locked LOGIN PASSWORD 'right'")
        connection.execute("CREATE ROLE weak LOGIN")
        connection.execute("CREATE ROLE barred")
    own_postgres.stop()
    own_postgres.start()
    return own_postgres


async def test_who_is_refused_is_told_why_without_the_password(guarded: Cluster) -> None:
    url = guarded.create()
    refusals = {
        url.replace("fairwater@", "locked:hush@"): "password authentication failed",
        url.replace("fairwater@", "locked@"): "no password supplied",
        url.replace("fairwater@", "nobody:hush@"): "does not exist",
        url.replace("fairwater@", "barred:hush@"): "is not permitted to log in",
        url.replace("fairwater@", "weak:hush@"): "own the database",
        url.replace("fairwater@", "weak:hush@") + "?nonsense=1": "invalid connection option",
        url.replace("fairwater@", "weak:hush@") + "?sslmode=bogus": "invalid sslmode value",
        url.replace("fairwater@", "weak:hush@") + "?sslmode=require": "does not support SSL",
    }
    for refused_url, why in refusals.items():
        with pytest.raises(Permanent) as refused:
            await upgrade(refused_url, patience_s=1.0)
        assert refused.value.code == "database_refused"
        assert why in refused.value.message
        assert "server.database_url" in refused.value.message
        assert "hush" not in refused.value.message
    assert await upgrade(url.replace("fairwater@", "fairwater:unneeded@"))


async def test_a_server_that_is_not_there_is_waited_for_and_named_without_the_password() -> None:
    with pytest.raises(Temporary) as refused:
        await upgrade("postgresql://fairwater:hush@127.0.0.1:1/nowhere", patience_s=1.5)
    assert refused.value.code == "database_away"
    assert "hush" not in refused.value.message
