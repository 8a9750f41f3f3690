"""The start limit's promise: in any window of t seconds at most burst + t / interval starts are admitted."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from math import floor

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fairwater.domain.abuse.rate import StartLimit, admit_start
from fairwater.domain.failure import Temporary

BEGIN = datetime(2026, 1, 5, 9, 0, tzinfo=UTC)
GAPS_MS = st.lists(st.integers(0, 30_000), min_size=1, max_size=60)
LIMITS = st.builds(
    StartLimit, interval_s=st.sampled_from([0.5, 1.0, 10.0, 60.0]), burst=st.integers(1, 8), parallel=st.just(16)
)


def admitted(gaps_ms: list[int], limit: StartLimit, *, forgetful: bool = False) -> list[datetime]:
    """The times of the admitted starts; a `forgetful` keeper loses the arrival time now and then."""
    now, arrival, times = BEGIN, None, []
    for count, gap in enumerate(gaps_ms):
        now += timedelta(milliseconds=gap)
        try:
            arrival = admit_start(None if forgetful and count % 3 == 0 else arrival, now, limit)
        except Temporary:
            continue
        times.append(now)
    return times


def most_above_promise(times: list[datetime], limit: StartLimit) -> int:
    """By how many starts the fullest window exceeds what was promised; 0 or less where the promise is kept."""
    return max(
        (
            later
            - earlier
            + 1
            - (limit.burst + floor((times[later] - times[earlier]).total_seconds() / limit.interval_s))
            for earlier in range(len(times))
            for later in range(earlier, len(times))
        ),
        default=0,
    )


@pytest.mark.pm(39)
@given(GAPS_MS, LIMITS)
def test_no_window_holds_more_starts_than_promised(gaps_ms: list[int], limit: StartLimit) -> None:
    assert most_above_promise(admitted(gaps_ms, limit), limit) <= 0


@pytest.mark.pm(39, sabotage=True)
def test_a_limiter_that_forgets_its_arrival_times_breaks_the_promise() -> None:
    limit = StartLimit(interval_s=10, burst=2)
    assert most_above_promise(admitted([0] * 12, limit, forgetful=True), limit) > 0


@given(GAPS_MS, LIMITS)
def test_a_start_is_admitted_once_its_delay_is_over(gaps_ms: list[int], limit: StartLimit) -> None:
    now, arrival = BEGIN, None
    for gap in gaps_ms:
        now += timedelta(milliseconds=gap)
        try:
            arrival = admit_start(arrival, now, limit)
        except Temporary as refusal:
            delay_s = refusal.delay_s
        else:
            continue
        assert 0 < delay_s <= limit.interval_s
        now += timedelta(seconds=delay_s)
        arrival = admit_start(arrival, now, limit)


@given(st.integers(1, 50), LIMITS)
def test_whoever_keeps_the_interval_is_never_refused(starts: int, limit: StartLimit) -> None:
    assert len(admitted([int(limit.interval_s * 1000)] * starts, limit)) == starts
