"""Streams that end when their reader may no longer read, and fail before an answer has begun where they can."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from typing import Any, Generic, TypeVar

from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

T = TypeVar("T")
_endings: set[asyncio.Task[None]] = set()


class Watched(Generic[T]):
    """The items of `source` until one of `ends` is set. Each waits to be asked for: a slow reader slows the source."""

    def __init__(self, source: AsyncIterator[T], *ends: asyncio.Event | None) -> None:
        self._source = source
        self._ends = [asyncio.ensure_future(end.wait()) for end in ends if end is not None]
        self._next: asyncio.Task[tuple[T] | None] | None = None
        self.ended = False
        """Whether the source has come to its own end."""

    async def begin(self, timeout_s: float) -> None:
        """Waits for the first item, `timeout_s` at most: what fails at once is raised here, and not in an answer."""
        self._next = asyncio.create_task(self._step())
        try:
            await asyncio.wait({self._next}, timeout=timeout_s)
            if self._next.done():
                self._next.result()
        except BaseException:
            await finish(self.close())
            raise

    async def items(self) -> AsyncIterator[T]:
        """To be iterated once. Who stops before its end calls `close`."""
        while True:
            self._next = self._next or asyncio.create_task(self._step())
            await asyncio.wait({self._next, *self._ends}, return_when=asyncio.FIRST_COMPLETED)
            if any(end.done() for end in self._ends):
                return
            item, self._next = self._next.result(), None
            if item is None:
                self.ended = True
                return
            yield item[0]

    async def close(self) -> None:
        for end in self._ends:
            end.cancel()
        waiting, self._next = self._next, None
        if waiting is not None:
            waiting.cancel()
            # What it failed with, nobody is left to be told.
            await asyncio.wait({waiting})
            if not waiting.cancelled():
                waiting.exception()
        close = getattr(self._source, "aclose", None)
        if close is not None:
            await close()

    async def _step(self) -> tuple[T] | None:
        """The next item, wrapped so that the end can be told from it."""
        try:
            return (await anext(self._source),)
        except StopAsyncIteration:
            return None


class ClosingStream(StreamingResponse):
    """A streamed answer that calls `ended` once it is over, however that came about."""

    def __init__(
        self,
        content: AsyncIterator[bytes],
        ended: Callable[[], Coroutine[Any, Any, None]],
        media_type: str,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(content, headers=headers, media_type=media_type)
        self._ended = ended

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            await finish(self._ended())


async def finish(work: Coroutine[Any, Any, None]) -> None:
    """Awaits `work`, which goes on to its end even where the one who waits for it is cancelled."""
    task = asyncio.create_task(work)
    _endings.add(task)
    task.add_done_callback(_endings.discard)
    await asyncio.shield(task)
