from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from fairwater.domain.abuse.rate import StartLimit, admit_parallel, admit_start
from fairwater.domain.failure import Permanent, Temporary

NOW = datetime(2026, 1, 5, 9, 0, tzinfo=UTC)
LIMIT = StartLimit(interval_s=10, burst=3, parallel=2)


@pytest.mark.pm(39)
def test_a_burst_passes_and_the_next_start_learns_when_it_may_come() -> None:
    arrival = None
    for _ in range(3):
        arrival = admit_start(arrival, NOW, LIMIT)
    with pytest.raises(Temporary, match="one every 10 s, 3 at once") as refusal:
        admit_start(arrival, NOW, LIMIT)
    assert refusal.value.code == "rate_limited"
    assert refusal.value.delay_s == 10
    admit_start(arrival, NOW + timedelta(seconds=refusal.value.delay_s), LIMIT)


def test_a_refused_start_costs_nothing() -> None:
    arrival = None
    for _ in range(3):
        arrival = admit_start(arrival, NOW, LIMIT)
    for second in range(10):
        with pytest.raises(Temporary):
            admit_start(arrival, NOW + timedelta(seconds=second), LIMIT)
    assert admit_start(arrival, NOW + timedelta(seconds=10), LIMIT) == NOW + timedelta(seconds=40)


def test_after_a_long_pause_no_more_than_one_burst_is_saved_up() -> None:
    arrival: datetime | None = NOW - timedelta(days=30)
    for _ in range(3):
        arrival = admit_start(arrival, NOW, LIMIT)
    with pytest.raises(Temporary):
        admit_start(arrival, NOW, LIMIT)


@pytest.mark.pm(39)
def test_workspaces_in_parallel_are_held_to_their_number() -> None:
    admit_parallel(1, LIMIT)
    for active in (2, 3, 100):
        with pytest.raises(Permanent, match="stop one first") as refusal:
            admit_parallel(active, LIMIT)
        assert refusal.value.code == "too_many_workspaces"
