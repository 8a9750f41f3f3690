"""SQLite: its file, its connections, and the others that write to it."""

from __future__ import annotations

import asyncio
import sqlite3
import stat
from pathlib import Path

import pytest

from fairwater.domain.failure import Permanent, Temporary
from fairwater.store import sqlite_engine
from fairwater.store.engine import open_engine
from fairwater.store.migration import upgrade

from .conftest import Store


async def test_a_file_that_is_no_database_is_refused(tmp_path: Path) -> None:
    (tmp_path / "fairwater.db").write_bytes(b"a letter to the editor" * 1000)
    with pytest.raises(Permanent) as refused:
        await upgrade(f"sqlite:///{tmp_path}/fairwater.db")
    assert refused.value.code == "not_a_database"


async def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(Permanent, match="nowhere") as refused:
        await upgrade(f"sqlite:///{tmp_path}/nowhere/fairwater.db")
    assert refused.value.code == "no_data_folder"


async def test_the_database_is_its_owners_alone(sqlite_store: Store, tmp_path: Path) -> None:
    await sqlite_store.account()
    for path in tmp_path.glob("fairwater.db*"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600, path


async def test_connections_are_set_up_as_described(sqlite_store: Store) -> None:
    engine = open_engine(sqlite_store.url)
    with engine.connect() as connection:
        values = {
            name: connection.exec_driver_sql(f"PRAGMA {name}").scalar()
            for name in ("journal_mode", "synchronous", "foreign_keys", "busy_timeout")
        }
    engine.dispose()
    assert values == {"journal_mode": "wal", "synchronous": 1, "foreign_keys": 1, "busy_timeout": 0}


async def test_a_writer_waits_for_another_process_and_then_writes(sqlite_store: Store, tmp_path: Path) -> None:
    other = sqlite3.connect(tmp_path / "fairwater.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    waiting = asyncio.create_task(sqlite_store.account("ada"))
    async with sqlite_store.database.read() as transaction:
        assert await transaction.accounts.named("ada") is None, "readers do not wait"
    assert not waiting.done()
    other.execute("COMMIT")
    other.close()
    assert (await asyncio.wait_for(waiting, 5)).name == "ada"


async def test_a_writer_that_waits_too_long_is_told_to_come_back(
    sqlite_store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite_engine, "_BUSY_S", 0.02)
    other = sqlite3.connect(tmp_path / "fairwater.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(Temporary) as refused:
        await sqlite_store.account("ada")
    assert refused.value.code == "database_busy"
    other.close()
    assert (await sqlite_store.account("ada")).name == "ada"


async def test_the_log_is_moved_into_the_database_behind_the_writers(sqlite_store: Store, tmp_path: Path) -> None:
    for number in range(sqlite_engine._CHECKPOINT_EVERY + 1):
        await sqlite_store.account(f"user-{number}")
    connections = sqlite_store.database.connections
    assert isinstance(connections, sqlite_engine.SqliteConnections)
    assert connections.checkpoint is not None
    await asyncio.wait_for(asyncio.shield(connections.checkpoint), 10)
    with sqlite3.connect(f"file:{tmp_path}/fairwater.db?immutable=1", uri=True) as connection:
        assert connection.execute("SELECT count(*) FROM users").fetchone()[0] >= sqlite_engine._CHECKPOINT_EVERY
    connection.close()
