"""Brings a database's tables to what this version of Fairwater knows. Decides nothing about the tables themselves.

A migration first only adds (a server of the version before runs on the result), and a version later takes away what
nobody uses any more. Each says in `oldest_server` which servers may run on what it leaves; the upgrade writes that into
the database, where a server reads it that does not know the migration itself.
"""

from __future__ import annotations

import asyncio
from pathlib import Path

import structlog
from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, delete, insert, inspect, select, text
from sqlalchemy.exc import DBAPIError

from fairwater.domain.failure import Permanent, Temporary
from fairwater.store.engine import open_engine
from fairwater.store.postgres_engine import failure_of, refusal_of
from fairwater.store.schema import CompatibilityRow

_SCRIPTS = Path(__file__).parent / "migrations"
_ONE_AT_A_TIME = text(f"SELECT pg_advisory_xact_lock({0x6D_69_67_72})")
_log = structlog.get_logger("fairwater.store")


async def upgrade(url: str, patience_s: float = 0.0) -> str:
    """Upgrades the database in one transaction, so that two servers starting at once do it once; returns its revision.

    In a thread of its own, where it may wait: for `patience_s` seconds, for a database that is away. A database that a
    newer version has written, and that says of itself that this version may run on it, is left as it is.

    Raises:
        Permanent: `newer_database`, when a newer Fairwater has changed it too far; `not_a_database`;
            `database_refused`; those of `open_engine`.
        Temporary: `database_away`, `database_busy`: not upgraded at all.
    """
    loop = asyncio.get_running_loop()
    give_up = loop.time() + patience_s
    while True:
        try:
            return await asyncio.to_thread(_open_and_upgrade, url)
        except Temporary as failure:
            if loop.time() + failure.delay_s > give_up:
                raise
            _log.warning("database_awaited", reason=failure.message)
            await asyncio.sleep(failure.delay_s)


def _open_and_upgrade(url: str) -> str:
    engine = open_engine(url, waits=True)
    try:
        with engine.begin() as connection:
            if engine.dialect.name == "postgresql":
                connection.execute(_ONE_AT_A_TIME)
            return _upgrade(connection)
    except DBAPIError as error:
        if "file is not a database" in str(error.orig):
            raise Permanent(
                f"{engine.url.database} is not a database; move it away or name another", code="not_a_database"
            ) from None
        failure = refusal_of(error) or failure_of(error) if engine.dialect.name == "postgresql" else None
        if failure is None:
            raise
        raise failure from None
    finally:
        engine.dispose()


def migration_scripts() -> ScriptDirectory:
    """Every migration that this version knows."""
    return ScriptDirectory.from_config(_config())


def newest_revision() -> str:
    """The revision of the tables that this version works with."""
    head = migration_scripts().get_current_head()
    assert head is not None
    return head


def _config() -> Config:
    config = Config()
    config.set_main_option("script_location", str(_SCRIPTS).replace("%", "%%"))
    return config


def _upgrade(connection: Connection) -> str:
    config = _config()
    config.attributes["connection"] = connection
    scripts = migration_scripts()
    known = {revision.revision for revision in scripts.walk_revisions()}
    head = newest_revision()
    current = MigrationContext.configure(connection).get_current_revision()
    if current is not None and current not in known:
        _refuse_unless_compatible(connection, current, head)
        return current
    if current != head:
        command.upgrade(config, "head")
        _write_compatibility(connection, scripts.get_revision(head).module.oldest_server)
    return head


def _refuse_unless_compatible(connection: Connection, current: str, head: str) -> None:
    oldest = None
    if inspect(connection).has_table(CompatibilityRow.__tablename__):
        oldest = connection.execute(select(CompatibilityRow.oldest_server)).scalar()
    # Revisions are numbers of four digits: they compare as text.
    if oldest is None or head < oldest:
        needed = (
            f"needs one that knows {oldest} at least" if oldest else f"does not say who may use it, so needs {current}"
        )
        raise Permanent(
            f"the database has revision {current}, which this version does not know (its newest is {head}), and "
            f"{needed}: a newer Fairwater has written it. Install that version again, or restore a backup made before "
            "it",
            code="newer_database",
        )


def _write_compatibility(connection: Connection, oldest: str) -> None:
    connection.execute(delete(CompatibilityRow))
    connection.execute(insert(CompatibilityRow).values(id=1, oldest_server=oldest))
