"""Who waits for a slot of which image, what is being made, and which images it did not work with lately."""

from __future__ import annotations

import asyncio
from collections import Counter

from fairwater.node.slot_record import Slot
from fairwater.ports.images import ImageRoot

RETRY_S = (1.0, 5.0, 15.0, 60.0)
"""After how long an image is tried again, when it did not work once, twice, …"""


class SlotDemand:
    """Times are those of the event loop, in seconds."""

    def __init__(self) -> None:
        self._waiting: list[tuple[ImageRoot, asyncio.Future[Slot]]] = []
        self._begun: list[str] = []
        self._failed: dict[str, tuple[int, float]] = {}

    def wait(self, image: ImageRoot, result: asyncio.Future[Slot]) -> None:
        """`result` is to get the next slot of `image` that is made."""
        self._waiting.append((image, result))

    def begin(self, image: ImageRoot) -> None:
        """A slot of `image` is being made."""
        self._begun.append(image.digest)

    def end(self, image: ImageRoot) -> asyncio.Future[Slot] | None:
        """It is made, or could not be; returns who waited for it longest."""
        self._begun.remove(image.digest)
        self._drop_done()
        for pair in self._waiting:
            if pair[0].digest == image.digest:
                self._waiting.remove(pair)
                return pair[1]
        return None

    def under_way(self) -> int:
        return len(self._begun)

    def digests(self) -> tuple[str, ...]:
        """Images of which slots are being made, or waited for."""
        return (*self._begun, *(image.digest for image, _ in self._waiting))

    def for_parking(self) -> Counter[str]:
        """How many are being made that nobody waits for, by image."""
        self._drop_done()
        return Counter(self._begun) - Counter(image.digest for image, _ in self._waiting)

    def unmet(self) -> ImageRoot | None:
        """The image that somebody has waited for longest, and of which none is being made for them."""
        self._drop_done()
        begun = Counter(self._begun)
        for image, _ in self._waiting:
            begun[image.digest] -= 1
            if begun[image.digest] < 0:
                return image
        return None

    def cancel(self) -> None:
        """Nobody will get anything any more."""
        for _, result in self._waiting:
            result.cancel()
        self._waiting.clear()

    def failed(self, digest: str, now: float) -> float:
        """Notes that none could be made; returns after how many seconds to try again."""
        times, _ = self._failed.get(digest, (0, 0.0))
        delay_s = RETRY_S[min(times, len(RETRY_S) - 1)]
        self._failed[digest] = (times + 1, now + delay_s)
        return delay_s

    def worked(self, digest: str) -> None:
        self._failed.pop(digest, None)

    def not_now(self, now: float) -> frozenset[str]:
        """Images that are not to be tried yet."""
        return frozenset(digest for digest, (_, retry_at) in self._failed.items() if retry_at > now)

    def retry_at(self, now: float) -> float:
        """When the next of them is to be tried."""
        return min((at for _, at in self._failed.values() if at > now), default=float("inf"))

    def forget_old(self, now: float) -> None:
        self._failed = {digest: kept for digest, kept in self._failed.items() if kept[1] > now - 2 * RETRY_S[-1]}

    def _drop_done(self) -> None:
        self._waiting = [pair for pair in self._waiting if not pair[1].done()]
