"""How repositories speak to the database, and which kinds of database there are. Decides nothing about tables."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any, Protocol, TypeVar

from sqlalchemy import CursorResult, Engine, Executable, Insert
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError

from fairwater.domain.failure import Permanent
from fairwater.store import postgres_engine, sqlite_engine

T = TypeVar("T")
_KINDS = "sqlite:////PATH/TO/FILE or postgresql://USER@HOST/DATABASE"


class Statements(Protocol):
    """What repositories need of a connection, within one transaction."""

    async def execute(self, statement: Executable, parameters: Any = None, /) -> CursorResult[Any]: ...

    async def append(self, statement: Insert, parameters: Mapping[str, Any], /) -> None:
        """Inserts a line of the history, so that of two lines the first is never seen after the second."""
        ...

    async def take_all(self, tables: Sequence[str]) -> None:
        """Keeps all others out of `tables` until the transaction ends, which may be a while.

        Raises:
            Temporary: `database_busy`, where others do not come to their end.
        """
        ...

    async def go_on_counting(self, table: str, column: str) -> None:
        """What the database gives out next for `column` is more than is there, and than it ever gave out."""
        ...


class Connections(Protocol):
    """Where transactions come from. A block that ends well is committed, any other is taken back."""

    def read(self) -> AbstractAsyncContextManager[Statements]:
        """One consistent view. Raises Temporary: `database_away`, `database_busy`."""
        ...

    def write(self) -> AbstractAsyncContextManager[Statements]:
        """Raises Temporary: `database_away`, `database_busy`."""
        ...

    async def reading(self, work: Callable[[Statements], Awaitable[T]]) -> T:
        """`work` within `read`, possibly in another thread. It must await nothing but its statements."""
        ...

    async def writing(self, work: Callable[[Statements], Awaitable[T]]) -> T:
        """`work` within `write`, likewise."""
        ...

    async def first(self, statement: Executable, parameters: Any = None, /) -> Any:
        """The first row of `statement`, which reads, in a view of its own."""
        ...

    async def close(self) -> None: ...


def database_url(text: str) -> URL:
    """`text` with the driver that is used for it.

    Raises:
        Permanent: `bad_database_url`. Never says more of `text` than its kind: there may be a password in it.
    """
    try:
        url = make_url(text)
    except (ArgumentError, ValueError):
        raise Permanent(
            f"the database URL ({text.partition(':')[0][:20]!r}, …) is not well formed; write {_KINDS}",
            code="bad_database_url",
        ) from None
    if "@" in (url.host or ""):
        raise Permanent(
            "the database URL has an '@' too many: write one of a name or password as %40", code="bad_database_url"
        )
    kind = url.get_backend_name()
    if kind == "sqlite" and url.database and url.database != ":memory:":
        return url.set(drivername="sqlite+pysqlite")
    if kind in {"postgresql", "postgres"} and url.database:
        return url.set(drivername="postgresql+psycopg")
    raise Permanent(
        f"a database of kind '{kind}' is not supported, or the URL names no database; write {_KINDS}",
        code="bad_database_url",
    )


def open_engine(text: str, *, waits: bool = False) -> Engine:
    """An engine for the database at `text`; a new SQLite file can be read by its owner alone.

    With `waits`, it may take a while for others to end, and a change of tables may take long: only for use in a thread.

    Raises:
        Permanent: `bad_database_url`; `no_data_folder`, where SQLite's file cannot be made.
    """
    url = database_url(text)
    if url.get_backend_name() == "sqlite":
        return sqlite_engine.open_engine(url, waits=waits)
    return postgres_engine.open_engine(url, waits=waits)
