"""The pool of parked slots: filled ahead of need, handed out one by one, cleared behind their users.

Keeps as many parked as it is told. Decides when a slot is made; refuses to know what it is used for.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Coroutine
from typing import Any

import structlog

from fairwater.domain.failure import Permanent, Temporary
from fairwater.node.init_client import InitClient
from fairwater.node.slots import SLOTS_MAX, Network, Slot, Slots
from fairwater.ports.images import Images

_MAKING_AT_ONCE = 2
_REFILL_AFTER_S = 0.2
_RETRY_S = (1.0, 5.0, 15.0, 60.0)
_REPAIR_EVERY_S = 30.0


class SlotPool:
    """`gone` is called when the first process of a slot that was handed out ends. Call `fill` once adoption is over."""

    def __init__(
        self, slots: Slots, network: Network, images: Images, target: int, image: str, gone: Callable[[Slot], None]
    ) -> None:
        self._slots = slots
        self._network = network
        self._images = images
        self._target = target
        self._image = image
        self._gone = gone
        self._parked: list[Slot] = []
        self._numbers: set[int] = set()
        self._pidfds: dict[int, int] = {}
        self._making = asyncio.Semaphore(_MAKING_AT_ONCE)
        self._tasks: set[asyncio.Task[None]] = set()
        self._wanted = asyncio.Event()
        self._refill: asyncio.TimerHandle | None = None
        self._closed = False
        self._log = structlog.get_logger().bind(part="pool")

    @property
    def parked(self) -> tuple[Slot, ...]:
        return tuple(self._parked)

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

    def park(self, slot: Slot) -> None:
        """Takes a slot of a predecessor's into the pool."""
        self._parked.append(slot)
        self.watch(slot)

    def fill(self) -> None:
        """Begins to keep the pool full."""
        self._spawn(self._keep_full())

    async def take(self, image: str) -> Slot:
        """A slot of `image`: a parked one, or else one made now.

        Raises:
            Permanent: `no_such_image`.
            Temporary: `node_full`, `park_failed`, `probe_failed`.
        """
        for index, slot in enumerate(self._parked):
            if slot.image == image and slot.alive():
                self._refill_soon()
                return self._parked.pop(index)
        await self._images.prepare(image)
        self._log.info("pool_empty", image=image)
        return await self._make(image)

    def _refill_soon(self) -> None:
        """Not at once: making a slot would take processors and kernel locks from the start that has just taken one."""
        if self._refill is None:

            def refill() -> None:
                self._refill = None
                self._wanted.set()

            self._refill = asyncio.get_running_loop().call_later(_REFILL_AFTER_S, refill)

    async def close(self, *, remove_parked: bool) -> None:
        """Stops parking; with `remove_parked`, only what was handed out is left."""
        self._closed = True
        if self._refill is not None:
            self._refill.cancel()
        self._wanted.set()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for number in list(self._pidfds):
            self.unwatch(number)
        if remove_parked:
            for slot in self._parked:
                await asyncio.to_thread(self._slots.clear, slot.number)
            self._parked.clear()

    def clear(self, number: int) -> None:
        """Clears a slot behind the caller; its number is free afterwards."""

        async def clear() -> None:
            try:
                await asyncio.to_thread(self._slots.clear, number)
                self._numbers.discard(number)
            except Exception:  # noqa: BLE001 - the number stays taken; the next start of the agent clears it
                self._log.exception("slot_not_cleared", slot=number)

        self._spawn(clear())

    def watch(self, slot: Slot) -> None:
        """Notices, without polling, when the slot's first process ends."""
        loop = asyncio.get_running_loop()
        try:
            pidfd = os.pidfd_open(slot.pid)
        except ProcessLookupError:
            loop.call_soon(self._ended, slot)
            return
        self._pidfds[slot.number] = pidfd
        loop.add_reader(pidfd, self._ended, slot)

    def unwatch(self, number: int) -> None:
        pidfd = self._pidfds.pop(number, None)
        if pidfd is not None:
            asyncio.get_running_loop().remove_reader(pidfd)
            os.close(pidfd)

    def _ended(self, slot: Slot) -> None:
        self.unwatch(slot.number)
        if slot in self._parked:
            self._parked.remove(slot)
            self.clear(slot.number)
            self._wanted.set()
        else:
            self._gone(slot)

    async def _make(self, image: str) -> Slot:
        async with self._making:
            number = self._free_number()
            self._numbers.add(number)
            try:
                root = await self._images.prepare(image)
                slot = await asyncio.to_thread(self._slots.park, number, root)
                await InitClient(slot.control).hello()
            except BaseException:
                self.clear(number)
                raise
        self.watch(slot)
        return slot

    def _free_number(self) -> int:
        for number in range(SLOTS_MAX):
            if number not in self._numbers:
                return number
        raise Temporary(f"all {SLOTS_MAX} slots of this node are taken: stop a workspace", code="node_full", delay_s=5)

    async def _keep_full(self) -> None:
        """Fills the pool whenever it is short; backs off while slots cannot be made."""
        failures = 0
        while not self._closed:
            self._wanted.clear()
            delay_s = _REPAIR_EVERY_S
            short = self._target - len(self._parked)
            if short > 0:
                failure = await self._make_some(min(short, _MAKING_AT_ONCE))
                if failure is None:
                    failures = 0
                    continue
                self._log.warning("parking_delayed", reason=str(failure), kind=type(failure).__name__)
                delay_s = _RETRY_S[min(failures, len(_RETRY_S) - 1)]
                failures += 1
            try:
                await asyncio.wait_for(self._wanted.wait(), delay_s)
            except TimeoutError:
                await self._repair_network()

    async def _make_some(self, count: int) -> BaseException | None:
        """Parks `count` slots; why none could be, where none could."""
        made = await asyncio.gather(*(self._make(self._image) for _ in range(count)), return_exceptions=True)
        self._parked.extend(slot for slot in made if isinstance(slot, Slot))
        failed = [error for error in made if isinstance(error, BaseException)]
        return failed[0] if len(failed) == count else None

    async def _repair_network(self) -> None:
        """Somebody else may have flushed the machine's rules; nobody tells."""
        try:
            await asyncio.to_thread(self._network.prepare)
        except (Temporary, Permanent) as failure:
            self._log.warning("network_not_prepared", reason=failure.message)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
