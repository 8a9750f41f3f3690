"""What a workspace is after its database was put back: the node's word counts, and no number is given out twice."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fairwater.domain.ids import RunNumber, WorkspaceId
from fairwater.domain.reading import Known
from fairwater.domain.workspaces.control import AskStart, AskStop, DeleteVolume, plan_workspace
from fairwater.domain.workspaces.restored import after_restore
from fairwater.domain.workspaces.run import RunFacts, RunState
from fairwater.domain.workspaces.workspace import ACTIVE, AT_REST, Event, Phase, Workspace, transition

BEGAN = datetime(2022, 4, 11, 8, 0, tzinfo=UTC)
NOW = BEGAN + timedelta(days=1)
ID = WorkspaceId("abcdefghjkmn")
REASON = "restored from a backup"


def workspace(phase: Phase, run: int = 3, *, doomed: bool = False, failure: str | None = None) -> Workspace:
    return Workspace(ID, phase, "before", BEGAN, RunNumber(run), failure=failure, doomed=doomed)


def facts(state: RunState, run: int = 3, failure: str | None = None) -> RunFacts:
    return RunFacts(ID, RunNumber(run), state, state.value, NOW, failure=failure)


@pytest.mark.parametrize("run", [3, 7])
@pytest.mark.parametrize("phase", sorted(set(Phase) - {Phase.DELETED}))
@pytest.mark.parametrize(
    ("state", "expected"),
    [
        (RunState.STARTING, Phase.CREATING),
        (RunState.INITIALIZING, Phase.INITIALIZING),
        (RunState.RUNNING, Phase.RUNNING),
        (RunState.STOPPING, Phase.STOPPING),
    ],
)
def test_what_the_node_runs_is_what_there_is(phase: Phase, state: RunState, expected: Phase, run: int) -> None:
    after = after_restore(workspace(phase), facts(state, run), NOW)
    assert (after.phase, after.run) == (expected, run)


@pytest.mark.parametrize("phase", sorted(set(Phase) - AT_REST - {Phase.DELETED}))
def test_what_the_node_does_not_know_has_stopped_and_is_not_started_anew(phase: Phase) -> None:
    after = after_restore(workspace(phase), None, NOW)
    assert (after.phase, after.reason, after.run, after.since) == (Phase.STOPPED, REASON, 3, NOW)


@pytest.mark.parametrize("phase", sorted(AT_REST))
def test_what_was_at_rest_and_has_no_run_is_left_as_it_is(phase: Phase) -> None:
    before = workspace(phase)
    assert after_restore(before, None, NOW) is before


@pytest.mark.parametrize("phase", sorted(AT_REST))
def test_a_number_that_was_used_since_is_not_given_out_again(phase: Phase) -> None:
    after = after_restore(workspace(phase), facts(RunState.ENDED, 9), NOW)
    assert (after.phase, after.run) == (phase, 9)
    assert transition(after, Event.START, "asked for", NOW).run == 10


def test_a_run_that_has_failed_since_has_failed() -> None:
    after = after_restore(workspace(Phase.RUNNING), facts(RunState.ENDED, failure="no such branch"), NOW)
    assert (after.phase, after.failure, after.reason) == (Phase.FAILED, "no such branch", "no such branch")


def test_the_word_of_an_older_run_says_that_this_one_is_not_there() -> None:
    after = after_restore(workspace(Phase.RUNNING), facts(RunState.RUNNING, 2), NOW)
    assert (after.phase, after.run) == (Phase.STOPPED, 3)


def test_what_is_as_the_node_says_is_left_as_it_is() -> None:
    before = workspace(Phase.RUNNING)
    assert after_restore(before, facts(RunState.RUNNING), NOW) is before


def test_a_deletion_that_was_asked_for_stays_asked_for() -> None:
    stopping = workspace(Phase.STOPPING, doomed=True)
    alive = after_restore(stopping, facts(RunState.RUNNING), NOW)
    assert (alive.phase, alive.doomed) == (Phase.STOPPING, True)
    assert after_restore(stopping, None, NOW).phase is Phase.DELETED


def test_a_workspace_that_was_begun_again_after_its_deletion_was_not_deleted() -> None:
    """A later run than the one to be deleted: somebody has taken the deletion back by another restoration."""
    after = after_restore(workspace(Phase.STOPPING, doomed=True), facts(RunState.RUNNING, 8), NOW)
    assert (after.phase, after.doomed, after.run) == (Phase.RUNNING, False, 8)


WORKSPACES = st.builds(workspace, st.sampled_from(Phase), st.integers(0, 5), doomed=st.booleans())
FACTS = st.none() | st.builds(
    facts, st.sampled_from(RunState), st.integers(1, 7), st.sampled_from([None, "it has failed"])
)


@given(WORKSPACES, FACTS)
def test_a_run_number_never_goes_back(before: Workspace, said: RunFacts | None) -> None:
    assert after_restore(before, said, NOW).run == max(before.run, said.run if said else 0)


@given(WORKSPACES, FACTS)
def test_a_second_restoration_of_the_same_changes_nothing(before: Workspace, said: RunFacts | None) -> None:
    once = after_restore(before, said, NOW)
    assert after_restore(once, said, NOW + timedelta(hours=1)) is once


@given(WORKSPACES, FACTS)
def test_nothing_is_begun_by_a_restoration_and_nothing_that_runs_is_ended_unasked(
    before: Workspace, said: RunFacts | None
) -> None:
    after = after_restore(before, said, NOW)
    steps = plan_workspace(after, None, Known(said, NOW), NOW).steps
    assert not any(isinstance(step, AskStart) for step in steps)
    asked_to_end = before.doomed or before.phase is Phase.DELETED
    if not asked_to_end:
        assert not any(isinstance(step, DeleteVolume) for step in steps)
        stops = [step for step in steps if isinstance(step, AskStop)]
        assert all(said is not None and said.run < after.run for step in stops), "only what is older than the newest"


@given(WORKSPACES, FACTS)
def test_what_is_active_afterwards_has_a_run_that_is_alive(before: Workspace, said: RunFacts | None) -> None:
    after = after_restore(before, said, NOW)
    if after.phase in ACTIVE - {Phase.DELETED}:
        assert said is not None
        assert said.state is not RunState.ENDED
        assert said.run == after.run
