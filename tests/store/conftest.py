"""A store on a fresh database, of each kind."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from datetime import UTC, datetime

import pytest
from tests.servers.databases import database_url as database_url
from tests.servers.databases import empty_url as empty_url
from tests.servers.databases import own_postgres as own_postgres
from tests.servers.databases import postgres as postgres
from tests.servers.databases import postgres_url as postgres_url
from tests.servers.databases import sqlite_url as sqlite_url

from fairwater.domain.ids import WorkspaceId
from fairwater.domain.workspaces.classes import STANDARD
from fairwater.domain.workspaces.deadlines import DeadlinePolicy
from fairwater.ports.accounts import Account, Role
from fairwater.ports.catalogue import Committed, Entry, Order
from fairwater.store.database import SqlDatabase
from fairwater.store.records import SqlWorkspaceRecords
from fairwater.store.vault import Vault

NOW = datetime(2022, 4, 11, 8, 0, tzinfo=UTC)
KEY = bytes(range(32))


class StillClock:
    def now(self) -> datetime:
        return NOW


@dataclass
class Store:
    url: str
    database: SqlDatabase
    records: SqlWorkspaceRecords
    told: list[Committed]
    progress: list[object] = field(default_factory=list)
    heard: asyncio.Event = field(default_factory=asyncio.Event)

    async def account(self, name: str = "ada") -> Account:
        async with self.database.write() as transaction:
            return await transaction.accounts.add(name, Role.MEMBER, "default", NOW)

    async def workspace(
        self,
        owner: Account,
        name: str = "repo",
        url: str = "https://example.org/team/repo",
        image_asked: str | None = None,
    ) -> Entry:
        order = Order(
            name, url, STANDARD.name, image_asked or "host", ("sleep", "1"), (("A", "b"),), False, image_asked
        )
        key = WorkspaceId(f"w{name:a>11}"[:12])
        async with self.database.write() as transaction:
            return await transaction.workspaces.add(key, owner.id, owner.organisations[0].id, order, NOW)


def open_store(url: str) -> Store:
    """On an upgraded database."""
    told: list[Committed] = []
    heard = asyncio.Event()

    def tell(change: Committed) -> None:
        told.append(change)
        heard.set()

    database = SqlDatabase.open(url, DeadlinePolicy(), tell, Vault([KEY]))
    progress: list[object] = []
    records = SqlWorkspaceRecords(
        database,
        {STANDARD.name: STANDARD},
        lambda workspace: f"http://{workspace}.ws",
        StillClock(),
        lambda workspace, step: progress.append((workspace, step)),
    )
    return Store(url, database, records, told, progress, heard)


@pytest.fixture
async def store(database_url: str) -> AsyncIterator[Store]:
    opened = open_store(database_url)
    yield opened
    await opened.database.close()


@pytest.fixture
async def sqlite_store(sqlite_url: str) -> AsyncIterator[Store]:
    opened = open_store(sqlite_url)
    yield opened
    await opened.database.close()


@pytest.fixture
async def postgres_store(postgres_url: str) -> AsyncIterator[Store]:
    opened = open_store(postgres_url)
    yield opened
    await opened.database.close()
