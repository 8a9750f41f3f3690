"""`ports.leases.Leases` in memory, and the way to it: slow, broken, or a hole in which all is lost."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from enum import Enum

from fairwater.domain.failure import Temporary
from fairwater.ports.leases import Lease, Leases

NOBODY = ""


class MemoryLeases:
    """`now` is the database's clock."""

    def __init__(self, now: Callable[[], datetime]) -> None:
        self._now = now
        self._leases: dict[str, Lease] = {}

    async def acquire(self, name: str, holder: str, for_s: float) -> Lease | None:
        before = self._leases.get(name)
        if before is not None and before.holder not in {holder, NOBODY} and before.expires_at > self._now():
            return None
        self._leases[name] = Lease(name, holder, before.epoch + 1 if before else 1, self._end(for_s))
        return self._leases[name]

    async def renew(self, lease: Lease, for_s: float) -> Lease | None:
        if not self._is(lease):
            return None
        self._leases[lease.name] = replace(lease, expires_at=self._end(for_s))
        return self._leases[lease.name]

    async def release(self, lease: Lease) -> None:
        if self._is(lease):
            self._leases[lease.name] = replace(lease, holder=NOBODY)

    async def held(self, name: str) -> Lease | None:
        found = self._leases.get(name)
        if found is None or found.holder == NOBODY or found.expires_at <= self._now():
            return None
        return found

    def _is(self, lease: Lease) -> bool:
        found = self._leases.get(lease.name)
        return found is not None and (found.holder, found.epoch) == (lease.holder, lease.epoch)

    def _end(self, for_s: float) -> datetime:
        return self._now() + timedelta(seconds=for_s)


class Fate(Enum):
    ANSWERED = "answered"
    QUESTION_LOST = "question lost"
    ANSWER_LOST = "answer lost"
    HANGS = "hangs"


@dataclass(frozen=True, slots=True)
class Trip:
    """One question's way to the database and back, in seconds."""

    there_s: float = 0.0
    back_s: float = 0.0
    fate: Fate = Fate.ANSWERED


@dataclass
class Road:
    """Implements `Leases`: those of `leases`, a way off. `trips` are used one a question, then all go well; `away`
    loses every question. `asked` are the questions, each with the loop's time; `happened` is called after each that the
    database has answered."""

    leases: Leases
    trips: Iterator[Trip] = field(default_factory=lambda: iter(()))
    happened: Callable[[], None] = lambda: None
    away: bool = False
    asked: list[tuple[str, float]] = field(default_factory=list)

    async def acquire(self, name: str, holder: str, for_s: float) -> Lease | None:
        async with self._trip("acquire"):
            return await self.leases.acquire(name, holder, for_s)

    async def renew(self, lease: Lease, for_s: float) -> Lease | None:
        async with self._trip("renew"):
            return await self.leases.renew(lease, for_s)

    async def release(self, lease: Lease) -> None:
        async with self._trip("release"):
            await self.leases.release(lease)

    async def held(self, name: str) -> Lease | None:
        async with self._trip("held"):
            return await self.leases.held(name)

    @asynccontextmanager
    async def _trip(self, question: str) -> AsyncIterator[None]:
        self.asked.append((question, asyncio.get_running_loop().time()))
        trip = Trip(fate=Fate.QUESTION_LOST) if self.away else next(self.trips, Trip())
        await asyncio.sleep(trip.there_s)
        if trip.fate is Fate.QUESTION_LOST:
            raise lost()
        yield
        self.happened()
        if trip.fate is Fate.HANGS:
            await asyncio.Event().wait()
        await asyncio.sleep(trip.back_s)
        if trip.fate is Fate.ANSWER_LOST:
            raise lost()


def lost() -> Temporary:
    return Temporary("the database is away: try again in a moment", code="database_away", delay_s=1.0)
