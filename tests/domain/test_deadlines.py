from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from fairwater.domain.workspaces.deadlines import Deadline, DeadlineKind, DeadlinePolicy, deadline_on_entering
from fairwater.domain.workspaces.workspace import ACTIVE, Phase

NOW = datetime(2026, 1, 5, 9, 0, tzinfo=UTC)
LATER = NOW + timedelta(seconds=30)
POLICY = DeadlinePolicy(startup_s=10, init_s=20, stopping_s=40)
OLD = Deadline(DeadlineKind.STOPPING, NOW - timedelta(days=1))


@pytest.mark.parametrize(
    ("phase", "kind", "seconds"),
    [
        (Phase.PENDING, DeadlineKind.STARTUP, 10),
        (Phase.CREATING, DeadlineKind.STARTUP, 10),
        (Phase.RESTORING, DeadlineKind.INIT, 20),
        (Phase.INITIALIZING, DeadlineKind.INIT, 20),
        (Phase.STOPPING, DeadlineKind.STOPPING, 40),
    ],
)
def test_a_phase_that_should_pass_gets_the_deadline_of_its_kind(phase: Phase, kind: DeadlineKind, seconds: int) -> None:
    assert deadline_on_entering(phase, None, NOW, POLICY) == Deadline(kind, NOW + timedelta(seconds=seconds))


@pytest.mark.parametrize("phase", [Phase.RUNNING, Phase.STOPPED, Phase.FAILED, Phase.LOST, Phase.DELETED])
def test_a_phase_that_may_last_has_no_deadline(phase: Phase) -> None:
    assert deadline_on_entering(phase, OLD, NOW, POLICY) is None


def test_only_running_may_last_among_the_active_phases() -> None:
    without = {phase for phase in ACTIVE if deadline_on_entering(phase, None, NOW, POLICY) is None}
    assert without == {Phase.RUNNING}


@pytest.mark.parametrize(("earlier", "later"), [(Phase.PENDING, Phase.CREATING), (Phase.RESTORING, Phase.INITIALIZING)])
def test_the_next_phase_of_the_same_kind_grants_no_time_anew(earlier: Phase, later: Phase) -> None:
    first = deadline_on_entering(earlier, None, NOW, POLICY)
    assert deadline_on_entering(later, first, LATER, POLICY) == first


def test_another_kind_begins_its_own_time() -> None:
    first = deadline_on_entering(Phase.CREATING, None, NOW, POLICY)
    second = deadline_on_entering(Phase.INITIALIZING, first, LATER, POLICY)
    assert second == Deadline(DeadlineKind.INIT, LATER + timedelta(seconds=20))
