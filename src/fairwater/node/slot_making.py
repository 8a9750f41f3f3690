"""Slots made and cleared in the background, under numbers of which each is used by one at a time."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Coroutine
from typing import Any

import structlog

from fairwater.domain.failure import Temporary
from fairwater.node.init_client import InitClient
from fairwater.node.slot_record import Slot
from fairwater.node.slots import SLOTS_MAX, Slots
from fairwater.ports.images import ImageRoot


class SlotMaking:
    """Begin with `found`, so that what a predecessor left is known; end with `finish`."""

    def __init__(self, slots: Slots) -> None:
        self._slots = slots
        self._numbers: set[int] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._log = structlog.get_logger().bind(part="slots")

    def taken(self) -> int:
        """How many slot numbers are in use."""
        return len(self._numbers)

    async def found(self) -> tuple[Slot, ...]:
        """What a predecessor left that is whole; the rest is cleared."""
        whole: list[Slot] = []
        for number, slot in await asyncio.to_thread(self._slots.found):
            self._numbers.add(number)
            if slot is None:
                self.clear(number)
            else:
                whole.append(slot)
        return tuple(whole)

    async def make(self, image: ImageRoot) -> Slot:
        """A slot with a waiting container of `image`; about 100 ms.

        Raises:
            Permanent: `bad_image`, `bad_user`.
            Temporary: `node_full`, `park_failed`, `probe_failed`; `image_missing`.
        """
        number = self._free_number()
        self._numbers.add(number)
        try:
            if not await asyncio.to_thread(_is_here, image):
                raise Temporary(
                    f"the image {image.reference} is gone from this node", code="image_missing", delay_s=0.1
                )
            slot = await asyncio.to_thread(self._slots.park, number, image)
            await InitClient(slot.control).hello()
        except BaseException:
            self.clear(number)
            raise
        return slot

    def clear(self, number: int) -> None:
        """Clears a slot behind the caller; its number is free afterwards."""

        async def clear() -> None:
            try:
                await asyncio.to_thread(self._slots.clear, number)
                self._numbers.discard(number)
            except Exception:  # noqa: BLE001 - the number stays taken; the next start of the agent clears it
                self._log.exception("slot_not_cleared", slot=number)

        self.spawn(clear())

    def spawn(self, work: Coroutine[Any, Any, None]) -> None:
        """Does `work` beside the caller; `finish` waits for it."""
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def finish(self) -> None:
        """Waits until nothing is under way, also of what was begun meanwhile."""
        while self._tasks:
            await asyncio.gather(*self._tasks, return_exceptions=True)

    def _free_number(self) -> int:
        for number in range(SLOTS_MAX):
            if number not in self._numbers:
                return number
        raise Temporary(f"all {SLOTS_MAX} slots of this node are taken: stop a workspace", code="node_full", delay_s=5)


def _is_here(image: ImageRoot) -> bool:
    return all(layer.is_dir() for layer in image.layers)


class SlotWatch:
    """Notices, without polling, when the first process of a slot ends, and tells `ended`."""

    def __init__(self, ended: Callable[[Slot], None]) -> None:
        self._ended = ended
        self._pidfds: dict[int, int] = {}

    def watch(self, slot: Slot) -> None:
        loop = asyncio.get_running_loop()
        try:
            pidfd = os.pidfd_open(slot.pid)
        except ProcessLookupError:
            loop.call_soon(self._ended, slot)
            return
        self._pidfds[slot.number] = pidfd
        loop.add_reader(pidfd, self._tell, slot)

    def unwatch(self, number: int) -> None:
        pidfd = self._pidfds.pop(number, None)
        if pidfd is not None:
            asyncio.get_running_loop().remove_reader(pidfd)
            os.close(pidfd)

    def close(self) -> None:
        for number in list(self._pidfds):
            self.unwatch(number)

    def _tell(self, slot: Slot) -> None:
        self.unwatch(slot.number)
        self._ended(slot)
