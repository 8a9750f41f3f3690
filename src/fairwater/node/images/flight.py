"""Pulls under way: what several ask for is brought in once, and only so many at a time.

Whoever asks is told how far it is; when the last who asked has gone, the pull ends.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Hashable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from fairwater.domain.workspaces.run import Progress

T = TypeVar("T")
Report = Callable[[Progress], None]


@dataclass(eq=False)
class _Under(Generic[T]):
    """A pull under way, and who waits for it."""

    task: asyncio.Task[T] | None = None
    waiting: list[Report] = field(default_factory=list)
    progress: Progress | None = None

    def report(self, progress: Progress) -> None:
        self.progress = progress
        for tell in self.waiting:
            tell(progress)


class SharedPulls(Generic[T]):
    """At most `at_once` of them."""

    def __init__(self, at_once: int) -> None:
        self._turn = asyncio.Semaphore(at_once)
        self._under: dict[Hashable, _Under[T]] = {}

    async def share(self, key: Hashable, work: Callable[[Report], Awaitable[T]], report: Report) -> T:
        """What `work` leads to, or the work of before with the same `key` that is still under way."""
        under = self._under.get(key)
        if under is None:
            under = self._under[key] = _Under()
            under.task = asyncio.create_task(self._in_turn(under, work))
            under.task.add_done_callback(lambda _: self._forget(key, under))
        assert under.task is not None
        under.waiting.append(report)
        if under.progress is not None:
            report(under.progress)
        try:
            return await asyncio.shield(under.task)
        finally:
            under.waiting.remove(report)
            if not under.waiting and not under.task.done():
                self._forget(key, under)
                under.task.cancel()

    async def close(self) -> None:
        tasks = [under.task for under in self._under.values() if under.task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _in_turn(self, under: _Under[T], work: Callable[[Report], Awaitable[T]]) -> T:
        if self._turn.locked():
            under.report(Progress("waiting for other pulls"))
        async with self._turn:
            return await work(under.report)

    def _forget(self, key: Hashable, under: _Under[T]) -> None:
        if self._under.get(key) is under:
            del self._under[key]
        if under.task is not None and under.task.done() and not under.task.cancelled():
            under.task.exception()  # told to whoever still waits
