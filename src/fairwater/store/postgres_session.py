"""One transaction on PostgreSQL: its statements, one after the other, each within a time.

`Threaded` runs each statement in a thread of its own; `postgres_at_once.AtOnce`, all of them in one.

Whoever gives up waiting (an answer overdue, a request cancelled) ends the connection under the thread, so that no
thread is ever lost to a server that does not answer.
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
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
T = TypeVar("T")


class Session(ABC):
    """The statements of a transaction, wherever they run. `appended` are the lines of history it has inserted."""

    def __init__(self, engine: Engine, server: str) -> None:
        self.appended: list[int] = []
        self.answer_s = ANSWER_S
        self._engine = engine
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
        await self._call(lambda: self._connected(lambda connection: connection.exec_driver_sql(first)))

    async def commit(self) -> None:
        if self._broken:
            await self.take_back()
            # PostgreSQL would answer such a COMMIT by taking all back, and call it done.
            raise RuntimeError("a statement of the transaction has failed, and nobody has said so")
        await self._call(lambda: self._end("COMMIT"))

    async def take_back(self) -> None:
        """Takes all back, and never fails: what cannot be told to the database ends with its connection."""
        if self._connection is not None:
            with suppress(Temporary, Permanent, SQLAlchemyError):
                await self._call(lambda: self._end("ROLLBACK"))

    def _connected(self, ask: Callable[[Connection], T]) -> T:
        """`ask` on the session's connection, to begin with.

        One of the pool may have ended since: then, before anything was asked of it, on a new one.
        """
        for last_try in (False, True):
            connection = self._engine.connect()
            self._info = connection.info
            try:
                answer = ask(connection)
            except BaseException as error:
                self._info = None
                connection.close()
                ended = isinstance(error, DBAPIError) and error.connection_invalidated
                if last_try or self._given_up or not ended:
                    raise
            else:
                self._connection = connection
                return answer
        raise AssertionError("the last try returns or raises")

    def _end(self, last: str) -> None:
        connection = self._connection
        assert connection is not None
        try:
            if not connection.invalidated:
                connection.exec_driver_sql(last)
        except BaseException:
            connection.invalidate()
            raise
        finally:
            self._give_back()

    def _give_back(self) -> None:
        """From here on it is somebody else's."""
        connection, self._connection = self._connection, None
        self._info = None
        if connection is not None:
            connection.close()

    @abstractmethod
    async def _call(self, work: Callable[[], T]) -> T:
        """`work`, for as long as an answer may take. Raises what `telling` raises; what fails is noted as `_broken`."""

    def _cut_off(self) -> None:
        """Connecting ends by itself (`CONNECT_S`); all else ends with the connection."""
        info = self._info
        if info is not None:
            cut(info)


class Threaded(Session):
    """Each statement has a thread while it runs, so that anything may be done in between."""

    def __init__(self, engine: Engine, threads: ThreadPoolExecutor, server: str) -> None:
        super().__init__(engine, server)
        self._threads = threads

    async def commit(self) -> None:
        """Not to be cancelled half-way: whoever is cancelled meanwhile learns of it afterwards."""
        committing = asyncio.ensure_future(super().commit())
        try:
            await asyncio.shield(committing)
        except asyncio.CancelledError:
            await settled(committing)
            raise

    async def _call(self, work: Callable[[], T]) -> T:
        future = asyncio.get_running_loop().run_in_executor(self._threads, work)
        try:
            with telling():
                async with asyncio.timeout(self.answer_s):
                    return await asyncio.shield(future)
        except TimeoutError:
            await self._cut(future)
            raise away(f"no answer for {self.answer_s:g} s") from None
        except asyncio.CancelledError:
            await self._cut(future)
            raise
        finally:
            self._broken = self._broken or not future.done() or future.exception() is not None

    async def _cut(self, future: asyncio.Future[Any]) -> None:
        self._given_up = True
        if not future.done():
            self._cut_off()
        await settled(future)


@contextmanager
def telling() -> Iterator[None]:
    """The driver's errors as what they mean for who asked."""
    try:
        yield
    except DBAPIError as error:
        failure = failure_of(error)
        if failure is None:
            raise
        raise failure from None
    except UnicodeEncodeError:
        raise Permanent("the database cannot hold this: it is not Unicode text", code="bad_value") from None


async def settled(future: asyncio.Future[Any]) -> None:
    """Waits for its end, whoever else is told to end meanwhile."""
    while not future.done():
        with suppress(asyncio.CancelledError):
            await asyncio.wait({future})
