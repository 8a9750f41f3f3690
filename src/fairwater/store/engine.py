"""How a connection to the database is set up. Decides nothing about tables.

SQLite runs in WAL mode with `synchronous=NORMAL`: a commit is atomic always and survives the end of the process;
after a loss of power the last commits may be missing, never a part of one (https://sqlite.org/pragma.html#pragma_synchronous).
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, event
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from fairwater.domain.failure import Permanent

READ_ONLY = "fairwater_read_only"
"""The execution option of a transaction that writes nothing."""
_BUSY_TIMEOUT_MS = 5000
_PRAGMAS = (
    "PRAGMA journal_mode=WAL",
    "PRAGMA synchronous=NORMAL",
    "PRAGMA foreign_keys=ON",
    f"PRAGMA busy_timeout={_BUSY_TIMEOUT_MS}",
    "PRAGMA cache_size=-16384",
    "PRAGMA temp_store=MEMORY",
)


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
    return url.set(drivername="sqlite+aiosqlite")


def open_engine(text: str) -> AsyncEngine:
    """An engine for the database at `text`; a new SQLite file can be read by its owner alone.

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
    engine = create_async_engine(url, pool_size=4, max_overflow=4, pool_timeout=10, pool_reset_on_return=None)
    event.listen(engine.sync_engine, "connect", _prepare)
    event.listen(engine.sync_engine, "begin", _begin)
    return engine


def _prepare(connection: Any, _record: object) -> None:
    # The driver must not begin transactions by itself: it would do so late, and never for a change of tables.
    connection.isolation_level = None
    cursor = connection.cursor()
    for pragma in _PRAGMAS:
        cursor.execute(pragma)
    cursor.close()


def _begin(connection: Connection) -> None:
    # IMMEDIATE takes the right to write at once: a transaction that first reads and then writes could else fail as
    # busy, without waiting, because another wrote in between.
    read_only = connection.get_execution_options().get(READ_ONLY)
    connection.exec_driver_sql("BEGIN" if read_only else "BEGIN IMMEDIATE")
