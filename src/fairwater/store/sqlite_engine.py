"""SQLite, as the server uses it: how a connection is set up, and how transactions are taken in turns.

It runs in WAL mode with `synchronous=NORMAL`: a commit is atomic always and survives the end of the process;
after a loss of power the last commits may be missing, never a part of one (https://sqlite.org/pragma.html#pragma_synchronous).

SQLite is called in the event loop's own thread: a start's statements and its commit take 0.2 ms there, and each of
the 24 hops to a driver's thread and back would take 0.1 ms. No commit waits for the disk; what does (a checkpoint)
has a thread (`checkpoint`), and waiting for another process's write is done by asking again, never in SQLite.
"""

from __future__ import annotations

import asyncio
import os
import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import structlog
from sqlalchemy import Connection, CursorResult, Engine, Executable, Insert, RootTransaction, create_engine, event
from sqlalchemy.engine import URL
from sqlalchemy.exc import OperationalError

from fairwater.domain.failure import Permanent, Temporary

T = TypeVar("T")
READ_ONLY = "fairwater_read_only"
"""The execution option of a transaction that writes nothing."""
_WAIT_MS = 10_000
_BUSY_S = 5.0
_ASK_AGAIN_S = 0.005
_CHECKPOINT_EVERY = 256
"""Commits; about 4 MiB of log."""
_PRAGMAS = (
    "PRAGMA busy_timeout=2000",  # while the connection is set up
    "PRAGMA journal_mode=WAL",
    "PRAGMA synchronous=NORMAL",
    "PRAGMA foreign_keys=ON",
    "PRAGMA wal_autocheckpoint=0",
    "PRAGMA cache_size=-16384",
    "PRAGMA temp_store=MEMORY",
)
_log = structlog.get_logger("fairwater.store")


class InPlace:
    """A connection that is used in the event loop's own thread. Its coroutines never suspend."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    async def execute(self, statement: Executable, parameters: Any = None, /) -> CursorResult[Any]:
        return self._connection.execute(statement, parameters)

    async def append(self, statement: Insert, parameters: Mapping[str, Any], /) -> None:
        """One writes at a time: what is inserted later is seen later."""
        self._connection.execute(statement, parameters)

    async def take_all(self, tables: Sequence[str]) -> None:
        """Who writes has all of it."""

    async def go_on_counting(self, table: str, column: str) -> None:
        """AUTOINCREMENT counts on from the largest ever there, also from one that was given
        (https://sqlite.org/autoinc.html)."""


class SqliteConnections:
    """Implements `engine.Connections`: any number read, one writes, each from a consistent view."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._reading_engine = engine.execution_options(**{READ_ONLY: True})
        self._turn = asyncio.Lock()
        self._unmoved = 0
        self.checkpoint: asyncio.Task[None] | None = None

    @asynccontextmanager
    async def read(self) -> AsyncIterator[InPlace]:
        with self._reading_engine.connect() as connection, connection.begin():
            yield InPlace(connection)

    @asynccontextmanager
    async def write(self) -> AsyncIterator[InPlace]:
        async with self._turn:
            with self._engine.connect() as connection, await _begin_to_write(connection):
                yield InPlace(connection)
        self._count_commit()

    async def reading(self, work: Callable[[InPlace], Awaitable[T]]) -> T:
        async with self.read() as connection:
            return await work(connection)

    async def writing(self, work: Callable[[InPlace], Awaitable[T]]) -> T:
        async with self.write() as connection:
            return await work(connection)

    async def first(self, statement: Executable, parameters: Any = None, /) -> Any:
        async with self.read() as connection:
            return (await connection.execute(statement, parameters)).first()

    async def close(self) -> None:
        if self.checkpoint is not None:
            await self.checkpoint
        self._engine.dispose()

    def _count_commit(self) -> None:
        self._unmoved += 1
        if self._unmoved >= _CHECKPOINT_EVERY and (self.checkpoint is None or self.checkpoint.done()):
            self._unmoved = 0
            self.checkpoint = asyncio.create_task(self._move())

    async def _move(self) -> None:
        try:
            await asyncio.to_thread(checkpoint, self._engine)
        except sqlite3.Error as error:
            # Nothing is lost: the log stays as it is, and is tried again after as many commits.
            _log.warning("checkpoint_failed", reason=str(error))


def open_engine(url: URL, *, waits: bool) -> Engine:
    """Raises Permanent: `no_data_folder`, where the file cannot be made."""
    path = Path(str(url.database))
    try:
        # WAL and shared memory take the mode of the main file.
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
    except OSError as error:
        raise Permanent(
            f"the database {path} cannot be opened: {error.strerror}; make its folder, writable for the server's user",
            code="no_data_folder",
        ) from None
    # Waiting for a free connection would stop the event loop, and whoever could give one back with it.
    engine = create_engine(url, pool_size=4, max_overflow=-1, pool_reset_on_return=None, hide_parameters=True)
    event.listen(engine, "connect", partial(_prepare, _WAIT_MS if waits else 0))
    event.listen(engine, "begin", _begin)
    return engine


def checkpoint(engine: Engine) -> None:
    """Moves what was written from the log into the database, beside readers and writers; to be called in a thread."""
    connection = sqlite3.connect(str(engine.url.database))
    try:
        connection.execute("PRAGMA wal_checkpoint(PASSIVE)")
    finally:
        connection.close()


def _prepare(busy_timeout_ms: int, connection: Any, _record: object) -> None:
    # The driver must not begin transactions by itself: it would do so late, and never for a change of tables.
    connection.isolation_level = None
    cursor = connection.cursor()
    for pragma in (*_PRAGMAS, f"PRAGMA busy_timeout={busy_timeout_ms}"):
        cursor.execute(pragma)
    cursor.close()


def _begin(connection: Connection) -> None:
    # IMMEDIATE takes the right to write at once: a transaction that first reads and then writes could else fail as
    # busy, without waiting, because another wrote in between.
    read_only = connection.get_execution_options().get(READ_ONLY)
    connection.exec_driver_sql("BEGIN" if read_only else "BEGIN IMMEDIATE")


async def _begin_to_write(connection: Connection) -> RootTransaction:
    """Begins to write once no other process does. Raises Temporary: `database_busy`, after a while."""
    loop = asyncio.get_running_loop()
    give_up = loop.time() + _BUSY_S
    while True:
        try:
            return connection.begin()
        except OperationalError as error:
            if "locked" not in str(error.orig):
                raise
            if loop.time() >= give_up:
                raise Temporary(
                    f"another process has been writing to the database for {_BUSY_S:g} s: try again in a moment",
                    code="database_busy",
                ) from None
        await asyncio.sleep(_ASK_AGAIN_S)
