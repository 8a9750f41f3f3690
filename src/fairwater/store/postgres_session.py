"""One transaction on PostgreSQL, whose statements run in threads, one after the other, each within a time.

Whoever gives up waiting (an answer overdue, a request cancelled) ends the connection under the thread, so that no
thread is ever lost to a server that does not answer.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any, TypeVar

from sqlalchemy import Connection, CursorResult, Engine, Executable, Insert, text
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from fairwater.domain.failure import Permanent, Temporary
from fairwater.store.postgres_engine import ANSWER_S, away, cut, failure_of

CHANNEL = "fairwater_history"
READ = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY"
WRITE = "BEGIN ISOLATION LEVEL READ COMMITTED"
_TURN = 0x66_61_69_72
"""The advisory lock of who appends to the history: held until the commit, so that lines become visible in order."""
_TAKE_TURN = text(f"SELECT pg_advisory_xact_lock({_TURN}), pg_notify('{CHANNEL}', :server)")
_LONG_S = 600.0
"""For what replaces all there is."""
_ALL_WITHIN_S = 5.0
_T = TypeVar("_T")


class Threaded:
    """A transaction whose statements run in threads. `appended` are the lines of history it has inserted."""

    def __init__(self, engine: Engine, threads: ThreadPoolExecutor, server: str) -> None:
        self.appended: list[int] = []
        self.answer_s = ANSWER_S
        self._engine = engine
        self._threads = threads
        self._server = server
        self._connection: Connection | None = None
        self._info: dict[Any, Any] | None = None
        self._broken = False
        self._given_up = False

    async def execute(self, statement: Executable, parameters: Any = None, /) -> CursorResult[Any]:
        connection = self._connection
        assert connection is not None
        return await self._call(lambda: connection.execute(statement, parameters))

    async def append(self, statement: Insert, parameters: Mapping[str, Any], /) -> None:
        if not self.appended:
            await self.execute(_TAKE_TURN, {"server": self._server})
        result = await self.execute(statement, parameters)
        assert result.inserted_primary_key is not None
        self.appended.append(result.inserted_primary_key[0])

    async def take_all(self, tables: Sequence[str]) -> None:
        self.answer_s = _LONG_S
        for name, limit_s in (("lock_timeout", _ALL_WITHIN_S), ("statement_timeout", _LONG_S)):
            await self.execute(text(f"SET LOCAL {name} = {int(limit_s * 1000)}"))
        await self.execute(text(f"LOCK TABLE {', '.join(tables)} IN ACCESS EXCLUSIVE MODE"))

    async def go_on_counting(self, table: str, column: str) -> None:
        # Not part of the transaction: where that is taken back, a few numbers are never used.
        sequence = f"pg_get_serial_sequence('{table}', '{column}')"
        largest = f"(SELECT coalesce(max({column}), 1) FROM {table})"  # noqa: S608 - names of ours
        await self.execute(text(f"SELECT setval({sequence}, greatest(nextval({sequence}), {largest}))"))

    async def begin(self, first: str) -> None:
        await self._call(lambda: self._begin(first))

    async def commit(self) -> None:
        """Not to be cancelled half-way: whoever is cancelled meanwhile learns of it afterwards."""
        if self._broken:
            # PostgreSQL would answer such a COMMIT by taking all back, and call it done.
            raise RuntimeError("a statement of the transaction has failed, and nobody has said so")
        committing = asyncio.ensure_future(self._call(lambda: self._end("COMMIT")))
        try:
            await asyncio.shield(committing)
        except asyncio.CancelledError:
            await _settled(committing)
            raise

    async def take_back(self) -> None:
        """Takes all back, and never fails: what cannot be told to the database ends with its connection."""
        if self._connection is not None:
            with suppress(Temporary, Permanent, SQLAlchemyError):
                await self._call(lambda: self._end("ROLLBACK"))

    def _begin(self, first: str) -> None:
        """A connection of the pool may have ended since: then, before anything was asked of it, by a new one."""
        for last_try in (False, True):
            connection = self._engine.connect()
            self._info = connection.info
            try:
                connection.exec_driver_sql(first)
            except BaseException as error:
                self._info = None
                connection.close()
                ended = isinstance(error, DBAPIError) and error.connection_invalidated
                if last_try or self._given_up or not ended:
                    raise
            else:
                self._connection = connection
                return

    def _end(self, last: str) -> None:
        connection, self._connection = self._connection, None
        assert connection is not None
        try:
            if not connection.invalidated:
                connection.exec_driver_sql(last)
        except BaseException:
            connection.invalidate()
            raise
        finally:
            # From here on it is somebody else's.
            self._info = None
            connection.close()

    async def _call(self, work: Callable[[], _T]) -> _T:
        """`work` in a thread, for as long as an answer may take."""
        future = asyncio.get_running_loop().run_in_executor(self._threads, work)
        try:
            async with asyncio.timeout(self.answer_s):
                return await asyncio.shield(future)
        except DBAPIError as error:
            failure = failure_of(error)
            if failure is None:
                raise
            raise failure from None
        except UnicodeEncodeError:
            raise Permanent("the database cannot hold this: it is not Unicode text", code="bad_value") from None
        except TimeoutError:
            await self._cut(future)
            raise away(f"no answer for {self.answer_s:g} s") from None
        except asyncio.CancelledError:
            await self._cut(future)
            raise
        finally:
            self._broken = self._broken or not future.done() or future.exception() is not None

    async def _cut(self, future: asyncio.Future[Any]) -> None:
        """Connecting ends by itself (`CONNECT_S`); all else ends with the connection."""
        self._given_up = True
        info = self._info
        if info is not None and not future.done():
            cut(info)
        await _settled(future)


async def _settled(future: asyncio.Future[Any]) -> None:
    """Waits for its end, whoever else is told to end meanwhile."""
    while not future.done():
        with suppress(asyncio.CancelledError):
            await asyncio.wait({future})
