"""A database in a temporary folder."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import pytest

from fairwater.domain.ids import WorkspaceId
from fairwater.domain.workspaces.classes import STANDARD
from fairwater.domain.workspaces.deadlines import DeadlinePolicy
from fairwater.ports.accounts import Account, Role
from fairwater.ports.catalogue import Committed, Entry, Order
from fairwater.store.database import SqlDatabase
from fairwater.store.migration import upgrade
from fairwater.store.records import SqlWorkspaceRecords

NOW = datetime(2022, 4, 11, 8, 0, tzinfo=UTC)


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

    async def account(self, name: str = "ada") -> Account:
        async with self.database.write() as transaction:
            return await transaction.accounts.add(name, Role.MEMBER, "default", NOW)

    async def workspace(self, owner: Account, name: str = "repo", url: str = "https://example.org/team/repo") -> Entry:
        order = Order(name, url, STANDARD.name, "host", ("sleep", "1"), (("A", "b"),), False)
        key = WorkspaceId(f"w{name:a>11}"[:12])
        async with self.database.write() as transaction:
            return await transaction.workspaces.add(key, owner.id, owner.organisations[0].id, order, NOW)


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[Store]:
    url = f"sqlite:///{tmp_path}/fairwater.db"
    await upgrade(url)
    told: list[Committed] = []
    database = SqlDatabase.open(url, DeadlinePolicy(), told.append)
    progress: list[object] = []
    records = SqlWorkspaceRecords(
        database,
        {STANDARD.name: STANDARD},
        lambda workspace: f"http://{workspace}.ws",
        StillClock(),
        lambda workspace, step: progress.append((workspace, step)),
    )
    yield Store(url, database, records, told, progress)
    await database.close()
