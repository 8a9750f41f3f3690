"""Tells those who wait that something was committed. Carries no events: whoever is told reads the rows after its last.

So nothing is lost when somebody reads slowly, and nothing has to be kept for them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from fairwater.domain.ids import WorkspaceId
from fairwater.domain.workspaces.run import Progress
from fairwater.ports.catalogue import Committed

_PROGRESS_KEPT = 1024


class Subscription:
    """One who waits. `progress` holds the newest of each workspace since it was last taken, and no more than that."""

    def __init__(self) -> None:
        self._news = asyncio.Event()
        self._progress: dict[WorkspaceId, Progress | None] = {}

    async def wait(self) -> None:
        await self._news.wait()

    def take_progress(self) -> dict[WorkspaceId, Progress | None]:
        """To be called before the rows are read, so that what is told in between is not missed."""
        self._news.clear()
        taken, self._progress = self._progress, {}
        return taken

    def tell(self, progress: tuple[WorkspaceId, Progress | None] | None = None) -> None:
        if progress is not None and (progress[0] in self._progress or len(self._progress) < _PROGRESS_KEPT):
            self._progress[progress[0]] = progress[1]
        self._news.set()


class EventBus:
    """To be told by the store, from the server's event loop."""

    def __init__(self) -> None:
        self._subscriptions: set[Subscription] = set()
        self._listeners: list[Callable[[Committed], None]] = []

    def listen(self, listener: Callable[[Committed], None]) -> None:
        """`listener` hears of every committed change, at once; it must be quick."""
        self._listeners.append(listener)

    def committed(self, change: Committed) -> None:
        for listener in self._listeners:
            listener(change)
        for subscription in self._subscriptions:
            subscription.tell()

    def progressed(self, workspace: WorkspaceId, progress: Progress | None) -> None:
        for subscription in self._subscriptions:
            subscription.tell((workspace, progress))

    @contextmanager
    def subscribe(self) -> Iterator[Subscription]:
        subscription = Subscription()
        self._subscriptions.add(subscription)
        try:
            yield subscription
        finally:
            self._subscriptions.discard(subscription)
