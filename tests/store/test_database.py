"""The database itself, of each kind: upgraded, refused, and whole after a kill."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
from contextlib import suppress

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import text

from fairwater.domain.failure import Permanent
from fairwater.domain.workspaces.deadlines import DeadlinePolicy
from fairwater.domain.workspaces.workspace import Event, Phase
from fairwater.ports.accounts import Role
from fairwater.store.database import SqlDatabase
from fairwater.store.engine import open_engine
from fairwater.store.migration import migration_scripts, upgrade
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


async def test_an_upgrade_may_be_repeated_and_run_by_two_at_once(empty_url: str) -> None:
    revisions = await asyncio.gather(upgrade(empty_url), upgrade(empty_url))
    assert set(revisions) == {await upgrade(empty_url)}


def test_every_migration_says_which_servers_may_run_on_what_it_leaves() -> None:
    scripts = list(migration_scripts().walk_revisions())[::-1]
    words = [script.module.oldest_server for script in scripts[1:]]
    assert words == sorted(words), "what an older server needs was taken away and cannot come back"
    for script, word in zip(scripts[1:], words, strict=True):
        assert word <= script.revision


async def write_revision(url: str, revision: str, oldest_server: str | None) -> None:
    """What a newer Fairwater leaves."""
    engine = open_engine(url, waits=True)
    with engine.begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = :revision"), {"revision": revision})
        if oldest_server is None:
            connection.execute(text("DROP TABLE schema_compatibility"))
        else:
            connection.execute(
                text("UPDATE schema_compatibility SET oldest_server = :oldest"), {"oldest": oldest_server}
            )
    engine.dispose()


@pytest.mark.pm(50)
async def test_a_newer_database_that_only_has_more_is_used_as_it_is(store: Store) -> None:
    await write_revision(store.url, "9999", await upgrade(store.url))
    assert await upgrade(store.url) == "9999"
    await store.account("ada")


@pytest.mark.pm(50, sabotage=True)
@pytest.mark.parametrize("oldest_server", ["9998", None])
async def test_a_newer_database_that_lacks_what_this_version_needs_is_refused_and_left_alone(
    store: Store, oldest_server: str | None
) -> None:
    await store.account("ada")
    await write_revision(store.url, "9999", oldest_server)
    with pytest.raises(Permanent, match="9999") as refused:
        await upgrade(store.url)
    assert refused.value.code == "newer_database"
    async with store.database.read() as transaction:
        assert await transaction.accounts.named("ada") is not None


@pytest.mark.parametrize(
    "url",
    [
        "sqlite://",
        "sqlite:///:memory:",
        "mysql://x:hush@y/z",
        "nonsense",
        "postgresql://ada:hush@host",
        "postgresql://ada:hush@host:port/name",
        "postgresql://ada:hush@[::1/name",
        "postgresql://ada:pa@hush@host/name",
    ],
)
async def test_other_databases_are_refused_without_a_word_of_the_password(url: str) -> None:
    with pytest.raises(Permanent) as refused:
        await upgrade(url)
    assert refused.value.code == "bad_database_url"
    assert "hush" not in refused.value.message


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
