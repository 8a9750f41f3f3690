"""One transaction on PostgreSQL that runs as a whole in one thread: many statements for one hop there and back.

Each statement still has its own time, and who gives up waiting ends the connection under the thread, but never once
the commit is on its way.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from typing import Any, TypeVar

from sqlalchemy import Engine, Executable

from fairwater.store.postgres_engine import away
from fairwater.store.postgres_session import Session, settled, telling

T = TypeVar("T")


class AtOnce(Session):
    """`own` learns of the lines of history before they can be seen. `committing`, once the database may have all."""

    def __init__(self, engine: Engine, server: str, own: set[int]) -> None:
        super().__init__(engine, server)
        self.committing = False
        self._own = own
        self._deciding = threading.Lock()
        self._asked = time.monotonic()

    async def run(self, threads: ThreadPoolExecutor, first: str, work: Callable[[AtOnce], Awaitable[T]]) -> T:
        """`work`, which may await nothing but this session, and the commit."""
        return await self._in_thread(threads, lambda: self._whole(first, work))

    async def first(self, threads: ThreadPoolExecutor, statement: Executable, parameters: Any) -> Any:
        """The first row of a statement that reads: a transaction by itself, which needs no other to begin or end it."""
        return await self._in_thread(threads, lambda: self._alone(statement, parameters))

    async def _in_thread(self, threads: ThreadPoolExecutor, all_of_it: Callable[[], Coroutine[Any, Any, T]]) -> T:
        context = copy_context()
        future = asyncio.get_running_loop().run_in_executor(threads, lambda: context.run(_drive, all_of_it()))
        try:
            # With every statement, its time begins anew.
            while not future.done() and (left_s := self._left_s()) > 0:
                await asyncio.wait({future}, timeout=left_s)
        except asyncio.CancelledError:
            self._give_up(even_committing=False)
            await settled(future)
            future.exception()
            raise
        if not future.done():
            self._give_up(even_committing=True)
            await settled(future)
            future.exception()
            raise away(f"no answer for {self.answer_s:g} s")
        return future.result()

    async def _whole(self, first: str, work: Callable[[AtOnce], Awaitable[T]]) -> T:
        try:
            await self.begin(first)
            result = await work(self)
            with self._deciding:
                if self._given_up:
                    raise away("nobody waits for it any more")
                self.committing = True
        except BaseException:
            await self.take_back()
            raise
        self._own.update(self.appended)
        await self.commit()
        return result

    async def _alone(self, statement: Executable, parameters: Any) -> Any:
        try:
            return await self._call(
                lambda: self._connected(lambda connection: connection.execute(statement, parameters).first())
            )
        finally:
            self._give_back()

    async def _call(self, work: Callable[[], T]) -> T:
        self._asked = time.monotonic()
        try:
            with telling():
                return work()
        except BaseException:
            self._broken = True
            raise

    def _give_up(self, *, even_committing: bool) -> None:
        with self._deciding:
            if self.committing and not even_committing:
                return
            self._given_up = True
            self._cut_off()

    def _left_s(self) -> float:
        return self._asked + self.answer_s - time.monotonic()


def _drive(whole: Coroutine[Any, Any, T]) -> T:
    try:
        whole.send(None)
    except StopIteration as end:
        result: T = end.value
        return result
    whole.close()
    raise RuntimeError("a transaction that runs at once has awaited something else")
