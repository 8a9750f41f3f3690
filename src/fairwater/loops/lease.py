"""Keeps a lease for this server, and says at any moment whether it may act.

Decides by the monotonic clock alone when this server must stop: a while before anybody else can take the lease,
whatever the machines' clocks say and whether or not the database can be reached. Refuses to know what is done under it.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Protocol

import structlog

from fairwater.domain.failure import Temporary
from fairwater.ports.leases import Lease, Leases

FOR_S = 8.0
"""A server that was killed is replaced within this time and `_AGAIN_S`."""
_RENEW_AFTER = 1 / 3
_SAFETY = 1 / 8
"""The part of the time that is left unused: for what is on its way to a node when the time is up."""
_AGAIN_S = 1.0


class Holding(Protocol):
    """Whether this server may act, as a loop sees it."""

    def may_act(self) -> bool: ...

    async def gained(self) -> None:
        """Returns once this server may act."""
        ...

    async def lost(self) -> None:
        """Returns once this server may act no longer."""
        ...


class LeaseKeeper:
    """Implements `Holding`. `name` is the lease's, `holder` this server's, up to 64 characters and unlike any other."""

    def __init__(self, leases: Leases, name: str, holder: str, for_s: float = FOR_S) -> None:
        self.name = name
        self._leases = leases
        self._holder = holder
        self._for_s = for_s
        self._lease: Lease | None = None
        self._until = 0.0
        self._news = asyncio.Event()
        self._log = structlog.get_logger().bind(lease=name, holder=holder)

    def current(self) -> Lease | None:
        """The lease, None while this server must not act. What is written under it is to be checked against it."""
        return self._lease if self._left_s() > 0 else None

    def may_act(self) -> bool:
        return self.current() is not None

    async def gained(self) -> None:
        while not self.may_act():
            await self._news.wait()

    async def lost(self) -> None:
        while self.may_act():
            with suppress(TimeoutError):
                async with asyncio.timeout(self._left_s()):
                    await self._news.wait()

    async def run(self) -> None:
        """Takes the lease whenever it is free, and keeps it, until cancelled; then `release`."""
        while True:
            began = self._time()
            pause_s = _AGAIN_S
            try:
                await self._take_or_keep(began)
                if self._lease is not None:
                    pause_s = self._for_s * _RENEW_AFTER
            except Temporary as failure:
                # What is held stays held until its time is up.
                self._log.info("lease_unsure", code=failure.code, reason=failure.message)
            except Exception:  # noqa: BLE001 - the loop's edge: without the lease, nothing is done at all
                self._log.exception("lease_failed")
            await asyncio.sleep(max(0.0, began + pause_s - self._time()))

    async def release(self) -> None:
        """Lets others have it at once. To be called when nothing acts any more."""
        lease = self._lease
        self._keep(None, 0.0)
        if lease is None:
            return
        try:
            await self._leases.release(lease)
            self._log.info("lease_released", epoch=lease.epoch)
        except Temporary as failure:
            self._log.info("lease_left", reason=failure.message)

    async def _take_or_keep(self, began: float) -> None:
        """The time counts from before the question: the database has begun to count later."""
        before = self._lease
        if before is None:
            after = await self._leases.acquire(self.name, self._holder, self._for_s)
        else:
            after = await self._leases.renew(before, self._for_s)
        self._keep(after, began + self._for_s * (1 - _SAFETY))
        if before is None and after is not None:
            self._log.info("lease_taken", epoch=after.epoch)
        elif after is None and before is not None:
            self._log.warning("lease_lost", epoch=before.epoch)

    def _keep(self, lease: Lease | None, until: float) -> None:
        self._lease, self._until = lease, until
        news, self._news = self._news, asyncio.Event()
        news.set()

    def _left_s(self) -> float:
        return self._until - self._time() if self._lease is not None else 0.0

    def _time(self) -> float:
        return asyncio.get_running_loop().time()
