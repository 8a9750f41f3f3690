"""The one loop: observe → plan → apply → verify, per object, from any state.

Decides when an object is looked at: when poked, when its plan's deadline is due, after the delay of a temporary
failure, with growing delays after a bug. Refuses to know what is looked after.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Hashable
from typing import Generic, Protocol, TypeVar

import structlog

from fairwater.domain.failure import Permanent, Temporary
from fairwater.domain.plan import Plan
from fairwater.ports.clock import Clock

K = TypeVar("K", bound=Hashable)
K_in = TypeVar("K_in", bound=Hashable, contravariant=True)
F = TypeVar("F")
S = TypeVar("S")

_ROUNDS_MAX = 64
"""Plans in a row without waiting; more means that steps do not bring about what the next observation sees."""
_BACKOFF_S = (0.2, 1.0, 3.0, 10.0, 30.0)


class Reconciler(Protocol[K_in, F, S]):
    """What a loop looks after. One object is never worked on twice at once."""

    name: str

    async def observe(self, key: K_in) -> F: ...

    def plan(self, key: K_in, facts: F) -> Plan[S]: ...

    async def apply(self, key: K_in, step: S) -> None:
        """Does the step and reads back that it holds. Interrupted or repeated, it does no harm.

        Raises:
            Temporary: plan anew after the delay.
            Permanent: handed to `rejected`.
        """
        ...

    async def rejected(self, key: K_in, step: S, failure: Permanent) -> None:
        """The step will not go through. Must change what the next plan sees, or the object is left to the backoff."""
        ...

    async def delayed(self, key: K_in, failure: Temporary) -> None:
        """The object waits for `failure.delay_s`: a chance to say so."""
        ...


class LoopRunner(Generic[K, F, S]):
    """Runs a reconciler for any number of objects, each in a task of its own, `parallel` at once."""

    def __init__(self, reconciler: Reconciler[K, F, S], clock: Clock, *, parallel: int = 64) -> None:
        self._reconciler = reconciler
        self._clock = clock
        self._slots = asyncio.Semaphore(parallel)
        self._tasks: dict[K, asyncio.Task[None]] = {}
        self._pokes: dict[K, asyncio.Event] = {}
        self._log = structlog.get_logger().bind(loop=reconciler.name)
        self._closed = False

    def poke(self, key: K) -> None:
        """Looks at `key` as soon as may be; again, where it is being looked at right now."""
        if self._closed:
            return
        event = self._pokes.setdefault(key, asyncio.Event())
        event.set()
        task = self._tasks.get(key)
        if task is None or task.done():
            self._tasks[key] = asyncio.create_task(self._look_after(key, event), name=f"{self._reconciler.name}:{key}")

    def active(self) -> int:
        return sum(not task.done() for task in self._tasks.values())

    async def close(self) -> None:
        """Stops looking; what is under way is interrupted, which every step stands."""
        self._closed = True
        tasks = [task for task in self._tasks.values() if not task.done()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._tasks.clear()

    async def _look_after(self, key: K, event: asyncio.Event) -> None:
        """Until the plan waits for nothing but a poke."""
        bugs = 0
        while True:
            event.clear()
            delay_s: float | None
            try:
                async with self._slots:
                    delay_s = await self._attempt(key)
                bugs = 0
            except Exception:  # noqa: BLE001 - the loop's edge: a bug ends this iteration, and the object waits
                delay_s = _BACKOFF_S[min(bugs, len(_BACKOFF_S) - 1)]
                bugs += 1
                self._log.exception("loop_iteration_failed", key=str(key), retry_in_s=delay_s)
            if delay_s is None:
                if event.is_set():
                    continue
                self._tasks.pop(key, None)
                self._pokes.pop(key, None)
                return
            # Not `wait_for`: before Python 3.12 it swallows a cancellation that comes along with the event.
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(delay_s):
                    await event.wait()

    async def _attempt(self, key: K) -> float | None:
        try:
            return await self._advance(key)
        except Temporary as failure:
            await self._reconciler.delayed(key, failure)
            return failure.delay_s

    async def _advance(self, key: K) -> float | None:
        """Plans and applies until the plan waits; the seconds until it wants to be asked again, None for never."""
        for _ in range(_ROUNDS_MAX):
            facts = await self._reconciler.observe(key)
            plan = self._reconciler.plan(key, facts)
            if not plan.steps:
                until = plan.waiting.until if plan.waiting else None
                return None if until is None else max(0.0, (until - self._clock.now()).total_seconds())
            for step in plan.steps:
                try:
                    await self._reconciler.apply(key, step)
                except Permanent as failure:
                    await self._reconciler.rejected(key, step, failure)
                    break
        raise RuntimeError(f"{self._reconciler.name} {key}: {_ROUNDS_MAX} plans in a row changed nothing")
