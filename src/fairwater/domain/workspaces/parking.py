"""Of which images sandboxes are kept parked, and how many.

A parked sandbox is worth the misses that it avoids: the first of an image, every start of it; a further one, the starts
that come while those before it are being made anew. The memory goes to the dearest ones first. Refuses to know how a
sandbox is made. Times are in seconds on one clock of the caller's, rates in starts per second.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace

from fairwater.domain.units import MIB, Bytes

LATELY_S = 20.0
OVERALL_S = 8 * 3600.0
"""Time constants: a start counts 1 at first, 1/e after so long."""
AWAITED_S = 60.0
_AWAITED_WORTH = 1.0
"""Of an image that is waited for, the first sandbox is worth as much as of one that is started every second."""
SANDBOX_COST = Bytes(2 * MIB)
"""Memory of one parked sandbox, with a reserve: 1.6 MiB were measured on Linux 6.18, 0.08 of them its process's own,
the rest the kernel's for namespaces, mounts and network (`bench/image_pool.py`)."""
_REPLACED_WITHIN_S = 0.5
"""Within that time one that was taken is parked anew, when others are taken too."""
_USUALLY_FOLLOWED, _USUAL_WEIGHT = 0.1, 2.0
"""Before anything is known of an image, one start in ten is taken to be followed by another at once; what was seen of
it counts as much after two starts."""
_CHANCE_MIN = 0.001
"""A further sandbox is not worth its memory where fewer starts than one in a thousand would miss it."""
_FORGOTTEN = 0.02
"""An image that was started once is let go after four time constants, 31 hours."""
_STAYS = 1.5
"""How much more one must be worth than one that is parked already, to be made in its stead."""


@dataclass(frozen=True, slots=True)
class Use:
    """How often an image was started, as of `at`: starts of the last seconds, and of the last hours; `followed` are
    those of the latter that came right after another.

    Until `awaited_until` a start of it is to be expected at any moment, since somebody has just brought it in.
    """

    lately: float
    overall: float
    at: float
    followed: float = 0.0
    awaited_until: float = 0.0

    def as_of(self, now: float) -> Use:
        passed_s = max(0.0, now - self.at)
        lately, overall = math.exp(-passed_s / LATELY_S), math.exp(-passed_s / OVERALL_S)
        return replace(
            self,
            lately=self.lately * lately,
            overall=self.overall * overall,
            followed=self.followed * overall,
            at=max(now, self.at),
        )

    def started(self, now: float) -> Use:
        use = self.as_of(now)
        at_once = self.lately > 0 and now - self.at <= _REPLACED_WITHIN_S
        return replace(
            use,
            lately=use.lately + 1,
            overall=use.overall + 1,
            followed=use.followed + (1.0 if at_once else 0.0),
            awaited_until=0.0,
        )

    def expected(self, now: float) -> Use:
        """A start is to come; where none is known of, it counts already."""
        use = self.as_of(now)
        return replace(use, overall=max(use.overall, 1.0), awaited_until=now + AWAITED_S)


UNUSED = Use(0.0, 0.0, 0.0)


@dataclass(frozen=True, slots=True)
class ParkingPolicy:
    """`memory` bounds what parked sandboxes hold; of the default image `minimum` are kept even so."""

    memory: Bytes
    minimum: int
    cost: Bytes = SANDBOX_COST


@dataclass(frozen=True, slots=True)
class ParkingPlan:
    """`make` and `let_go` name an image once for each sandbox, in the order in which it is to be done."""

    make: tuple[str, ...]
    let_go: tuple[str, ...]


def is_forgotten(use: Use, now: float) -> bool:
    return use.as_of(now).overall < _FORGOTTEN


def plan_parking(
    policy: ParkingPolicy,
    uses: Mapping[str, Use],
    parked: Mapping[str, int],
    default: str | None,
    now: float,
    room: int,
    not_now: Collection[str] = (),
) -> ParkingPlan:
    """What to make and to let go. `parked` counts those being made too; at most `room` fit on the node.

    Of the images in `not_now` none can be made at present.
    """
    space = min(room, max(policy.memory // policy.cost, policy.minimum))
    candidates = list(_candidates(policy, uses, parked, default, now, space, not_now))
    kept = heapq.nlargest(max(0, space), candidates)
    targets: dict[str, int] = {}
    for _, digest, _ in kept:
        targets[digest] = targets.get(digest, 0) + 1
    make = tuple(digest for _, digest, number in kept if number > parked.get(digest, 0))
    let_go = tuple(
        digest for digest, count in sorted(parked.items()) for _ in range(max(0, count - targets.get(digest, 0)))
    )
    return ParkingPlan(make, let_go)


def _candidates(
    policy: ParkingPolicy,
    uses: Mapping[str, Use],
    parked: Mapping[str, int],
    default: str | None,
    now: float,
    space: int,
    not_now: Collection[str],
) -> Iterator[tuple[float, str, int]]:
    """Value, image, and the how many-eth of it; of one image, each is worth less than the one before."""
    for digest in uses if default is None else {default, *uses}:
        use = uses.get(digest, UNUSED).as_of(now)
        most = parked.get(digest, 0) if digest in not_now else space
        least = policy.minimum if digest == default else 0
        worth = 0.0 if is_forgotten(use, now) else use.overall / OVERALL_S
        first = max(worth, _AWAITED_WORTH) if now < use.awaited_until else worth
        # Starts come in bunches, so that how many come while one is made anew is taken to be spread geometrically.
        coming = use.lately / LATELY_S * _REPLACED_WITHIN_S
        known = (use.followed + _USUALLY_FOLLOWED * _USUAL_WEIGHT) / (use.overall + _USUAL_WEIGHT)
        another = max(coming / (1 + coming), known)
        chance = 1.0
        for number in range(1, most + 1):
            if number <= least:
                yield math.inf, digest, number
            elif chance < _CHANCE_MIN or first <= 0:
                break
            else:
                value = first if number == 1 else worth * chance
                yield value * (_STAYS if number <= parked.get(digest, 0) else 1.0), digest, number
            chance *= another
