"""A backup of the database while servers run, and its restoration: logical, so that it goes from SQLite to PostgreSQL
and back. Secrets in it stay sealed; whoever restores it needs the master key too.

A restoration checks everything first and then replaces everything in one transaction, in which every workspace is set
to what its node says of it (`domain.workspaces.restored`): nodes have gone on since the backup was made.
"""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from datetime import datetime
from typing import IO, Any

from sqlalchemy import Table, delete, insert, select, tuple_

from fairwater.domain.failure import Permanent, Temporary
from fairwater.domain.ids import WorkspaceId
from fairwater.domain.workspaces.restored import after_restore
from fairwater.domain.workspaces.run import RunFacts, RunState
from fairwater.domain.workspaces.workspace import Event, Phase
from fairwater.ports.database import Restored
from fairwater.store.backup_format import TABLES, BackupWriter, check, read
from fairwater.store.database import SqlDatabase
from fairwater.store.engine import Statements
from fairwater.store.life import WITH_DEADLINE, held, put
from fairwater.store.migration import newest_revision
from fairwater.store.schema import WORKSPACES, Row

_BATCH = 500
_CHUNK_BYTES = 64 * 1024
_BYTES_MAX = 8 * 1024**3
_ATTEMPTS = 3


async def backup(database: SqlDatabase, now: datetime) -> AsyncIterator[bytes]:
    """The database as it is at one moment. Read at once into a file without a name, whatever the reader's speed, so
    that no slow reader keeps a view of the database open."""
    with tempfile.TemporaryFile() as file:
        writer = BackupWriter(file, newest_revision(), now)
        async with database.read() as transaction:
            for table in TABLES:
                writer.table(table)
                async for rows in _batches(transaction.connection, table):
                    writer.rows(table, rows)
                    await asyncio.sleep(0)  # others go on meanwhile
        writer.close()
        file.seek(0)
        while chunk := file.read(_CHUNK_BYTES):
            yield chunk


async def restore(
    database: SqlDatabase,
    chunks: AsyncIterator[bytes],
    nodes: Callable[[], Awaitable[Sequence[RunFacts]]],
    now: datetime,
) -> Restored:
    """Replaces all that is in the database by a backup. `nodes` says what every node knows of its runs; where it
    cannot, nothing is changed. A run of a workspace that the backup does not know is left alone, and told.

    Raises:
        Permanent: `bad_backup`, `newer_backup`, `backup_too_large`.
        Temporary: those of `nodes` and of the database.
    """
    with tempfile.TemporaryFile() as file:
        size = 0
        async for chunk in chunks:
            size += len(chunk)
            if size > _BYTES_MAX:
                raise Permanent(f"a backup of more than {_BYTES_MAX >> 30} GiB is not taken", code="backup_too_large")
            file.write(chunk)
        counts = await asyncio.to_thread(check, file, newest_revision())
        for attempt in range(1, _ATTEMPTS + 1):
            try:
                unknown = await _replace(database, file, nodes, now)
                break
            except Temporary as failure:
                # Others were in the middle of what they do.
                if attempt == _ATTEMPTS or failure.code != "database_busy":
                    raise
    database.seen.progress.clear()
    database.seen.setups.clear()
    return Restored(counts, unknown)


async def _replace(
    database: SqlDatabase, file: IO[bytes], nodes: Callable[[], Awaitable[Sequence[RunFacts]]], now: datetime
) -> tuple[WorkspaceId, ...]:
    """The workspaces with a run that is now unknown here."""
    async with database.write() as transaction:
        connection = transaction.connection
        await connection.take_all([table.name for table in Row.metadata.sorted_tables])
        # Only now: nobody can begin a run any more of which this would not know.
        known = {facts.workspace: facts for facts in await nodes()}
        for table in reversed(Row.metadata.sorted_tables):
            if table in TABLES or table.name == "login_codes":
                await connection.execute(delete(table))
        for batch in read(file, newest_revision(), _BATCH):
            await connection.execute(insert(batch.table), list(batch.rows))
            await asyncio.sleep(0)
        await connection.go_on_counting("history", "sequence")
        for row in (await connection.execute(WITH_DEADLINE.order_by(WORKSPACES.c.id))).all():
            before = held(row)
            after = after_restore(before.workspace, known.pop(before.workspace.id, None), now)
            if after is not before.workspace:
                event = Event.DELETE if after.phase is Phase.DELETED else Event.RELEASED
                await put(connection, before, after, event, now, database.deadlines)
    return tuple(sorted(key for key, facts in known.items() if facts.state is not RunState.ENDED))


async def _batches(connection: Statements, table: Table) -> AsyncIterator[Sequence[Any]]:
    """By the primary key, so that each batch is found at once and none is kept in memory by the database."""
    key = tuple(table.primary_key.columns)
    positions = [list(table.columns).index(column) for column in key]
    query = select(table).order_by(*key).limit(_BATCH)
    rows = (await connection.execute(query)).all()
    while rows:
        yield rows
        if len(rows) < _BATCH:
            return
        last = [rows[-1][position] for position in positions]
        after = key[0] > last[0] if len(key) == 1 else tuple_(*key) > tuple_(*last)
        rows = (await connection.execute(query.where(after))).all()
