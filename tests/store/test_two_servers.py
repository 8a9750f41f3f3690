"""Two server processes on one PostgreSQL, and one node: each run is begun once, whichever server is killed."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import psycopg
import pytest
from tests.loops.scripted_agent import Script, ScriptedAgent
from tests.server.tiny_agent import TinyAgent
from tests.servers.fairwater_server import ServerProcess, server_process

from fairwater.node.api.app import create_agent_app
from fairwater.serving.serve import serve

pytestmark = pytest.mark.long

TAKEN_OVER_WITHIN_S = 12.0


class WallClock:
    def now(self) -> datetime:
        return datetime.now(UTC)


@dataclass
class Pair:
    """`folder` is where the servers have theirs; `agent`, the node they share."""

    url: str
    folder: Path
    agent: ScriptedAgent
    stack: ExitStack
    servers: dict[str, ServerProcess]

    async def start(self, name: str) -> ServerProcess:
        opened = server_process(self.folder / name, self.url, node_socket=self.folder / "node.sock")
        self.servers[name] = await asyncio.to_thread(self.stack.enter_context, opened)
        return self.servers[name]

    def holder(self) -> int:
        """The process that holds the lease, 0 for none."""
        with psycopg.connect(self.url) as connection:
            row = connection.execute("SELECT holder FROM leases WHERE name = 'workspaces'").fetchone()
        return int(row[0].split(":")[1]) if row and row[0] else 0

    async def until(self, what: Callable[[], bool], within_s: float) -> float:
        """How long it took until `what` is so, in seconds."""
        began = time.monotonic()
        async with asyncio.timeout(within_s):
            while not await asyncio.to_thread(what):  # noqa: ASYNC110 - another process's state tells nobody
                await asyncio.sleep(0.05)
        return time.monotonic() - began

    def split(self) -> tuple[ServerProcess, ServerProcess]:
        """The one that holds the lease, and the other."""
        holder = self.holder()
        mine = [server for server in self.servers.values() if server.process.pid == holder]
        return mine[0], next(server for server in self.servers.values() if server.process.pid != holder)


@pytest.fixture
async def pair(postgres_url: str, tmp_path: Path) -> AsyncIterator[Pair]:
    agent = ScriptedAgent(WallClock(), Script(start_s=0.1, init_s=0.1, stop_s=0.1))
    tiny, stop = TinyAgent(), asyncio.Event()
    serving = asyncio.create_task(
        serve(create_agent_app(agent, tiny, tiny.facts), unix_socket=tmp_path / "node.sock", stop=stop)
    )
    with ExitStack() as stack:
        made = Pair(postgres_url, tmp_path, agent, stack, {})
        await made.start("one")
        await made.start("other")
        yield made
        await asyncio.to_thread(stack.close)
    stop.set()
    await serving
    await agent.close()


def once_each(agent: ScriptedAgent) -> bool:
    return max(Counter(agent.begun).values(), default=0) == 1


async def test_each_run_is_begun_once_and_both_servers_show_it(pair: Pair) -> None:
    one, other = pair.servers.values()
    for number in range(10):
        await asyncio.to_thread((one, other)[number % 2].create, f"repo-{number}")
    for server in (one, other):
        await pair.until(lambda server=server: set(server.phases().values()) == {"running"}, 20)  # type: ignore[misc]
    assert len(pair.agent.begun) == 10
    assert once_each(pair.agent)


@pytest.mark.parametrize("how", ["killed", "ended"])
async def test_another_server_takes_over_from_one_that_is_gone(pair: Pair, how: str) -> None:
    await pair.until(lambda: pair.holder() != 0, 10)
    holder, other = pair.split()
    await asyncio.to_thread(holder.create, "before")
    await pair.until(lambda: other.phases() == {"before": "running"}, 10)
    for number in range(5):
        await asyncio.to_thread(holder.create, f"repo-{number}")
    if how == "killed":
        holder.kill()
    else:
        assert await asyncio.to_thread(holder.end) == 0
    await asyncio.to_thread(other.create, "after")
    took_s = await pair.until(lambda: set(other.phases().values()) == {"running"}, TAKEN_OVER_WITHIN_S)
    assert pair.holder() == other.process.pid
    assert len(other.phases()) == len(pair.agent.begun) == 7
    assert once_each(pair.agent)
    if how == "ended":
        assert took_s < 4, "a lease that was given back needs not run out"


async def test_a_server_that_slept_past_its_lease_does_nothing_more(pair: Pair) -> None:
    """Stopped by a debugger, a suspended machine, a long swap: it wakes up and believes to hold the lease."""
    import signal

    await pair.until(lambda: pair.holder() != 0, 10)
    holder, other = pair.split()
    holder.process.send_signal(signal.SIGSTOP)
    try:
        await asyncio.to_thread(other.create, "meanwhile")
        await pair.until(lambda: other.phases() == {"meanwhile": "running"}, TAKEN_OVER_WITHIN_S)
    finally:
        holder.process.send_signal(signal.SIGCONT)
    await asyncio.to_thread(other.create, "later")
    await pair.until(lambda: set(holder.phases().values()) == {"running"}, 10)
    assert pair.holder() == other.process.pid
    assert once_each(pair.agent)
