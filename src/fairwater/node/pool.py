"""The pool of parked slots: filled ahead of need, handed out one by one, cleared behind their users.

Which images are parked, and how many of each, is planned by `domain.workspaces.parking`; this module does it. Two slots
are made at a time, those that somebody waits for first. Refuses to know what a slot is used for.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import Callable

import structlog

from fairwater.domain.failure import Permanent, Temporary
from fairwater.domain.workspaces.parking import ParkingPlan, ParkingPolicy, plan_parking
from fairwater.node.image_usage import ImageUsage
from fairwater.node.slot_demand import SlotDemand
from fairwater.node.slot_making import SlotMaking, SlotWatch
from fairwater.node.slot_record import LAYOUT, Slot
from fairwater.node.slots import SLOTS_MAX, Network, Slots
from fairwater.ports.images import ImageRoot, Images

_MAKING_AT_ONCE = 2
_REFILL_AFTER_S = 0.2
_TIDY_EVERY_S = 30.0
_AFTER_A_BUG_S = 5.0
_ROOM_KEPT = 8
"""Slot numbers that parked ones leave to others."""


class SlotPool:
    """`gone` is called when the first process of a slot that was handed out ends. Call `fill` once adoption is over."""

    def __init__(
        self,
        slots: Slots,
        network: Network,
        images: Images,
        usage: ImageUsage,
        policy: ParkingPolicy,
        default: str,
        gone: Callable[[Slot], None],
    ) -> None:
        self._slots = slots
        self._network = network
        self._images = images
        self._usage = usage
        self._policy = policy
        self._default_reference = default
        self._gone = gone
        self._making = SlotMaking(slots)
        self._watch = SlotWatch(self._ended)
        self._parked: list[Slot] = []
        self._demand = SlotDemand()
        self._wanted = asyncio.Event()
        self._refill: asyncio.TimerHandle | None = None
        self._closed = False
        self._log = structlog.get_logger().bind(part="pool")
        self.hits = self.misses = 0  # of those taken, how many were parked, and how many not

    @property
    def parked(self) -> tuple[Slot, ...]:
        return tuple(self._parked)

    def digests(self) -> frozenset[str]:
        """Of which images there are parked slots, or are to be at once."""
        return frozenset((*(slot.digest for slot in self._parked), *self._demand.digests()))

    async def found(self) -> tuple[Slot, ...]:
        """What a predecessor left that is whole; the rest is cleared."""
        return await self._making.found()

    def park(self, slot: Slot) -> None:
        """Takes a slot of a predecessor's into the pool, where it is made as this agent makes them."""
        if slot.layout == LAYOUT:
            self._parked.append(slot)
            self.watch(slot)
        else:
            self.clear(slot.number)

    def fill(self) -> None:
        """Begins to keep the pool full."""
        self._making.spawn(self._keep_full())

    def prefer(self, image: ImageRoot) -> None:
        """A start of the image is to come: one is parked at once, where there is none."""
        self._usage.expect_start(image)
        self._demand.worked(image.digest)
        self._wanted.set()

    async def take(self, image: ImageRoot) -> Slot:
        """A slot of `image`: a parked one, or else one made now.

        Raises:
            Permanent: `bad_image`, `bad_user`.
            Temporary: `node_full`, `park_failed`, `probe_failed`, `image_missing`.
        """
        self._usage.note_start(image)
        for index, slot in enumerate(self._parked):
            if slot.digest == image.digest and slot.alive():
                self.hits += 1
                self._refill_soon()
                return self._parked.pop(index)
        self.misses += 1
        self._log.info("pool_empty", image=image.reference)
        waiting: asyncio.Future[Slot] = asyncio.get_running_loop().create_future()
        self._demand.wait(image, waiting)
        self._wanted.set()
        try:
            return await waiting
        except asyncio.CancelledError:
            if waiting.done() and not waiting.cancelled() and waiting.exception() is None:
                self._parked.append(waiting.result())
            raise

    def _refill_soon(self) -> None:
        """Not at once: making a slot would take processors and kernel locks from the start that has just taken one."""
        loop = asyncio.get_running_loop()
        if self._refill is None or self._refill.when() <= loop.time():
            self._refill = loop.call_later(_REFILL_AFTER_S, self._wanted.set)

    async def close(self, *, remove_parked: bool) -> None:
        """Stops parking; with `remove_parked`, only what was handed out is left."""
        self._closed = True
        if self._refill is not None:
            self._refill.cancel()
        self._wanted.set()
        await self._making.finish()
        self._demand.cancel()
        self._watch.close()
        if remove_parked:
            for slot in self._parked:
                await asyncio.to_thread(self._slots.clear, slot.number)
            self._parked.clear()
        await asyncio.to_thread(self._usage.save)

    def clear(self, number: int) -> None:
        """Clears a slot behind the caller; its number is free afterwards."""
        self._making.clear(number)

    def watch(self, slot: Slot) -> None:
        """Notices when the first process of a slot that was handed out ends, until `unwatch`."""
        self._watch.watch(slot)

    def unwatch(self, number: int) -> None:
        self._watch.unwatch(number)

    def _ended(self, slot: Slot) -> None:
        if slot in self._parked:
            self._parked.remove(slot)
            self.clear(slot.number)
            self._wanted.set()
        else:
            self._gone(slot)

    # --- keeping it full ----------------------------------------------------------------------------------------

    async def _keep_full(self) -> None:
        """Fills the pool whenever it is short, and lets go of what is not wanted; tidies up every now and then."""
        loop = asyncio.get_running_loop()
        tidy_at = loop.time() + _TIDY_EVERY_S
        await self._find_default()
        while not self._closed:
            self._wanted.clear()
            at = min(tidy_at, self._demand.retry_at(loop.time()))
            try:
                self._begin()
                if loop.time() >= tidy_at:
                    tidy_at = loop.time() + _TIDY_EVERY_S
                    await self._tidy()
            except Exception:  # noqa: BLE001 - the loop's edge: somebody may wait for a slot
                self._log.exception("pool_failed")
                at = loop.time() + _AFTER_A_BUG_S
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._wanted.wait(), max(0.0, at - loop.time()))

    def _begin(self) -> None:
        plan = self._plan()
        for digest in plan.let_go:
            slot = next((slot for slot in self._parked if slot.digest == digest), None)
            if slot is not None:
                self._parked.remove(slot)
                self.unwatch(slot.number)
                self.clear(slot.number)
        while self._demand.under_way() < _MAKING_AT_ONCE and not self._closed:
            image = self._demand.unmet() or (self._usage.image(plan.make[0]) if plan.make else None)
            if image is None:
                return
            self._demand.begin(image)
            self._making.spawn(self._make(image))
            plan = self._plan()

    def _plan(self) -> ParkingPlan:
        parked = Counter(slot.digest for slot in self._parked)
        coming = self._demand.for_parking()
        return plan_parking(
            self._policy,
            self._usage.uses(),
            parked + coming,
            self._usage.default_digest,
            self._usage.now(),
            SLOTS_MAX - _ROOM_KEPT - (self._making.taken() - (parked + coming).total()),
            self._demand.not_now(asyncio.get_running_loop().time()),
        )

    async def _make(self, image: ImageRoot) -> None:
        """Makes one, for whoever waits for it first, or else to be parked."""
        try:
            slot = await self._making.make(image)
        except Exception as failure:  # noqa: BLE001 - told to whoever waits for it, else tried again later
            waiting = self._demand.end(image)
            if waiting is not None:
                waiting.set_exception(failure)
            self._not_made(image, failure)
        else:
            self._demand.worked(image.digest)
            self.watch(slot)
            waiting = self._demand.end(image)
            if waiting is None:
                self._parked.append(slot)
            else:
                waiting.set_result(slot)
        self._wanted.set()

    def _not_made(self, image: ImageRoot, failure: Exception) -> None:
        if isinstance(failure, Permanent) or (isinstance(failure, Temporary) and failure.code == "image_missing"):
            self._usage.forget(image.digest)
        delay_s = self._demand.failed(image.digest, asyncio.get_running_loop().time())
        self._log.warning("parking_delayed", image=image.reference, delay_s=delay_s, reason=f"{failure!r:.500}")

    async def _find_default(self) -> None:
        """Of the default image, which may have changed since, only the present one is parked."""
        try:
            self._usage.set_default(await self._images.prepare(self._default_reference))
        except (OSError, Temporary, Permanent) as failure:
            self._log.warning("no_default_image", reason=str(failure))

    async def _tidy(self) -> None:
        if self._usage.default_digest is None:
            await self._find_default()
        self._usage.forget_old()
        self._demand.forget_old(asyncio.get_running_loop().time())
        await asyncio.to_thread(self._usage.save)
        try:
            # Somebody else may have flushed the machine's rules; nobody tells.
            await asyncio.to_thread(self._network.prepare)
        except (Temporary, Permanent) as failure:
            self._log.warning("network_not_prepared", reason=failure.message)
