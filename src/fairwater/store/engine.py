"""How a connection to the database is set up, and how the repositories speak to it. Decides nothing about tables.

SQLite runs in WAL mode with `synchronous=NORMAL`: a commit is atomic always and survives the end of the process;
after a loss of power the last commits may be missing, never a part of one (https://sqlite.org/pragma.html#pragma_synchronous).

SQLite is called in the event loop's own thread: a start's six statements and its commit take 0.2 ms there, and each of
the 24 hops to a driver's thread and back would take 0.1 ms. No commit waits for the disk; what does (a checkpoint)
has a thread (`checkpoint`), and waiting for another process's write is done by asking again, never in SQLite.
"""

from __future__ import annotations

import os
import sqlite3
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from sqlalchemy import Connection, CursorResult, Engine, Executable, create_engine, event
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError

from fairwater.domain.failure import Permanent

READ_ONLY = "fairwater_read_only"
"""The execution option of a transaction that writes nothing."""
_PRAGMAS = (
    "PRAGMA busy_timeout=2000",  # while the connection is set up
    "PRAGMA journal_mode=WAL",
    "PRAGMA synchronous=NORMAL",
    "PRAGMA foreign_keys=ON",
    "PRAGMA wal_autocheckpoint=0",
    "PRAGMA cache_size=-16384",
    "PRAGMA temp_store=MEMORY",
)


class Statements(Protocol):
    """What repositories need of a connection: SQLAlchemy's `AsyncConnection`, or `InPlace`."""

    async def execute(self, statement: Executable, parameters: Any = None, /) -> CursorResult[Any]: ...


class InPlace:
    """A connection that is used in the event loop's own thread. Its coroutines never suspend."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    async def execute(self, statement: Executable, parameters: Any = None, /) -> CursorResult[Any]:
        return self._connection.execute(statement, parameters)


def database_url(text: str) -> URL:
    """`text` with the driver that is used for it: `sqlite:///PATH`.

    Raises:
        Permanent: `bad_database_url`.
    """
    try:
        url = make_url(text)
    except ArgumentError:
        raise Permanent(
            f"{text[:80]!r} is not a database URL such as sqlite:////PATH", code="bad_database_url"
        ) from None
    if url.get_backend_name() != "sqlite" or not url.database or url.database == ":memory:":
        raise Permanent(
            f"a database of kind '{url.get_backend_name()}' is not supported; write sqlite:////PATH/TO/FILE",
            code="bad_database_url",
        )
    return url.set(drivername="sqlite+pysqlite")


def open_engine(text: str, busy_timeout_ms: int = 0) -> Engine:
    """An engine for the database at `text`; a new SQLite file can be read by its owner alone.

    With a `busy_timeout_ms`, SQLite itself waits for other writers: only for use in a thread.

    Raises:
        Permanent: `bad_database_url`; `no_data_folder`, where the file cannot be made.
    """
    url = database_url(text)
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
    engine = create_engine(url, pool_size=4, max_overflow=-1, pool_reset_on_return=None)
    event.listen(engine, "connect", partial(_prepare, busy_timeout_ms))
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
