"""A server in this process: the real store on a database in a temporary folder, a made-up clock and a tiny agent."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx2
import pytest
from starlette.types import ASGIApp, Receive, Scope, Send

from fairwater.domain.abuse.rate import StartLimit
from fairwater.domain.failure import Permanent
from fairwater.domain.ids import RunNumber, WorkspaceId
from fairwater.domain.workspaces.classes import STANDARD, XL
from fairwater.domain.workspaces.deadlines import DeadlinePolicy
from fairwater.domain.workspaces.run import RunFacts, RunState
from fairwater.domain.workspaces.workspace import Event
from fairwater.ports.accounts import Account, Role
from fairwater.ports.agent import Fact, FileEntry, Hello, StartRequest
from fairwater.ports.process import Channel, ExecRequest, TerminalSize
from fairwater.server.app import create_app
from fairwater.server.authentication import new_secret
from fairwater.server.bus import EventBus
from fairwater.server.options import ServerOptions
from fairwater.store.database import SqlDatabase
from fairwater.store.migration import upgrade
from fairwater.store.records import SqlWorkspaceRecords

API = "/api/v1"
START = datetime(2022, 4, 11, 8, 0, tzinfo=UTC)


class HandClock:
    """Time that passes when a test says so."""

    def __init__(self) -> None:
        self.time = START

    def now(self) -> datetime:
        return self.time

    def advance(self, seconds: float) -> None:
        self.time += timedelta(seconds=seconds)


@dataclass
class ScriptedProcess:
    """A command that prints `pieces`, then ends with `status`; `until_hung_up`, not before it is closed."""

    pieces: list[tuple[Channel, bytes]]
    status: int = 0
    until_hung_up: bool = False
    until_input_ends: bool = False
    written: list[bytes] = field(default_factory=list)
    signals: list[str] = field(default_factory=list)
    sizes: list[TerminalSize] = field(default_factory=list)
    closed: asyncio.Event = field(default_factory=asyncio.Event)
    ended_input: asyncio.Event = field(default_factory=asyncio.Event)

    async def output(self) -> AsyncIterator[tuple[Channel, bytes]]:
        for piece in self.pieces:
            yield piece
        if self.until_hung_up:
            await self.closed.wait()
        if self.until_input_ends:
            await self.ended_input.wait()

    async def write(self, data: bytes) -> None:
        self.written.append(data)
        if not data:
            self.ended_input.set()

    async def signal(self, name: str) -> None:
        self.signals.append(name)

    async def resize(self, size: TerminalSize) -> None:
        self.sizes.append(size)

    async def wait(self) -> int:
        if self.until_hung_up:
            await self.closed.wait()
        if self.until_input_ends:
            await self.ended_input.wait()
        return self.status

    async def close(self) -> None:
        self.closed.set()


class TinyAgent:
    """Just enough of a node for the API: files in a dictionary, one scripted command, nothing that runs."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.process = ScriptedProcess([])
        self.requests: list[ExecRequest] = []
        self.asked = asyncio.Event()
        self.failure: Permanent | None = None

    async def hello(self) -> Hello:
        if self.failure is not None:
            raise self.failure
        return Hello(1, "0", "tiny", "boot", "none")

    async def facts(self) -> tuple[Fact, ...]:
        return (Fact("isolation", "missing", "none"),)

    async def runs(self) -> tuple[RunFacts, ...]:
        return ()

    async def start_run(self, workspace: WorkspaceId, request: StartRequest) -> RunFacts:
        return RunFacts(workspace, request.run, RunState.RUNNING, "running", START)

    async def stop_run(self, workspace: WorkspaceId, run: RunNumber, *, force: bool = False) -> RunFacts | None:
        return None

    async def delete_volume(self, workspace: WorkspaceId, run: RunNumber) -> None:
        return None

    async def changes(self) -> AsyncIterator[RunFacts]:
        for facts in await self.runs():
            yield facts

    async def exec(self, workspace: WorkspaceId, run: RunNumber, request: ExecRequest) -> ScriptedProcess:
        if self.failure is not None:
            raise self.failure
        self.requests.append(request)
        self.asked.set()
        return self.process

    async def list_folder(self, workspace: WorkspaceId, path: str) -> tuple[FileEntry, ...]:
        return tuple(FileEntry(name, "file", len(data), 0o644, 0.0) for name, data in sorted(self.files.items()))

    async def read_file(self, workspace: WorkspaceId, path: str) -> AsyncIterator[bytes]:
        if path == "/workspace":
            raise Permanent("it is a folder", code="is_folder")
        if path not in self.files:
            raise Permanent("there is no such file", code="no_such_file")

        async def chunks() -> AsyncIterator[bytes]:
            yield self.files[path]

        return chunks()

    async def write_file(self, workspace: WorkspaceId, path: str, chunks: AsyncIterator[bytes]) -> int:
        self.files[path] = b"".join([chunk async for chunk in chunks])
        return len(self.files[path])

    async def logs(self, workspace: WorkspaceId, run: RunNumber, *, follow: bool = False) -> AsyncIterator[bytes]:
        yield f"run {run} of {workspace}\n".encode()


class FromPeer:
    """The app as seen through a unix socket whose peer has this uid."""

    def __init__(self, app: ASGIApp, uid: int) -> None:
        self._app = app
        self._uid = uid

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        scope["fairwater.peer_uid"] = self._uid
        await self._app(scope, receive, send)


@dataclass
class World:
    app: ASGIApp
    database: SqlDatabase
    records: SqlWorkspaceRecords
    bus: EventBus
    agent: TinyAgent
    clock: HandClock
    woken: list[WorkspaceId]
    clients: list[httpx2.AsyncClient] = field(default_factory=list)

    def client(self, token: str | None = None, uid: int | None = None) -> httpx2.AsyncClient:
        app = self.app if uid is None else FromPeer(self.app, uid)
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        client = httpx2.AsyncClient(
            transport=httpx2.ASGITransport(app=app, raise_app_exceptions=False),
            base_url="http://server",
            headers=headers,
        )
        self.clients.append(client)
        return client

    async def account(self, name: str, role: Role = Role.MEMBER) -> tuple[Account, str]:
        """An account and a token of it."""
        secret, digest = new_secret()
        async with self.database.write() as transaction:
            account = await transaction.accounts.add(name, role, "default", self.clock.now())
            await transaction.tokens.add(account.id, "test", digest, self.clock.now(), None)
        return account, secret

    async def member(self, name: str = "ada", role: Role = Role.MEMBER) -> httpx2.AsyncClient:
        return self.client((await self.account(name, role))[1])

    async def create(self, client: httpx2.AsyncClient, **body: Any) -> dict[str, Any]:
        answer = await client.post(f"{API}/workspaces", json={"context_url": "https://example.org/team/repo"} | body)
        assert answer.status_code == 201, answer.text
        document: dict[str, Any] = answer.json()
        return document

    async def record(self, workspace: str, *events: Event) -> None:
        """What the loop would write of the workspace's current run."""
        for event in events:
            record = await self.records.load(WorkspaceId(workspace))
            assert record is not None
            run = record.workspace.run
            await self.records.record(WorkspaceId(workspace), run, event, f"{event} here", self.clock.now())


MakeWorld = Callable[..., Awaitable[World]]


@pytest.fixture(scope="session")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An upgraded database, to be copied: upgrading takes longer than most tests."""
    path = tmp_path_factory.mktemp("empty") / "fairwater.db"
    asyncio.run(upgrade(f"sqlite:///{path}"))
    return path


@pytest.fixture
async def make_world(tmp_path: Path, empty_database: Path) -> AsyncIterator[MakeWorld]:
    worlds: list[World] = []

    async def make(**options: Any) -> World:
        path = tmp_path / "fairwater.db"
        if not path.exists():
            shutil.copyfile(empty_database, path)
        url = f"sqlite:///{path}"
        bus, clock, agent, woken = EventBus(), HandClock(), TinyAgent(), list[WorkspaceId]()
        settings = ServerOptions(**({"start_limit": StartLimit(interval_s=0, burst=1, parallel=1000)} | options))
        database = SqlDatabase.open(url, DeadlinePolicy(), bus.committed)
        classes = {STANDARD.name: STANDARD, XL.name: XL}
        records = SqlWorkspaceRecords(database, classes, settings.workspace_url, clock, bus.progressed)
        app = create_app(
            database=database,
            wake=woken.append,
            agent=agent,
            access=agent,
            node_facts=agent.facts,
            clock=clock,
            options=settings,
            bus=bus,
        )
        worlds.append(World(app, database, records, bus, agent, clock, woken))
        return worlds[-1]

    yield make
    for world in worlds:
        for client in world.clients:
            await client.aclose()
        await world.database.close()


@pytest.fixture
async def world(make_world: MakeWorld) -> World:
    return await make_world()
