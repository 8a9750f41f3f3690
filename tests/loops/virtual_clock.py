"""The clock port over the running loop's time, which is virtual under `looptime`."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta

BEGAN = datetime(2022, 4, 11, 8, 0, tzinfo=UTC)


class VirtualClock:
    """Stands at `BEGAN` when made, and moves with the loop's time."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._zero = self._loop.time()

    def now(self) -> datetime:
        return BEGAN + timedelta(seconds=self.elapsed_s())

    def elapsed_s(self) -> float:
        # To the millisecond: a timer fires a rounding error before its time.
        return round(self._loop.time() - self._zero, 3)
