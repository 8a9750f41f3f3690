"""Brings a database's tables to what this version of Fairwater knows. Decides nothing about the tables themselves.

A migration first only adds (a server of the version before runs on the result), and a version later takes away what
nobody uses any more. Each says in `oldest_server` which servers may run on what it leaves; the upgrade writes that into
the database, where a server reads it that does not know the migration itself.
"""

from __future__ import annotations

import asyncio
from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, delete, insert, inspect, select
from sqlalchemy.exc import DatabaseError

from fairwater.domain.failure import Permanent
from fairwater.store.engine import open_engine
from fairwater.store.schema import CompatibilityRow

_BUSY_TIMEOUT_MS = 10_000
_SCRIPTS = Path(__file__).parent / "migrations"


async def upgrade(url: str) -> str:
    """Upgrades the database in one transaction, so that two servers starting at once do it once; returns its revision.

    In a thread of its own, where it may wait. A database that a newer version has written, and that says of itself that
    this version may run on it, is left as it is.

    Raises:
        Permanent: `newer_database`, when a newer Fairwater has changed it too far; `not_a_database`; those of
            `open_engine`.
    """
    return await asyncio.to_thread(_open_and_upgrade, url)


def _open_and_upgrade(url: str) -> str:
    engine = open_engine(url, _BUSY_TIMEOUT_MS)
    try:
        with engine.begin() as connection:
            return _upgrade(connection)
    except DatabaseError as error:
        if "file is not a database" in str(error.orig):
            raise Permanent(
                f"{engine.url.database} is not a database; move it away or name another", code="not_a_database"
            ) from None
        raise
    finally:
        engine.dispose()


def _upgrade(connection: Connection) -> str:
    config = Config()
    config.set_main_option("script_location", str(_SCRIPTS).replace("%", "%%"))
    config.attributes["connection"] = connection
    scripts = ScriptDirectory.from_config(config)
    known = {revision.revision for revision in scripts.walk_revisions()}
    head = scripts.get_current_head()
    assert head is not None
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
