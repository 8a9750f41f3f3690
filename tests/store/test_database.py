"""The database itself: upgraded, refused, shared, and whole after a kill."""

from __future__ import annotations

import asyncio
import signal
import sqlite3
import stat
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext

from fairwater.domain.failure import Permanent, Temporary
from fairwater.domain.workspaces.deadlines import DeadlinePolicy
from fairwater.domain.workspaces.workspace import Event, Phase
from fairwater.ports.accounts import Role
from fairwater.store import database as database_module
from fairwater.store.database import SqlDatabase
from fairwater.store.engine import open_engine
from fairwater.store.migration import upgrade
from fairwater.store.schema import Row

from .conftest import NOW, Store


class TakenBack(Exception):
    """Ends a transaction before its end."""


async def test_the_migrations_make_the_tables_that_the_code_knows(store: Store) -> None:
    engine = open_engine(store.url)
    with engine.connect() as connection:
        difference = compare_metadata(MigrationContext.configure(connection), Row.metadata)
    engine.dispose()
    assert difference == []


async def test_an_upgrade_may_be_repeated_and_run_by_two_at_once(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/fairwater.db"
    revisions = await asyncio.gather(upgrade(url), upgrade(url))
    assert set(revisions) == {await upgrade(url)}


async def test_a_newer_database_that_this_version_may_use_is_used(store: Store, tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / "fairwater.db") as connection:
        connection.execute("UPDATE alembic_version SET version_num = '9999'")
    connection.close()
    assert await upgrade(store.url) == "9999"


async def test_a_database_of_a_newer_version_is_refused_and_left_alone(store: Store, tmp_path: Path) -> None:
    await store.account("ada")
    with sqlite3.connect(tmp_path / "fairwater.db") as connection:
        connection.execute("UPDATE alembic_version SET version_num = '9999'")
        connection.execute("UPDATE schema_compatibility SET oldest_server = '9998'")
    connection.close()
    with pytest.raises(Permanent, match="9999") as refused:
        await upgrade(store.url)
    assert refused.value.code == "newer_database"
    async with store.database.read() as transaction:
        assert await transaction.accounts.named("ada") is not None


async def test_a_file_that_is_no_database_is_refused(tmp_path: Path) -> None:
    (tmp_path / "fairwater.db").write_bytes(b"a letter to the editor" * 1000)
    with pytest.raises(Permanent) as refused:
        await upgrade(f"sqlite:///{tmp_path}/fairwater.db")
    assert refused.value.code == "not_a_database"


@pytest.mark.parametrize("url", ["sqlite://", "sqlite:///:memory:", "mysql://x/y", "nonsense"])
async def test_other_databases_are_refused(url: str) -> None:
    with pytest.raises(Permanent) as refused:
        await upgrade(url)
    assert refused.value.code == "bad_database_url"


async def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(Permanent, match="nowhere") as refused:
        await upgrade(f"sqlite:///{tmp_path}/nowhere/fairwater.db")
    assert refused.value.code == "no_data_folder"


async def test_the_database_is_its_owners_alone(store: Store, tmp_path: Path) -> None:
    await store.account()
    for path in tmp_path.glob("fairwater.db*"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600, path


async def test_connections_are_set_up_as_described(store: Store) -> None:
    engine = open_engine(store.url)
    with engine.connect() as connection:
        values = {
            name: connection.exec_driver_sql(f"PRAGMA {name}").scalar()
            for name in ("journal_mode", "synchronous", "foreign_keys", "busy_timeout")
        }
    engine.dispose()
    assert values == {"journal_mode": "wal", "synchronous": 1, "foreign_keys": 1, "busy_timeout": 0}


async def test_what_fails_within_a_transaction_leaves_nothing(store: Store) -> None:
    with suppress(TakenBack):
        async with store.database.write() as transaction:
            await transaction.accounts.add("ada", Role.MEMBER, "default", NOW)
            raise TakenBack
    async with store.database.read() as transaction:
        assert await transaction.accounts.named("ada") is None
    await store.account("ada")


async def test_nothing_is_told_of_a_change_that_was_taken_back(store: Store) -> None:
    entry = await store.workspace(await store.account())
    with suppress(TakenBack):
        async with store.database.write() as transaction:
            await transaction.workspaces.apply(entry, Event.START, "asked for", NOW)
            raise TakenBack
    assert store.told == []


async def test_a_writer_waits_for_another_process_and_then_writes(store: Store, tmp_path: Path) -> None:
    other = sqlite3.connect(tmp_path / "fairwater.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    waiting = asyncio.create_task(store.account("ada"))
    async with store.database.read() as transaction:
        assert await transaction.accounts.named("ada") is None, "readers do not wait"
    assert not waiting.done()
    other.execute("COMMIT")
    other.close()
    assert (await asyncio.wait_for(waiting, 5)).name == "ada"


async def test_a_writer_that_waits_too_long_is_told_to_come_back(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database_module, "_BUSY_S", 0.02)
    other = sqlite3.connect(tmp_path / "fairwater.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(Temporary) as refused:
        await store.account("ada")
    assert refused.value.code == "database_busy"
    other.close()
    assert (await store.account("ada")).name == "ada"


async def test_the_log_is_moved_into_the_database_behind_the_writers(store: Store, tmp_path: Path) -> None:
    for number in range(database_module._CHECKPOINT_EVERY + 1):
        await store.account(f"user-{number}")
    assert store.database._checkpoint is not None
    await asyncio.wait_for(asyncio.shield(store.database._checkpoint), 10)
    with sqlite3.connect(f"file:{tmp_path}/fairwater.db?immutable=1", uri=True) as connection:
        assert connection.execute("SELECT count(*) FROM users").fetchone()[0] >= database_module._CHECKPOINT_EVERY
    connection.close()


KILLED_WITHIN = """
import asyncio, os, signal, sys
from datetime import UTC, datetime
from fairwater.domain.workspaces.deadlines import DeadlinePolicy
from fairwater.domain.workspaces.workspace import Event
from fairwater.ports.accounts import Role
from fairwater.store.database import SqlDatabase

NOW = datetime(2022, 4, 11, 8, tzinfo=UTC)

async def main():
    database = SqlDatabase.open(sys.argv[1], DeadlinePolicy(), lambda change: None)
    async with database.write() as transaction:
        entry = await transaction.workspaces.find("repo", None, sys.argv[2])
        await transaction.workspaces.apply(entry, Event.START, "asked for", NOW)
        await transaction.accounts.add("half", Role.MEMBER, "half", NOW)
        if sys.argv[3] == "before":
            os.kill(os.getpid(), signal.SIGKILL)
    os.kill(os.getpid(), signal.SIGKILL)

asyncio.run(main())
"""


@pytest.mark.parametrize("moment", ["before", "after"])
async def test_a_server_killed_around_a_commit_leaves_all_of_it_or_nothing(store: Store, moment: str) -> None:
    owner = await store.account()
    entry = await store.workspace(owner)
    ended = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-c", KILLED_WITHIN, store.url, owner.id, moment],
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert ended.returncode == -signal.SIGKILL, ended.stderr.decode()
    database = SqlDatabase.open(store.url, DeadlinePolicy(), lambda change: None)
    async with database.read() as transaction:
        found = await transaction.workspaces.find("repo", None, owner.id)
        lines = await transaction.history.after(0, 10, None, entry.workspace.id)
        half = await transaction.accounts.named("half")
    committed = moment == "after"
    assert found.workspace.phase is (Phase.PENDING if committed else Phase.STOPPED)
    assert (found.deadline is not None) is committed
    assert (len(lines) == 1) is committed
    assert (half is not None) is committed
    async with database.write() as transaction:
        await transaction.accounts.add("next", Role.MEMBER, "default", NOW)
    await database.close()


async def test_times_keep_their_zone(store: Store) -> None:
    account = await store.account()
    async with store.database.read() as transaction:
        found = await transaction.accounts.find(account.id)
    assert found is not None
    assert found.created_at == NOW
    assert found.created_at.tzinfo is not None
