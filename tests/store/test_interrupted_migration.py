"""An upgrade that ends half-way has changed nothing, and the next one does all of it."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys

import pytest
from alembic import command
from alembic.config import Config
from sqlalchemy import inspect, text

from fairwater.store import migration
from fairwater.store.engine import open_engine
from fairwater.store.migration import newest_revision, upgrade

INTERRUPTED = """
import asyncio, os, signal, sys
from sqlalchemy import Engine, event
from fairwater.store.migration import upgrade

@event.listens_for(Engine, "before_cursor_execute")
def before(connection, cursor, statement, parameters, context, executemany):
    if sys.argv[2] in statement:
        if sys.argv[3] == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        raise OSError("the disk is gone")

asyncio.run(upgrade(sys.argv[1]))
"""


def at_revision(url: str, revision: str) -> None:
    """Tables of an earlier version, with something in them."""
    config = Config()
    config.set_main_option("script_location", str(migration._SCRIPTS))
    engine = open_engine(url, waits=True)
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, revision)
        connection.execute(text("INSERT INTO organisations VALUES ('o1', 'default', '2022-04-11 08:00:00')"))
    engine.dispose()


def found(url: str) -> tuple[str, set[str], set[str], int]:
    """The revision, the tables, the columns of workspaces, and how many organisations there are."""
    engine = open_engine(url, waits=True)
    with engine.begin() as connection:
        revision = connection.execute(text("SELECT version_num FROM alembic_version")).scalar_one()
        columns = {column["name"] for column in inspect(connection).get_columns("workspaces")}
        count = connection.execute(text("SELECT count(*) FROM organisations")).scalar_one()
        tables = set(inspect(connection).get_table_names())
    engine.dispose()
    return revision, tables, columns, count


@pytest.mark.parametrize("how", ["killed", "failed"])
@pytest.mark.parametrize("at", ["CREATE TABLE leases", "UPDATE alembic_version", "INSERT INTO schema_compatibility"])
async def test_an_interrupted_upgrade_leaves_the_database_as_it_was(empty_url: str, at: str, how: str) -> None:
    at_revision(empty_url, "0002")
    before = found(empty_url)
    ended = await asyncio.to_thread(
        subprocess.run, [sys.executable, "-c", INTERRUPTED, empty_url, at, how], capture_output=True, check=False
    )
    assert ended.returncode == (-signal.SIGKILL if how == "killed" else 1), ended.stderr.decode()
    assert found(empty_url) == before
    assert await upgrade(empty_url) == newest_revision()
    after = found(empty_url)
    assert after[0] == newest_revision()
    assert before[1] < after[1]
    assert before[2] < after[2]
    assert after[3] == 1
