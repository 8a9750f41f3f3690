from __future__ import annotations

from collections import deque
from datetime import UTC, datetime
from itertools import product

import pytest

from fairwater.domain.ids import RunNumber, WorkspaceId
from fairwater.domain.workspaces.workspace import (
    ACTIVE,
    AT_REST,
    STARTING,
    TRANSITIONS,
    Event,
    Phase,
    TransitionRejected,
    Verdict,
    Workspace,
    transition,
)

NOW = datetime(2026, 1, 5, 9, 0, tzinfo=UTC)
# Only these may carry a workspace that somebody wants gone to its end, whatever the node does.
TOWARDS_THE_END = (Event.DELETE, Event.STOP, Event.RELEASED)


def workspace(phase: Phase, **values: object) -> Workspace:
    fields: dict[str, object] = {
        "id": WorkspaceId("abcdefghjkmn"),
        "phase": phase,
        "reason": "as given",
        "since": NOW,
        "run": RunNumber(3),
    }
    return Workspace(**(fields | values))  # type: ignore[arg-type]


def reachable(start: Phase, events: tuple[Event, ...]) -> set[Phase]:
    """The phases that `events` lead to from `start`, without deletion in mind."""
    seen, queue = {start}, deque([start])
    while queue:
        here = queue.popleft()
        for event in events:
            outcome = TRANSITIONS[here, event]
            if isinstance(outcome, Phase) and outcome not in seen:
                seen.add(outcome)
                queue.append(outcome)
    return seen


def test_every_pair_of_phase_and_event_is_defined() -> None:
    assert set(TRANSITIONS) == set(product(Phase, Event))


@pytest.mark.parametrize(("phase", "event"), list(product(Phase, Event)))
def test_a_pair_leads_on_is_ignored_or_is_rejected_with_the_history(phase: Phase, event: Event) -> None:
    before = workspace(phase)
    outcome = TRANSITIONS[phase, event]
    if outcome is Verdict.REJECTED:
        with pytest.raises(TransitionRejected) as refusal:
            transition(before, event, "why", NOW)
        assert refusal.value.code == "wrong_phase"
        assert f"is {phase} (run 3), which does not allow '{event}'" in refusal.value.message
    elif outcome is Verdict.IGNORED:
        assert transition(before, event, "why", NOW).phase is phase
    else:
        after = transition(before, event, "why", NOW)
        assert after.phase is outcome
        assert after.history[-1].event is event
        assert after.since == NOW


def test_a_rejected_transition_prints_what_happened_before() -> None:
    here = workspace(Phase.STOPPED)
    for event in (Event.START, Event.PLACED, Event.READY, Event.STOP, Event.RELEASED):
        here = transition(here, event, "why", NOW)
    with pytest.raises(TransitionRejected) as refusal:
        transition(here, Event.READY, "late", NOW)
    path = "start → pending; 09:00:00 placed → creating; 09:00:00 ready → running; 09:00:00 stop → stopping"
    assert path in refusal.value.message
    assert refusal.value.message.endswith("released → stopped")


def test_a_rejected_first_transition_says_that_there_is_no_history() -> None:
    with pytest.raises(TransitionRejected, match="History: none"):
        transition(workspace(Phase.STOPPED), Event.READY, "late", NOW)


@pytest.mark.parametrize("phase", [phase for phase in Phase if phase is not Phase.DELETED])
def test_from_every_phase_a_workspace_can_be_stopped_and_then_deleted(phase: Phase) -> None:
    reached = reachable(phase, TOWARDS_THE_END)
    assert reached & {*AT_REST, Phase.DELETED}
    assert Phase.DELETED in reached


@pytest.mark.parametrize("phase", list(Phase))
def test_nothing_leads_out_of_deleted(phase: Phase) -> None:
    assert reachable(Phase.DELETED, tuple(Event)) == {Phase.DELETED}


@pytest.mark.parametrize("phase", sorted(STARTING))
def test_from_every_phase_of_a_start_running_can_be_reached(phase: Phase) -> None:
    assert Phase.RUNNING in reachable(phase, (Event.PLACED, Event.CONTENT_BEGAN, Event.READY))


@pytest.mark.parametrize(("phase", "event"), list(product(Phase, Event)))
def test_only_a_start_makes_a_new_run(phase: Phase, event: Event) -> None:
    if TRANSITIONS[phase, event] is Verdict.REJECTED:
        return
    after = transition(workspace(phase, failure="old"), event, "why", NOW)
    begun = event is Event.START and TRANSITIONS[phase, event] is Phase.PENDING
    assert after.run == (4 if begun else 3)
    if begun:
        assert after.failure is None


@pytest.mark.parametrize("phase", list(Phase))
def test_repeating_a_persons_request_is_no_error(phase: Phase) -> None:
    for event in (Event.START, Event.STOP, Event.DELETE):
        if TRANSITIONS[phase, event] is not Verdict.REJECTED:
            once = transition(workspace(phase), event, "why", NOW)
            if once.phase is not Phase.DELETED or event is Event.DELETE:
                assert transition(once, event, "again", NOW).phase is once.phase


def test_an_event_that_changes_nothing_returns_the_very_same_workspace() -> None:
    before = workspace(Phase.RUNNING)
    assert transition(before, Event.READY, "again", NOW) is before


def test_only_the_release_of_the_run_brings_an_active_workspace_to_rest() -> None:
    for phase, event in product(ACTIVE, Event):
        if TRANSITIONS[phase, event] in {*AT_REST, Phase.DELETED}:
            assert (phase, event) == (Phase.STOPPING, Event.RELEASED)


def test_a_run_that_failed_ends_as_failed_with_its_reason_kept() -> None:
    stopping = transition(workspace(Phase.CREATING), Event.FAIL, "no such branch", NOW)
    assert stopping.phase is Phase.STOPPING
    ended = transition(stopping, Event.RELEASED, "stopped", NOW)
    assert (ended.phase, ended.reason, ended.failure) == (Phase.FAILED, "no such branch", "no such branch")


def test_a_new_start_forgets_the_failure_of_the_run_before() -> None:
    again = transition(workspace(Phase.FAILED, failure="no such branch"), Event.START, "asked for", NOW)
    assert (again.phase, again.run, again.failure) == (Phase.PENDING, 4, None)


@pytest.mark.parametrize("phase", sorted(ACTIVE))
@pytest.mark.parametrize("failure", [None, "broke"])
def test_a_deletion_asked_for_during_a_run_comes_after_its_release(phase: Phase, failure: str | None) -> None:
    doomed = transition(workspace(phase, failure=failure), Event.DELETE, "asked for", NOW)
    assert (doomed.phase, doomed.doomed) == (Phase.STOPPING, True)
    assert transition(doomed, Event.RELEASED, "stopped", NOW).phase is Phase.DELETED


def test_the_history_is_bounded() -> None:
    here = workspace(Phase.STOPPED)
    for _ in range(40):
        for event in (Event.START, Event.STOP, Event.RELEASED):
            here = transition(here, event, "why", NOW)
    assert len(here.history) == 32
