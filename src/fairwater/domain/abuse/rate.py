"""How often an account may start a workspace, and how many it may run at once.

The limiter is the generic cell rate algorithm (ITU-T I.371, appendix I): one timestamp an account, the theoretical
arrival time, says all; it needs no timer and costs one row.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

from fairwater.domain.failure import Permanent, Temporary


@dataclass(frozen=True, slots=True)
class StartLimit:
    """One start every `interval_s` seconds in the long run, `burst` at once, `parallel` workspaces at a time."""

    interval_s: float = 10.0
    burst: int = 6
    parallel: int = 16


def admit_start(arrival: datetime | None, now: datetime, limit: StartLimit) -> datetime:
    """The new theoretical arrival time once a start at `now` is admitted; `arrival` is the one kept from before.

    Raises:
        Temporary: `rate_limited`, with the delay after which a start conforms.
    """
    interval = timedelta(seconds=limit.interval_s)
    expected = max(arrival, now) if arrival else now
    earliest = expected - interval * (limit.burst - 1)
    if now < earliest:
        wait_s = (earliest - now).total_seconds()
        raise Temporary(
            f"too many starts: one every {limit.interval_s:g} s, {limit.burst} at once; try again in {wait_s:.0f} s",
            code="rate_limited",
            delay_s=wait_s,
        )
    return expected + interval


def admit_parallel(active: int, limit: StartLimit) -> None:
    """Admits one more workspace beside the `active` ones.

    Raises:
        Permanent: `too_many_workspaces`; stopping one makes room.
    """
    if active >= limit.parallel:
        raise Permanent(
            f"{active} workspaces are active, the most an account may have is {limit.parallel}: stop one first",
            code="too_many_workspaces",
        )
