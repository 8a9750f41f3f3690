"""A run comes up and goes down in the same way however often its executor is interrupted.

`Node` is a model of a node: it does each step of a plan and refuses one that has no sense where it stands. An
interruption after each step, with a plan anew from the facts then found, must end where an undisturbed run ends.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fairwater.domain.plan import Plan
from fairwater.domain.workspaces.run import NodeView, RunStep, SandboxState, VolumeState, Wish, plan_run

NOW = datetime(2026, 1, 5, 9, 0, tzinfo=UTC)
GRACE_S = 10.0
AFTER_GRACE = NOW + timedelta(seconds=GRACE_S)
LONGEST = 16
"""No run needs more steps than this, from anywhere."""

VIEWS = [
    NodeView(volume, ready, sandbox, signalled)
    for volume, ready, sandbox, signalled in product(VolumeState, (False, True), (None, *SandboxState), (None, NOW))
    # Without a volume there is no content, and a sandbox that was admitted holds a volume.
    if not (volume is VolumeState.ABSENT and ready)
    and not (sandbox in {SandboxState.ADMITTED, SandboxState.LAUNCHED} and volume is not VolumeState.ATTACHED)
    and not (sandbox is SandboxState.LAUNCHED and not ready)
]
VIEWS += [
    replace(view, configured=configured, image_ready=image, home_ready=home, tasks_started=tasks)
    for view in VIEWS
    for configured, image, home, tasks in product((False, True), repeat=4)
    if not (configured and image and home and tasks)
    # Configured is what was read from the content; a sandbox is claimed for an image that is here.
    and not (configured and not view.content_ready)
    and not (view.sandbox is not None and not (configured and image))
    and not (view.sandbox in {SandboxState.ADMITTED, SandboxState.LAUNCHED} and not home)
]


@dataclass
class Node:
    """What a node does with a step. Each `assert` is something that would harm a workspace."""

    view: NodeView
    launches: int = 0
    released: bool = False

    def apply(self, step: RunStep, now: datetime) -> None:
        view = self.view
        match step:
            case RunStep.CREATE_VOLUME:
                if view.volume is VolumeState.ABSENT:
                    self.view = replace(view, volume=VolumeState.DETACHED, content_ready=False)
            case RunStep.ATTACH_VOLUME:
                assert view.volume is not VolumeState.ABSENT, "attaches a volume that is not there"
                self.view = replace(view, volume=VolumeState.ATTACHED)
            case RunStep.BRING_CONTENT:
                assert view.volume is VolumeState.ATTACHED, "brings content onto a volume that is not attached"
                self.view = replace(view, content_ready=True)
            case RunStep.CONFIGURE:
                assert view.content_ready, "reads a configuration that is not there"
                assert view.volume is VolumeState.ATTACHED, "reads from a volume that is not attached"
                self.view = replace(view, configured=True)
            case RunStep.PREPARE_IMAGE:
                assert view.configured, "brings in an image before it is known which"
                self.view = replace(view, image_ready=True)
            case RunStep.FILL_HOME:
                assert view.image_ready, "fills the home directory from an image that is not here"
                assert view.volume is VolumeState.ATTACHED, "fills a home directory that is not attached"
                self.view = replace(view, home_ready=True)
            case RunStep.CLAIM_SANDBOX:
                assert view.image_ready, "claims a sandbox of an image that is not here"
                if view.sandbox is None:
                    self.view = replace(view, sandbox=SandboxState.PARKED)
            case RunStep.ADMIT:
                assert view.volume is VolumeState.ATTACHED, "moves in a volume that is not attached"
                assert view.sandbox in {SandboxState.PARKED, SandboxState.ADMITTED}, "fills a sandbox out of turn"
                self.view = replace(view, sandbox=SandboxState.ADMITTED)
            case RunStep.LAUNCH:
                assert view.content_ready, "starts without content"
                assert view.sandbox is SandboxState.ADMITTED, "starts before limits, volume and network were read back"
                assert view.home_ready, "starts with a home directory that is not filled"
                self.view = replace(view, sandbox=SandboxState.LAUNCHED)
                self.launches += 1
            case RunStep.START_TASKS:
                assert view.sandbox is SandboxState.LAUNCHED, "starts tasks before the first process"
                self.view = replace(view, tasks_started=True)
            case RunStep.SIGNAL:
                assert view.sandbox is SandboxState.LAUNCHED
                self.view = replace(view, signalled_at=view.signalled_at or now)
            case RunStep.KILL:
                assert view.sandbox is not None
                self.view = replace(view, sandbox=SandboxState.DEAD)
            case RunStep.REMOVE_SANDBOX:
                assert view.sandbox in {None, SandboxState.DEAD}, "removes a sandbox with living processes"
                self.view = replace(view, sandbox=None, signalled_at=None)
            case RunStep.DETACH_VOLUME:
                assert view.sandbox is None, "takes the volume from a sandbox"
                self.view = replace(view, volume=VolumeState.DETACHED)
            case RunStep.RELEASE:
                assert view.sandbox is None, "calls a run ended whose sandbox is still there"
                assert view.volume is not VolumeState.ATTACHED, "calls a run ended that still holds its volume"
                self.released = True


def plan(wish: Wish, view: NodeView, now: datetime) -> Plan[RunStep]:
    return plan_run(wish, view, now, NOW, GRACE_S)


def settle(wish: Wish, node: Node, interrupted_after: int | None = None) -> None:
    """Carries out plan after plan until the run has ended or a plan has no steps.

    `interrupted_after` cuts each plan short after that many steps.
    """
    for _ in range(LONGEST):
        steps = plan(wish, node.view, AFTER_GRACE).steps
        if not steps:
            return
        for step in steps[:interrupted_after]:
            node.apply(step, NOW)
        if node.released:
            return
    raise AssertionError(f"no end in sight: {node.view}")


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("wish", list(Wish))
def test_a_run_interrupted_after_every_step_ends_in_the_same_place(view: NodeView, wish: Wish) -> None:
    undisturbed, interrupted = Node(view), Node(view)
    settle(wish, undisturbed)
    settle(wish, interrupted, interrupted_after=1)
    assert interrupted.view == undisturbed.view
    assert interrupted.released == undisturbed.released == (wish is not Wish.RUNNING)
    assert interrupted.launches == undisturbed.launches <= 1


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("wish", list(Wish))
def test_a_step_done_twice_is_a_step_done_once(view: NodeView, wish: Wish) -> None:
    for step in plan(wish, view, AFTER_GRACE).steps:
        once = Node(view)
        once.apply(step, NOW)
        view = once.view
        if step is RunStep.LAUNCH:
            continue  # once only, which its port says
        twice = Node(once.view)
        twice.apply(step, NOW)
        assert twice.view == once.view


@pytest.mark.parametrize("view", VIEWS)
def test_every_run_that_is_not_wanted_is_released(view: NodeView) -> None:
    for wish in (Wish.STOPPED, Wish.KILLED):
        node = Node(view)
        settle(wish, node)
        assert node.released
        assert node.view.volume is not VolumeState.ATTACHED
        assert (node.view.volume is VolumeState.ABSENT) == (view.volume is VolumeState.ABSENT)
        assert node.view.content_ready == view.content_ready, "a stop keeps what is on the volume"


@pytest.mark.parametrize("view", [view for view in VIEWS if view.sandbox is not SandboxState.DEAD])
def test_every_run_that_is_wanted_comes_up(view: NodeView) -> None:
    node = Node(view)
    settle(Wish.RUNNING, node)
    assert node.view.sandbox is SandboxState.LAUNCHED
    assert node.view.volume is VolumeState.ATTACHED
    assert node.view.content_ready
    assert node.view.tasks_started


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("wish", list(Wish))
def test_a_plan_has_steps_or_says_what_it_waits_for(view: NodeView, wish: Wish) -> None:
    made = plan(wish, view, NOW)
    assert bool(made.steps) != (made.waiting is not None)
    assert len(set(made.steps)) == len(made.steps)
    if made.waiting:
        assert made.waiting.what


def test_a_dead_run_is_not_started_again() -> None:
    made = plan(Wish.RUNNING, NodeView(VolumeState.ATTACHED, True, SandboxState.DEAD), NOW)
    assert made.steps == ()


def test_a_launched_workspace_is_signalled_first_and_killed_after_the_grace() -> None:
    running = NodeView(VolumeState.ATTACHED, True, SandboxState.LAUNCHED)
    assert plan(Wish.STOPPED, running, NOW).steps == (RunStep.SIGNAL,)
    signalled = replace(running, signalled_at=NOW)
    for moment in (NOW, AFTER_GRACE - timedelta(milliseconds=1)):
        waiting = plan(Wish.STOPPED, signalled, moment).waiting
        assert waiting is not None
        assert waiting.until is not None
        assert moment < waiting.until <= AFTER_GRACE
    assert plan(Wish.STOPPED, signalled, AFTER_GRACE).steps == (
        RunStep.KILL,
        RunStep.REMOVE_SANDBOX,
        RunStep.DETACH_VOLUME,
        RunStep.RELEASE,
    )


def test_a_kill_grants_no_grace() -> None:
    running = NodeView(VolumeState.ATTACHED, True, SandboxState.LAUNCHED)
    assert plan(Wish.KILLED, running, NOW).steps[0] is RunStep.KILL


@pytest.mark.parametrize(
    "view",
    [
        NodeView(VolumeState.ATTACHED, True, SandboxState.LAUNCHED, signalled_at=NOW, quiet=True),
        NodeView(VolumeState.ATTACHED, True, SandboxState.DEAD, signalled_at=NOW),
    ],
)
def test_a_workspace_whose_processes_have_ended_is_cleared_before_the_grace_is_over(view: NodeView) -> None:
    assert plan(Wish.STOPPED, view, NOW).steps[-3:] == (
        RunStep.REMOVE_SANDBOX,
        RunStep.DETACH_VOLUME,
        RunStep.RELEASE,
    )


@given(st.sampled_from(VIEWS), st.lists(st.tuples(st.sampled_from(Wish), st.integers(0, 4)), max_size=8))
def test_a_mind_changed_at_any_point_still_ends_released(view: NodeView, changes: list[tuple[Wish, int]]) -> None:
    """Nobody wants a run back once it is being stopped, but a plan must survive even that."""
    node = Node(view)
    for wish, steps in changes:
        for step in plan(wish, node.view, NOW).steps[:steps]:
            node.apply(step, NOW)
        if node.released:
            return
    settle(Wish.STOPPED, node)
    assert node.released
