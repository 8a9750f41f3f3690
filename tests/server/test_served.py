"""Over a real socket: what only shows there, such as a client that reads slowly or is gone."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx2
import pytest
from structlog.testing import capture_logs
from websockets.asyncio.client import ClientConnection, unix_connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from fairwater.ports.process import Channel
from fairwater.serving.frames import STARTED
from fairwater.serving.serve import serve

from .conftest import API, World
from .tiny_agent import ScriptedProcess

CHUNK = b"x" * 65536
BOUND_S = 10.0


@dataclass
class Torrent(ScriptedProcess):
    """Prints without end, and counts."""

    printed: int = 0
    moved: asyncio.Event = field(default_factory=asyncio.Event)

    async def output(self) -> AsyncIterator[tuple[Channel, bytes]]:
        while not self.closed.is_set():
            self.printed += 1
            self.moved.set()
            yield Channel.STDOUT, CHUNK

    async def wait(self) -> int:
        await self.closed.wait()
        return 0

    async def settled(self) -> int:
        """How much was printed once nothing more is, for a while."""
        while True:
            self.moved.clear()
            try:
                await asyncio.wait_for(self.moved.wait(), 0.3)
            except TimeoutError:
                return self.printed


@asynccontextmanager
async def served(world: World, tmp_path: Path) -> AsyncIterator[Path]:
    path, stop, ready = tmp_path / "server.sock", asyncio.Event(), asyncio.Event()
    serving = asyncio.create_task(serve(world.app, unix_socket=path, stop=stop, ready=lambda _: ready.set()))
    try:
        await asyncio.wait_for(ready.wait(), BOUND_S)
        yield path
    finally:
        stop.set()
        await asyncio.wait_for(serving, BOUND_S)


async def running(world: World) -> tuple[str, dict[str, str]]:
    _, token = await world.account("ada")
    made = await world.create(world.client(token))
    return f"{API}/workspaces/{made['id']}/exec", {"Authorization": f"Bearer {token}"}


async def to_its_end(client: ClientConnection) -> None:
    while True:
        await client.recv()


async def test_a_terminal_that_is_not_read_holds_its_command_back(world: World, tmp_path: Path) -> None:
    path, headers = await running(world)
    process = world.agent.process = Torrent([])
    async with served(world, tmp_path) as socket:
        address = f"ws://server{path}"
        connecting = unix_connect(str(socket), address, additional_headers=headers, max_queue=1, close_timeout=0.1)
        async with connecting as client:
            await client.send(json.dumps({"command": ["yes"]}))
            held = await asyncio.wait_for(process.settled(), BOUND_S)
            assert 0 < held * len(CHUNK) < 16 * 1024 * 1024
            assert await client.recv() == STARTED
            for _ in range(held + 10):
                assert await asyncio.wait_for(client.recv(), BOUND_S) == b"\1" + CHUNK
            assert process.printed > held
        await asyncio.wait_for(process.closed.wait(), BOUND_S)


async def test_lines_that_are_not_read_hold_their_command_back(world: World, tmp_path: Path) -> None:
    path, headers = await running(world)
    process = world.agent.process = Torrent([])
    async with served(world, tmp_path) as socket:
        transport = httpx2.AsyncHTTPTransport(uds=str(socket))
        async with httpx2.AsyncClient(transport=transport, base_url="http://server") as client:
            accept = headers | {"Accept": "application/x-ndjson"}
            async with client.stream("POST", path, json={"command": ["yes"]}, headers=accept) as answer:
                assert answer.status_code == 200
                held = await asyncio.wait_for(process.settled(), BOUND_S)
                assert 0 < held * len(CHUNK) < 16 * 1024 * 1024
            await asyncio.wait_for(process.closed.wait(), BOUND_S)


@pytest.mark.parametrize("accept", ["application/json", "application/x-ndjson"])
async def test_a_caller_that_breaks_off_hangs_its_command_up(world: World, tmp_path: Path, accept: str) -> None:
    path, headers = await running(world)
    process = world.agent.process = ScriptedProcess([], until_hung_up=True)
    async with served(world, tmp_path) as socket:
        reader, writer = await asyncio.open_unix_connection(str(socket))
        body = b'{"command": ["sleep"]}'
        head = f"POST {path} HTTP/1.1\r\nHost: x\r\nAuthorization: {headers['Authorization']}\r\nAccept: {accept}\r\n"
        writer.write(f"{head}Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body)
        await asyncio.wait_for(world.agent.asked.wait(), BOUND_S)
        writer.close()
        await asyncio.wait_for(process.closed.wait(), BOUND_S)
        assert reader is not None


async def test_a_stopping_server_ends_terminals_and_hangs_their_commands_up(world: World, tmp_path: Path) -> None:
    path, headers = await running(world)
    world.agent.process = ScriptedProcess([], until_hung_up=True)
    async with served(world, tmp_path) as socket:
        client = await unix_connect(str(socket), f"ws://server{path}", additional_headers=headers)
        await client.send(json.dumps({"command": ["sleep"]}))
        await asyncio.wait_for(world.agent.asked.wait(), BOUND_S)
    with pytest.raises(ConnectionClosed) as closed:
        await asyncio.wait_for(to_its_end(client), BOUND_S)
    assert closed.value.rcvd is not None
    assert closed.value.rcvd.code in {1000, 1012}, "the normal end, or a service that restarts"
    await asyncio.wait_for(world.agent.process.closed.wait(), BOUND_S)


async def test_a_terminal_that_is_refused_is_no_bug_of_the_server(world: World, tmp_path: Path) -> None:
    _, headers = await running(world)
    with capture_logs() as logs:
        async with served(world, tmp_path) as socket:
            with pytest.raises(InvalidStatus) as refused:
                await unix_connect(str(socket), f"ws://server{API}/workspaces/nobodys/exec", additional_headers=headers)
    assert refused.value.response.status_code == 404
    assert not [line for line in logs if line["log_level"] == "error"]
