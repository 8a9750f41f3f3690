"""One workspace through any life that people, deadlines, its node and the network between them can give it.

The control plane is the real plan over a model of the database; the node is a model that keeps the promises of the
agent's port. Between them readings fail or are old, requests and replies get lost, and the control plane is killed
after any step. Whatever happened: once the world is quiet, the workspace comes to where it was last asked to be.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from fairwater.domain.ids import RunNumber, WorkspaceId
from fairwater.domain.reading import Known, Missing, Reading, Stale
from fairwater.domain.workspaces.control import AskFacts, AskStart, AskStop, DeleteVolume, Record, Step, plan_workspace
from fairwater.domain.workspaces.deadlines import Deadline, DeadlinePolicy, deadline_on_entering
from fairwater.domain.workspaces.run import RunFacts, RunState
from fairwater.domain.workspaces.workspace import (
    ACTIVE,
    AT_REST,
    Event,
    Phase,
    TransitionRejected,
    Workspace,
    transition,
)

BEGIN = datetime(2026, 1, 5, 9, 0, tzinfo=UTC)
ID = WorkspaceId("abcdefghjkmn")
POLICY = DeadlinePolicy(startup_s=60, init_s=120, stopping_s=60)
SOON = 12
"""So many turns of a quiet world must be enough."""


class Refused(Exception):
    """The node refuses a command: of an older run, or while a run holds the volume."""


@dataclass
class Node:
    """Keeps the promises of `ports.agent.RunAgent`: fenced by run number, every command may be repeated."""

    fence: int = 0
    held: RunFacts | None = None
    volume: bool = False

    @property
    def alive(self) -> bool:
        return self.held is not None and self.held.state is not RunState.ENDED

    def start(self, run: RunNumber, now: datetime) -> None:
        if run < self.fence:
            raise Refused
        if run > self.fence:  # ends what is left of an older run, and begins
            self.fence, self.volume = run, True
            self.held = RunFacts(ID, run, RunState.STARTING, "starting", now)

    def stop(self, run: RunNumber, force: bool) -> None:
        if run < self.fence:
            raise Refused
        if self.held is not None and self.held.run == run and self.alive:
            self.held = replace(self.held, state=RunState.ENDED if force else RunState.STOPPING, reason="stopping")

    def delete_volume(self, run: RunNumber) -> None:
        if run < self.fence or self.alive:
            raise Refused
        self.volume, self.held = False, None

    def go_on(self) -> None:
        """The run under way takes its next step."""
        onward = {
            RunState.STARTING: RunState.INITIALIZING,
            RunState.INITIALIZING: RunState.RUNNING,
            RunState.STOPPING: RunState.ENDED,
        }
        if self.held is not None and self.held.state in onward:
            state = onward[self.held.state]
            self.held = replace(self.held, state=state, reason=self.held.failure or str(state))

    def break_down(self, failure: str | None) -> None:
        if self.held is not None and self.alive:
            self.held = replace(self.held, state=RunState.STOPPING, reason=failure or "ended", failure=failure)

    def lose_everything(self) -> None:
        self.fence, self.held, self.volume = 0, None, False


class LifeOfAWorkspace(RuleBasedStateMachine):
    @initialize()
    def begin(self) -> None:
        self.now = BEGIN
        self.node = Node()
        self.workspace = Workspace(ID, Phase.STOPPED, "created", BEGIN, RunNumber(0))
        self.deadline: Deadline | None = None
        self.cleared = False
        self.last_known: Known[RunFacts | None] | None = None
        self.asked_starts: list[RunNumber] = []
        self.highest = 0

    # ------------------------------------------------------------ the database

    def record(self, event: Event, reason: str) -> None:
        before = self.workspace
        self.workspace = transition(before, event, reason, self.now)
        if self.workspace.phase is not before.phase:
            self.deadline = deadline_on_entering(self.workspace.phase, self.deadline, self.now, POLICY)
        if before.phase in ACTIVE and self.workspace.phase in {*AT_REST, Phase.DELETED}:
            assert event is Event.RELEASED
            assert not self.node.alive, "called released while its node still runs it"

    def ask(self, event: Event) -> None:
        """What a person asks for; the table may say no."""
        try:
            self.record(event, "asked for")
        except TransitionRejected as refusal:
            code = refusal.code
        else:
            code = "wrong_phase"
        assert code == "wrong_phase"

    # ------------------------------------------------------------ people, time, the node

    @rule(event=st.sampled_from([Event.START, Event.START, Event.STOP, Event.DELETE]))
    def a_person_asks(self, event: Event) -> None:
        self.ask(event)

    @rule(seconds=st.sampled_from([1, 61, 500]))
    def time_passes(self, seconds: int) -> None:
        self.now += timedelta(seconds=seconds)

    @rule()
    def the_node_goes_on(self) -> None:
        self.node.go_on()

    @rule(failure=st.sampled_from([None, "no such branch"]))
    def the_run_ends_or_fails(self, failure: str | None) -> None:
        self.node.break_down(failure)

    @rule()
    def the_node_loses_everything(self) -> None:
        self.node.lose_everything()

    @precondition(lambda self: self.asked_starts)
    @rule(data=st.data())
    def an_old_request_arrives_once_more(self, data: st.DataObject) -> None:
        run = data.draw(st.sampled_from(self.asked_starts))
        before = self.node.held
        if run <= self.node.fence:
            try:
                self.node.start(run, self.now)
            except Refused:
                assert run < self.node.fence
            assert self.node.held is before

    # ------------------------------------------------------------ the control plane

    @rule(
        sight=st.sampled_from(["known", "known", "known", "stale", "missing"]),
        fates=st.lists(st.sampled_from(["done", "done", "lost", "reply lost"]), min_size=3, max_size=3),
        killed_after=st.sampled_from([0, 1, 2, 3, 3, 3]),
    )
    def the_control_plane_turns(self, sight: str, fates: list[str], killed_after: int) -> None:
        self.turn(sight, fates, killed_after)

    def turn(self, sight: str, fates: list[str], killed_after: int) -> None:
        if self.cleared or self.workspace.phase in AT_REST:
            return
        reading: Reading[RunFacts | None] = Missing("no answer")
        if sight == "known":
            reading = self.last_known = Known(self.node.held, self.now)
        elif sight == "stale" and self.last_known is not None:
            reading = Stale(self.last_known.value, self.last_known.at, "no answer")
        plan = plan_workspace(self.workspace, self.deadline, reading, self.now)
        assert bool(plan.steps) != (plan.waiting is not None)
        if isinstance(reading, Missing):
            released = [step for step in plan.steps if isinstance(step, Record) and step.event is not Event.FAIL]
            assert released == [], "decided that a run is over without a word of its node"
        for step, fate in list(zip(plan.steps, fates, strict=False))[:killed_after]:
            if not self.apply(step, fate):
                return

    def apply(self, step: Step, fate: str) -> bool:
        """Whether the step went through, as far as the control plane can tell."""
        if isinstance(step, Record):
            self.record(step.event, step.reason)
            return True
        if isinstance(step, AskFacts):
            return True
        assert step.run == self.workspace.run, "asks for another run than the workspace's"
        if isinstance(step, AskStart):
            assert self.workspace.phase is Phase.PENDING
            self.asked_starts.append(step.run)
        if isinstance(step, DeleteVolume):
            assert self.workspace.phase is Phase.DELETED
            assert not self.node.alive, "deletes a volume that a run holds"
        if fate == "lost":
            return False
        try:
            match step:
                case AskStart(run):
                    self.node.start(run, self.now)
                case AskStop(run, force):
                    self.node.stop(run, force)
                case DeleteVolume(run):
                    self.node.delete_volume(run)
        except Refused:
            return False
        if fate == "reply lost":
            return False
        if isinstance(step, DeleteVolume):
            self.cleared = True
        return True

    # ------------------------------------------------------------ what always holds

    @invariant()
    def run_numbers_never_fall(self) -> None:
        assert self.workspace.run >= self.highest
        assert self.node.fence <= self.workspace.run, "the node has seen a run that the database has not"
        self.highest = self.workspace.run

    @invariant()
    def at_rest_nothing_runs(self) -> None:
        if self.workspace.phase in {*AT_REST, Phase.DELETED}:
            assert not self.node.alive

    @invariant()
    def what_should_pass_has_a_deadline(self) -> None:
        should_pass = self.workspace.phase in ACTIVE - {Phase.RUNNING}
        assert (self.deadline is not None) == should_pass

    @invariant()
    def a_failure_is_kept_until_the_next_start(self) -> None:
        assert (self.workspace.phase is Phase.FAILED) <= (self.workspace.failure is not None)

    # ------------------------------------------------------------ the world goes quiet

    def settle(self) -> None:
        for _ in range(SOON):
            self.turn("known", ["done"] * 3, 3)
            self.node.go_on()
            self.now += timedelta(seconds=1)

    def teardown(self) -> None:
        if not hasattr(self, "workspace"):
            return
        self.settle()
        assert self.cleared or self.workspace.phase in {*AT_REST, Phase.RUNNING}
        if self.workspace.phase is Phase.RUNNING:
            assert self.node.held is not None
            assert (self.node.held.run, self.node.held.state) == (self.workspace.run, RunState.RUNNING)
        self.ask(Event.STOP)
        self.settle()
        assert self.cleared or self.workspace.phase in AT_REST
        self.ask(Event.START)
        self.settle()
        assert self.cleared or self.workspace.phase is Phase.RUNNING
        self.ask(Event.DELETE)
        self.settle()
        assert self.cleared
        assert self.workspace.phase is Phase.DELETED
        assert not self.node.volume
        assert not self.node.alive


TestLifeOfAWorkspace = LifeOfAWorkspace.TestCase
TestLifeOfAWorkspace.settings = settings(max_examples=250, stateful_step_count=40, deadline=None)


def test_the_model_notices_a_release_that_nobody_confirmed() -> None:
    """The machine above can fail: a control plane that takes silence for an end is caught."""
    life = LifeOfAWorkspace()
    life.begin()
    life.ask(Event.START)
    for _ in range(4):
        life.turn("known", ["done"] * 3, 3)
        life.node.go_on()
    life.ask(Event.STOP)
    with pytest.raises(AssertionError, match="still runs it"):
        life.record(Event.RELEASED, "no answer, so it must be over")
