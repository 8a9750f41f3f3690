from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from fairwater.domain.ids import RunNumber, WorkspaceId
from fairwater.domain.reading import Known, Missing, Reading, Stale
from fairwater.domain.workspaces.control import AskStart, AskStop, DeleteVolume, Record, Step, plan_workspace
from fairwater.domain.workspaces.deadlines import Deadline, DeadlineKind
from fairwater.domain.workspaces.run import RunFacts, RunState
from fairwater.domain.workspaces.workspace import ACTIVE, AT_REST, STARTING, Event, Phase, Workspace

NOW = datetime(2026, 1, 5, 9, 0, tzinfo=UTC)
ID = WorkspaceId("abcdefghjkmn")
RUN = RunNumber(3)
OVERDUE = Deadline(DeadlineKind.STARTUP, NOW)
NOT_YET = Deadline(DeadlineKind.STARTUP, NOW + timedelta(seconds=1))


def workspace(phase: Phase) -> Workspace:
    return Workspace(ID, phase, "as given", NOW - timedelta(minutes=5), RUN)


def facts(state: RunState, *, run: int = RUN, failure: str | None = None) -> RunFacts:
    return RunFacts(ID, RunNumber(run), state, f"is {state}", NOW, failure=failure)


def steps(phase: Phase, reading: Reading[RunFacts | None], deadline: Deadline | None = None) -> tuple[Step, ...]:
    return plan_workspace(workspace(phase), deadline, reading, NOW).steps


def known(value: RunFacts | None) -> Reading[RunFacts | None]:
    return Known(value, NOW)


def stale(value: RunFacts | None) -> Reading[RunFacts | None]:
    return Stale(value, NOW - timedelta(minutes=1), "no answer")


MISSING = Missing("connection refused")


@pytest.mark.parametrize("reading", [known(None), stale(None), known(facts(RunState.ENDED, run=2))])
def test_a_pending_run_that_its_node_does_not_know_is_asked_for(reading: Reading[RunFacts | None]) -> None:
    assert steps(Phase.PENDING, reading) == (AskStart(RUN),)


@pytest.mark.parametrize("phase", sorted(ACTIVE))
@pytest.mark.parametrize("deadline", [None, NOT_YET])
def test_without_a_word_of_the_node_nothing_is_decided(phase: Phase, deadline: Deadline | None) -> None:
    plan = plan_workspace(workspace(phase), deadline, MISSING, NOW)
    assert plan.steps == ()
    assert plan.waiting is not None
    assert plan.waiting.what == "the node to answer: connection refused"
    assert plan.waiting.until == (deadline.at if deadline else None)


@pytest.mark.parametrize("phase", sorted(ACTIVE - {Phase.PENDING}))
def test_an_old_reading_that_knows_no_run_proves_nothing(phase: Phase) -> None:
    plan = plan_workspace(workspace(phase), None, stale(None), NOW)
    assert plan.steps == ()
    assert plan.waiting is not None


@pytest.mark.parametrize("phase", [Phase.CREATING, Phase.RESTORING, Phase.INITIALIZING, Phase.RUNNING])
def test_a_run_that_its_node_no_longer_knows_has_failed(phase: Phase) -> None:
    assert steps(phase, known(None)) == (Record(Event.FAIL, "its node no longer knows the run"),)


def test_a_stop_is_asked_for_once_and_then_waited_for() -> None:
    assert steps(Phase.STOPPING, known(facts(RunState.RUNNING))) == (AskStop(RUN),)
    assert steps(Phase.STOPPING, known(facts(RunState.STOPPING))) == ()


@pytest.mark.parametrize("state", [state for state in RunState if state is not RunState.ENDED])
def test_a_stop_beyond_its_deadline_is_forced(state: RunState) -> None:
    late = Deadline(DeadlineKind.STOPPING, NOW)
    assert steps(Phase.STOPPING, known(facts(state)), late) == (AskStop(RUN, force=True),)


def test_a_run_is_released_when_its_node_says_that_it_has_ended() -> None:
    assert steps(Phase.STOPPING, known(facts(RunState.ENDED))) == (Record(Event.RELEASED, "is ended"),)
    assert steps(Phase.STOPPING, known(None)) == (Record(Event.RELEASED, "stopped"),)


@pytest.mark.parametrize("phase", sorted(STARTING))
@pytest.mark.parametrize("reading", [MISSING, known(None), known(facts(RunState.STARTING))])
def test_a_start_beyond_its_deadline_fails_whatever_the_node_says(
    phase: Phase, reading: Reading[RunFacts | None]
) -> None:
    [step] = steps(phase, reading, OVERDUE)
    assert isinstance(step, Record)
    assert step.event is Event.FAIL
    assert step.reason.startswith("did not start in time")


def test_a_quick_start_is_recorded_in_one_plan() -> None:
    assert steps(Phase.PENDING, known(facts(RunState.RUNNING))) == (
        Record(Event.PLACED, "accepted by its node"),
        Record(Event.READY, "is running"),
    )


def test_a_run_that_failed_and_ended_meanwhile_is_recorded_in_one_plan() -> None:
    gone = facts(RunState.ENDED, failure="no such branch")
    assert steps(Phase.PENDING, known(gone)) == (
        Record(Event.PLACED, "accepted by its node"),
        Record(Event.FAIL, "no such branch"),
        Record(Event.RELEASED, "no such branch"),
    )


def test_a_run_that_ended_by_itself_is_no_failure() -> None:
    assert steps(Phase.RUNNING, known(facts(RunState.STOPPING))) == (Record(Event.ENDED, "is stopping"),)


def test_bringing_in_content_is_shown() -> None:
    planned = steps(Phase.CREATING, known(facts(RunState.INITIALIZING)))
    assert planned == (Record(Event.CONTENT_BEGAN, "is initializing"),)


@pytest.mark.parametrize("phase", sorted(AT_REST))
@pytest.mark.parametrize("reading", [MISSING, known(None), known(facts(RunState.ENDED))])
def test_a_workspace_at_rest_needs_nothing(phase: Phase, reading: Reading[RunFacts | None]) -> None:
    assert steps(phase, reading) == ()


@pytest.mark.parametrize("reading", [MISSING, stale(None), known(None), known(facts(RunState.ENDED))])
def test_a_deleted_workspaces_volume_is_deleted_whatever_is_known(reading: Reading[RunFacts | None]) -> None:
    assert steps(Phase.DELETED, reading) == (DeleteVolume(RUN),)


def test_a_plan_names_the_run_that_caused_it() -> None:
    assert plan_workspace(workspace(Phase.PENDING), None, known(None), NOW).cause == f"{ID}/3"


def test_a_start_beyond_its_deadline_says_what_its_node_was_at() -> None:
    late = Deadline(DeadlineKind.INIT, NOW)
    [step] = steps(Phase.INITIALIZING, known(facts(RunState.INITIALIZING)), late)
    assert step == Record(Event.FAIL, "its content was not there in time: is initializing")
