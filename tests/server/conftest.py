"""A server in this process: the real store on a database in a temporary folder, a made-up clock and a tiny agent."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2
import pytest
from starlette.types import ASGIApp, Receive, Scope, Send

from fairwater.domain.abuse.rate import StartLimit
from fairwater.domain.ids import WorkspaceId
from fairwater.domain.workspaces.classes import STANDARD, XL
from fairwater.domain.workspaces.deadlines import DeadlinePolicy
from fairwater.domain.workspaces.workspace import Event
from fairwater.ports.accounts import Account, Role
from fairwater.server.app import create_app
from fairwater.server.authentication import new_secret
from fairwater.server.bus import EventBus
from fairwater.server.options import ServerOptions
from fairwater.store.database import SqlDatabase
from fairwater.store.migration import upgrade
from fairwater.store.records import SqlWorkspaceRecords
from fairwater.store.vault import Vault

from .tiny_agent import HandClock, TinyAgent, TinyCopies

API = "/api/v1"
VAULT = Vault([bytes(range(32))])


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
    copies: TinyCopies
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
        copies = TinyCopies()
        settings = ServerOptions(**({"start_limit": StartLimit(interval_s=0, burst=1, parallel=1000)} | options))
        database = SqlDatabase.open(url, DeadlinePolicy(), bus.committed, VAULT)
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
            backup=copies.backup,
            restore=copies.restore,
        )
        worlds.append(World(app, database, records, bus, agent, clock, woken, copies))
        return worlds[-1]

    yield make
    for world in worlds:
        for client in world.clients:
            await client.aclose()
        await world.database.close()


@pytest.fixture
async def world(make_world: MakeWorld) -> World:
    return await make_world()
