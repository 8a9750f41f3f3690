"""One run of a workspace on a node: what is wanted, what is there, and the steps between.

Decides in which order a run comes up and goes down. Every step is idempotent: interrupted after any of them, the
next plan from the facts then found ends in the same place. Refuses to know how a step is done.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum

from fairwater.domain.ids import RunNumber, WorkspaceId
from fairwater.domain.plan import Plan, Waiting
from fairwater.domain.workspaces.classes import WorkspaceClass
from fairwater.domain.workspaces.setup import Setup


class RunState(StrEnum):
    """Where a run stands on its node."""

    STARTING = "starting"
    INITIALIZING = "initializing"
    RUNNING = "running"
    STOPPING = "stopping"
    ENDED = "ended"  # nothing is left of it on the node but the volume


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a long step is: `done` of `total` in `unit`; `total` is None where it is not known."""

    step: str
    done: int = 0
    total: int | None = None
    unit: str = ""


@dataclass(frozen=True, slots=True)
class Source:
    """The repository to bring in: see `context.Context`. `local` marks a `file://` URL, which is bound read-only.

    `ref_path` is a ref followed by a folder, in place of `ref`: which part is which, only the repository knows.
    """

    clone_url: str
    name: str
    ref: str | None = None
    local: bool = False
    ref_path: str | None = None


@dataclass(frozen=True, slots=True)
class RunSpec:
    """All a node needs to know of a run, secrets apart. `command` is the first process, None for none.

    `image_asked`: a person has named the image, so that what the repository says of one does not count.
    """

    image: str
    limits: WorkspaceClass
    source: Source | None = None
    environment: tuple[tuple[str, str], ...] = ()
    command: tuple[str, ...] | None = None
    image_asked: bool = True
    dotfiles: Source | None = None


@dataclass(frozen=True, slots=True)
class RunFacts:
    """What a node says of a run. `failure` and `code` are set where it went wrong.

    `revision` counts the run's changes, so that of two answers the later one is known whatever way they took.
    """

    workspace: WorkspaceId
    run: RunNumber
    state: RunState
    reason: str
    since: datetime
    progress: Progress | None = None
    failure: str | None = None
    code: str | None = None
    revision: int = 0
    setup: Setup | None = None
    """What the run was set up with, once that is decided."""


class TaskState(StrEnum):
    WAITING = "waiting"
    INITIALIZING = "initializing"  # what runs once in the workspace's life has not come to its end
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    STOPPED = "stopped"  # the run ended before it did


@dataclass(frozen=True, slots=True)
class TaskFacts:
    """Where a task of a run stands. `exit_status` is set once it has ended: 128 + n where signal n ended it."""

    number: int
    name: str
    state: TaskState
    exit_status: int | None = None
    started_at: datetime | None = None
    ended_at: datetime | None = None


class VolumeState(StrEnum):
    ABSENT = "absent"
    DETACHED = "detached"
    ATTACHED = "attached"


class SandboxState(StrEnum):
    """A sandbox on its way from the pool to the workspace's first process."""

    PARKED = "parked"  # claimed for the run, nothing of the workspace in it yet
    ADMITTED = "admitted"  # limits in force, volume moved in, network open, all of it read back
    LAUNCHED = "launched"  # the first process was let go
    DEAD = "dead"


class Wish(StrEnum):
    RUNNING = "running"
    STOPPED = "stopped"  # signal, grace, kill
    KILLED = "killed"  # at once


@dataclass(frozen=True, slots=True)
class NodeView:
    """What is there of one workspace on this node. `sandbox` is None where no sandbox is claimed for the run.

    `configured`: it is decided what the run is set up with; `image_ready`: that image is here; `home_ready`: the home
    directory has what the image brings. `tasks_started` counts once the first process was let go. `quiet`: after the
    signal, no process of the workspace is left.
    """

    volume: VolumeState
    content_ready: bool
    sandbox: SandboxState | None
    signalled_at: datetime | None = None
    quiet: bool = False
    configured: bool = True
    image_ready: bool = True
    home_ready: bool = True
    tasks_started: bool = True


class RunStep(StrEnum):
    CREATE_VOLUME = "create volume"
    ATTACH_VOLUME = "attach volume"
    BRING_CONTENT = "bring content"
    CONFIGURE = "configure"
    PREPARE_IMAGE = "prepare image"
    FILL_HOME = "fill home"
    CLAIM_SANDBOX = "claim sandbox"
    ADMIT = "admit"
    LAUNCH = "launch"
    START_TASKS = "start tasks"
    SIGNAL = "signal"
    KILL = "kill"
    REMOVE_SANDBOX = "remove sandbox"
    DETACH_VOLUME = "detach volume"
    RELEASE = "release"  # nothing is left but the volume: the run has ended


_LOOK_AGAIN_S = 0.05
"""How soon to look again whether the processes that were asked to end have ended."""


def plan_run(wish: Wish, view: NodeView, now: datetime, since: datetime, grace_s: float) -> Plan[RunStep]:
    """The steps from `view` to `wish`, in order. `grace_s` is the time between signal and kill, in seconds."""
    if wish is Wish.RUNNING:
        return _plan_up(view, since)
    return _plan_down(view, now, 0.0 if wish is Wish.KILLED else grace_s)


def _plan_up(view: NodeView, since: datetime) -> Plan[RunStep]:
    if view.sandbox is SandboxState.DEAD:
        return Plan(waiting=Waiting("the run to be cleared: its sandbox is dead", since))
    if view.sandbox is SandboxState.LAUNCHED:
        if not view.tasks_started:
            return Plan((RunStep.START_TASKS,))
        return Plan(waiting=Waiting("the run to end", since))
    steps: list[RunStep] = []
    if view.volume is VolumeState.ABSENT:
        steps.append(RunStep.CREATE_VOLUME)
    if view.volume is not VolumeState.ATTACHED:
        steps.append(RunStep.ATTACH_VOLUME)
    if not view.content_ready:
        steps.append(RunStep.BRING_CONTENT)
    if not view.configured or not view.content_ready:
        # Which image it is, and so whether that is here, is known only afterwards: from there on it is planned anew.
        return Plan((*steps, RunStep.CONFIGURE))
    if not view.image_ready:
        steps.append(RunStep.PREPARE_IMAGE)
    if not view.home_ready:
        steps.append(RunStep.FILL_HOME)
    if view.sandbox is None:
        steps.append(RunStep.CLAIM_SANDBOX)
    if view.sandbox is not SandboxState.ADMITTED or view.volume is not VolumeState.ATTACHED:
        steps.append(RunStep.ADMIT)
    steps.append(RunStep.LAUNCH)
    if not view.tasks_started:
        steps.append(RunStep.START_TASKS)
    return Plan(tuple(steps))


def _plan_down(view: NodeView, now: datetime, grace_s: float) -> Plan[RunStep]:
    if view.sandbox is SandboxState.LAUNCHED and grace_s > 0:
        if view.signalled_at is None:
            return Plan((RunStep.SIGNAL,))
        kill_at = view.signalled_at + timedelta(seconds=grace_s)
        if now < kill_at and not view.quiet:
            look_again = min(kill_at, now + timedelta(seconds=_LOOK_AGAIN_S))
            return Plan(waiting=Waiting("the workspace's processes to end", view.signalled_at, look_again))
    steps: list[RunStep] = []
    if view.sandbox is not None:
        if view.sandbox is not SandboxState.DEAD:
            steps.append(RunStep.KILL)
        steps.append(RunStep.REMOVE_SANDBOX)
    if view.volume is VolumeState.ATTACHED:
        steps.append(RunStep.DETACH_VOLUME)
    steps.append(RunStep.RELEASE)
    return Plan(tuple(steps))
