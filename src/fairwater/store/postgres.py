"""Transactions on PostgreSQL: bounded in number and in time, and refused at once while it is away.

Each has a connection of the pool for as long as it lasts, and a thread for each of its statements, or one for all.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, TypeVar

import structlog
from sqlalchemy import Engine, Executable

from fairwater.domain.failure import Permanent, Temporary
from fairwater.store.engine import Statements
from fairwater.store.postgres_at_once import AtOnce
from fairwater.store.postgres_engine import CONNECTIONS
from fairwater.store.postgres_session import READ, WRITE, Threaded

_WAIT_S = 5.0
"""How long to wait for a free connection."""
_PROBE_S = 0.5
T = TypeVar("T")
_log = structlog.get_logger("fairwater.store")


class PostgresConnections:
    """Implements `engine.Connections`. `own` are the lines of history that this server has committed, and `doubt` is
    set where it does not know whether it has: see `listening.py`."""

    def __init__(self, engine: Engine, server: str) -> None:
        self.own: set[int] = set()
        self.doubt = asyncio.Event()
        self._engine = engine
        self._server = server
        self._threads = ThreadPoolExecutor(CONNECTIONS, "database")
        self._free = asyncio.Semaphore(CONNECTIONS)
        self._away: str | None = None
        self._back_at = 0.0
        """In the loop's time; what began before says nothing of the database after it."""
        self._looking: asyncio.Task[None] | None = None

    def read(self) -> AbstractAsyncContextManager[Threaded]:
        return self._transaction(READ)

    def write(self) -> AbstractAsyncContextManager[Threaded]:
        return self._transaction(WRITE)

    async def reading(self, work: Callable[[Statements], Awaitable[T]]) -> T:
        return await self._at_once(READ, work)

    async def writing(self, work: Callable[[Statements], Awaitable[T]]) -> T:
        return await self._at_once(WRITE, work)

    async def first(self, statement: Executable, parameters: Any = None, /) -> Any:
        async with self._place_unless_away():
            return await AtOnce(self._engine, self._server, self.own).first(self._threads, statement, parameters)

    async def close(self) -> None:
        if self._looking is not None:
            self._looking.cancel()
            await asyncio.gather(self._looking, return_exceptions=True)
        await asyncio.to_thread(self._engine.dispose)
        self._threads.shutdown(wait=False, cancel_futures=True)

    @asynccontextmanager
    async def _transaction(self, first: str) -> AsyncIterator[Threaded]:
        async with self._place_unless_away():
            session = Threaded(self._engine, self._threads, self._server)
            try:
                await session.begin(first)
                yield session
            except BaseException:
                await session.take_back()
                raise
            await self._commit(session)

    async def _at_once(self, first: str, work: Callable[[Statements], Awaitable[T]]) -> T:
        async with self._place_unless_away():
            session = AtOnce(self._engine, self._server, self.own)
            try:
                return await session.run(self._threads, first, work)
            except BaseException:
                if session.committing:
                    self._doubt(session.appended)
                raise

    def _refuse_while_away(self) -> None:
        if self._away is not None:
            raise Temporary(self._away, code="database_away", delay_s=1.0)

    async def _commit(self, session: Threaded) -> None:
        self.own.update(session.appended)
        try:
            await session.commit()
        except BaseException:
            self._doubt(session.appended)
            raise

    def _doubt(self, appended: list[int]) -> None:
        """It may be in the database or not: whoever reads the history will see."""
        self.own.difference_update(appended)
        self.doubt.set()

    @asynccontextmanager
    async def _place_unless_away(self) -> AsyncIterator[None]:
        began = asyncio.get_running_loop().time()
        self._refuse_while_away()
        try:
            async with self._place():
                self._refuse_while_away()  # else whoever waited here would find it out anew, each in its own time
                yield
        except Temporary as failure:
            if failure.code == "database_away" and began >= self._back_at:
                self._note_away(failure.message)
            raise

    @asynccontextmanager
    async def _place(self) -> AsyncIterator[None]:
        try:
            async with asyncio.timeout(_WAIT_S):
                await self._free.acquire()
        except TimeoutError:
            raise Temporary(
                f"all {CONNECTIONS} connections to the database have been in use for {_WAIT_S:g} s: try again in a "
                "moment",
                code="database_busy",
            ) from None
        try:
            yield
        finally:
            self._free.release()

    def _note_away(self, message: str) -> None:
        """From now on all are refused at once, until somebody has looked and found the database there."""
        if self._away is None and (self._looking is None or self._looking.done()):
            self._away = message
            _log.warning("database_away", reason=message)
            self._looking = asyncio.create_task(self._look_for_it())

    async def _look_for_it(self) -> None:
        while True:
            session = Threaded(self._engine, self._threads, self._server)
            try:
                async with self._place():
                    try:
                        await session.begin(READ)
                    finally:
                        await session.take_back()
            except (Temporary, Permanent) as failure:
                self._away = failure.message
            except Exception:  # noqa: BLE001 - the loop's edge: it must not be taken for away for ever
                _log.exception("database_probe_failed")
            else:
                break
            await asyncio.sleep(_PROBE_S)
        self._away, self._back_at = None, asyncio.get_running_loop().time()
        _log.info("database_back")
