"""What an earlier holder of the lease still writes is refused, and the history has one order.

Each is shown with the defence taken out too: then the check sees what the defence is for.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any

import pytest
from sqlalchemy import Insert

from fairwater.domain.failure import Temporary
from fairwater.domain.workspaces.classes import STANDARD
from fairwater.domain.workspaces.workspace import Event, Phase
from fairwater.ports.catalogue import Entry
from fairwater.ports.leases import Lease
from fairwater.store.leases import SqlLeases, holds
from fairwater.store.postgres_session import Threaded
from fairwater.store.records import SqlWorkspaceRecords

from .conftest import NOW, StillClock, Store, open_store

NAME = "workspaces"
FOR_S = 600.0
WITHIN_S = 10.0


@dataclass
class Server:
    store: Store
    name: str
    lease: Lease | None = None
    fenced: bool = True

    @property
    def leases(self) -> SqlLeases:
        return SqlLeases(self.store.database, StillClock())

    @property
    def records(self) -> SqlWorkspaceRecords:
        lease = (lambda: self.lease) if self.fenced else None
        classes = {STANDARD.name: STANDARD}
        return SqlWorkspaceRecords(self.store.database, classes, str, StillClock(), lambda workspace, step: None, lease)

    async def take(self) -> None:
        self.lease = await self.leases.acquire(NAME, self.name, FOR_S)
        assert self.lease is not None

    async def happen(self, entry: Entry, *events: Event) -> None:
        for event in events:
            record = await self.records.load(entry.workspace.id)
            assert record is not None
            await self.records.record(entry.workspace.id, record.workspace.run, event, event, NOW)


@pytest.fixture
async def servers(postgres_url: str) -> AsyncIterator[tuple[Server, Server]]:
    """Two; the first holds the lease."""
    old, new = (Server(open_store(postgres_url), name) for name in ("old", "new"))
    await old.take()
    yield old, new
    for server in (old, new):
        await server.store.database.close()


async def taken_over(old: Server, new: Server) -> None:
    """The time of the old one passes without its noticing."""
    assert old.lease is not None
    await new.leases.release(old.lease)
    await new.take()


async def running(old: Server) -> Entry:
    entry = await old.store.workspace(await old.store.account())
    async with old.store.database.write() as transaction:
        entry = await transaction.workspaces.apply(entry, Event.START, "asked for", NOW)
    await old.happen(entry, Event.PLACED, Event.READY)
    return entry


async def write_late(old: Server, new: Server) -> Phase:
    """What becomes of a running workspace when its earlier server, long asleep, says that it has failed."""
    entry = await running(old)
    await taken_over(old, new)
    late = old.records.record(entry.workspace.id, entry.workspace.run, Event.FAIL, "gone", NOW)
    if old.fenced:
        with pytest.raises(Temporary, match="another server"):
            await late
    else:
        await late
    record = await new.records.load(entry.workspace.id)
    assert record is not None
    return record.workspace.phase


async def test_what_an_earlier_holder_writes_is_refused(servers: tuple[Server, Server]) -> None:
    assert await write_late(*servers) is Phase.RUNNING


async def test_without_the_fence_an_earlier_holder_undoes_what_the_next_one_looks_after(
    servers: tuple[Server, Server],
) -> None:
    servers[0].fenced = False
    assert await write_late(*servers) is Phase.STOPPING


async def test_a_volume_is_not_cleared_by_an_earlier_holder(servers: tuple[Server, Server]) -> None:
    old, new = servers
    entry = await running(old)
    await old.happen(entry, Event.DELETE, Event.RELEASED)
    await taken_over(old, new)
    with pytest.raises(Temporary, match="another server"):
        await old.records.cleared(entry.workspace.id)
    assert await new.records.unfinished() == (entry.workspace.id,)
    await new.records.cleared(entry.workspace.id)
    assert await new.records.unfinished() == ()


async def test_the_same_server_in_an_earlier_time_is_an_earlier_holder_too(servers: tuple[Server, Server]) -> None:
    """Only the epoch tells them apart."""
    old, _ = servers
    entry = await running(old)
    stale = old.lease
    assert stale is not None
    await old.leases.release(stale)
    await old.take()
    fresh, old.lease = old.lease, stale
    with pytest.raises(Temporary, match="another server"):
        await old.happen(entry, Event.STOP)
    old.lease = fresh
    await old.happen(entry, Event.STOP)


async def test_nobody_takes_over_in_the_middle_of_a_write(servers: tuple[Server, Server]) -> None:
    old, new = servers
    async with writing(old):
        taking = asyncio.create_task(taken_over(old, new))
        done, _ = await asyncio.wait({taking}, timeout=0.3)
        assert not done
    await asyncio.wait_for(taking, WITHIN_S)
    assert new.lease is not None


async def test_many_writers_do_not_keep_their_server_from_renewing(servers: tuple[Server, Server]) -> None:
    """There is no moment at which none of them writes: the renewal must not wait for one."""
    old, _ = servers
    assert old.lease is not None
    async with AsyncExitStack() as stack:
        for _ in range(3):
            await stack.enter_async_context(writing(old))
        async with asyncio.timeout(1):
            assert await old.leases.renew(old.lease, FOR_S) is not None


@asynccontextmanager
async def writing(server: Server) -> AsyncIterator[None]:
    """In the middle of what a holder writes: it has been seen to be one, and nothing is committed yet."""
    assert server.lease is not None
    async with server.store.database.write() as transaction:
        assert await holds(transaction.connection, server.lease)
        yield


# ---------------------------------------------------------------- the order of the history


async def first_seen(servers: tuple[Server, Server]) -> list[int]:
    """The lines in the order in which a reader, who asks for those after its last one, comes to see them: the first
    line's writer is slow to commit, and the second's is not."""
    old, new = servers
    first = await old.store.workspace(await old.store.account("ada"), "first")
    second = await new.store.workspace(await new.store.account("bob"), "second")
    seen: list[int] = []

    async def read() -> None:
        async with new.store.database.read() as reading:
            lines = await reading.history.after(seen[-1] if seen else 0, 10, None, None)
        seen.extend(line.sequence for line in lines)

    async def start(server: Server, entry: Entry) -> None:
        async with server.store.database.write() as transaction:
            found = await transaction.workspaces.find(entry.workspace.id, None, entry.owner)
            await transaction.workspaces.apply(found, Event.START, "asked for", NOW)

    async with old.store.database.write() as transaction:
        found = await transaction.workspaces.find(first.workspace.id, None, first.owner)
        await transaction.workspaces.apply(found, Event.START, "asked for", NOW)
        starting = asyncio.create_task(start(new, second))
        await asyncio.wait({starting}, timeout=0.3)
        await read()
    await starting
    await read()
    return seen


async def test_a_reader_of_the_history_misses_nothing(servers: tuple[Server, Server]) -> None:
    assert await first_seen(servers) == [1, 2]


async def test_without_turns_a_reader_of_the_history_misses_a_line(
    servers: tuple[Server, Server], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def append(self: Threaded, statement: Insert, parameters: Mapping[str, Any], /) -> None:
        result = await self.execute(statement, parameters)
        assert result.inserted_primary_key is not None
        self.appended.append(result.inserted_primary_key[0])

    monkeypatch.setattr(Threaded, "append", append)
    assert await first_seen(servers) == [2]
