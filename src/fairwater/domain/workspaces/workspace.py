"""The life cycle of a workspace, as a table.

Decides which event leads from which phase to which; refuses to know nodes, databases and clocks. Every pair of
phase and event is in the table: it leads to a phase, is ignored because what it asks for already holds, or is
rejected with the history of the workspace.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime
from enum import StrEnum

from fairwater.domain.failure import Permanent
from fairwater.domain.ids import RunNumber, WorkspaceId


class Phase(StrEnum):
    """Where a workspace stands, as people and programs see it."""

    PENDING = "pending"
    CREATING = "creating"
    RESTORING = "restoring"
    INITIALIZING = "initializing"
    RUNNING = "running"
    STOPPING = "stopping"
    STOPPED = "stopped"
    FAILED = "failed"
    LOST = "lost"
    DELETED = "deleted"


class Event(StrEnum):
    """What can happen to a workspace."""

    START = "start"  # a person asks for a run
    PLACED = "placed"  # a node has accepted the run
    RESTORE_BEGAN = "restore_began"
    CONTENT_BEGAN = "content_began"  # the repository is being brought in
    READY = "ready"  # the first process may run; the node has read back that all is in place
    STOP = "stop"  # a person, or a deadline, asks for the end of the run
    ENDED = "ended"  # the run ended by itself; the node has still to be cleared
    FAIL = "fail"  # the run cannot go on, for a stated reason
    RELEASED = "released"  # nothing of the run is left on the node but its volume
    NODE_LOST = "node_lost"
    NODE_RETURNED = "node_returned"  # and the run is still alive there
    DELETE = "delete"  # the workspace is to go, for good


class Verdict(StrEnum):
    """What the table says of a pair that leads nowhere."""

    IGNORED = "ignored"  # already so: repeating a request is no error
    REJECTED = "rejected"


P, E, IGN, REJ = Phase, Event, Verdict.IGNORED, Verdict.REJECTED

ACTIVE = frozenset({P.PENDING, P.CREATING, P.RESTORING, P.INITIALIZING, P.RUNNING, P.STOPPING})
"""The phases in which a run holds, or may hold, something on a node."""
STARTING = frozenset({P.PENDING, P.CREATING, P.RESTORING, P.INITIALIZING})
AT_REST = frozenset({P.STOPPED, P.FAILED})

_ORDER = (
    P.PENDING, P.CREATING, P.RESTORING, P.INITIALIZING, P.RUNNING, P.STOPPING, P.STOPPED, P.FAILED, P.LOST, P.DELETED,
)  # fmt: skip

# One column a phase, in the order above.
_TABLE: dict[Event, tuple[Phase | Verdict, ...]] = {
    #                  pending     creating        restoring       initializing    running     stopping     stopped    failed      lost        deleted
    E.START:         (IGN,        IGN,            IGN,            IGN,            IGN,        REJ,         P.PENDING, P.PENDING,  P.PENDING,  REJ),
    E.PLACED:        (P.CREATING, IGN,            IGN,            IGN,            IGN,        IGN,         REJ,       REJ,        REJ,        REJ),
    E.RESTORE_BEGAN: (REJ,        P.RESTORING,    IGN,            REJ,            REJ,        IGN,         REJ,       REJ,        REJ,        REJ),
    E.CONTENT_BEGAN: (REJ,        P.INITIALIZING, P.INITIALIZING, IGN,            REJ,        IGN,         REJ,       REJ,        REJ,        REJ),
    E.READY:         (REJ,        P.RUNNING,      P.RUNNING,      P.RUNNING,      IGN,        IGN,         REJ,       REJ,        REJ,        REJ),
    E.STOP:          (P.STOPPING, P.STOPPING,     P.STOPPING,     P.STOPPING,     P.STOPPING, IGN,         IGN,       IGN,        P.STOPPING, REJ),
    E.ENDED:         (REJ,        P.STOPPING,     P.STOPPING,     P.STOPPING,     P.STOPPING, IGN,         IGN,       IGN,        P.STOPPING, IGN),
    E.FAIL:          (P.STOPPING, P.STOPPING,     P.STOPPING,     P.STOPPING,     P.STOPPING, IGN,         REJ,       REJ,        P.STOPPING, REJ),
    E.RELEASED:      (REJ,        REJ,            REJ,            REJ,            REJ,        P.STOPPED,   IGN,       IGN,        P.STOPPED,  IGN),
    E.NODE_LOST:     (IGN,        P.LOST,         P.LOST,         P.LOST,         P.LOST,     P.LOST,      IGN,       IGN,        IGN,        IGN),
    E.NODE_RETURNED: (REJ,        REJ,            REJ,            REJ,            IGN,        IGN,         IGN,       IGN,        P.RUNNING,  IGN),
    E.DELETE:        (P.STOPPING, P.STOPPING,     P.STOPPING,     P.STOPPING,     P.STOPPING, IGN,         P.DELETED, P.DELETED,  P.STOPPING, IGN),
}  # fmt: skip

TRANSITIONS: dict[tuple[Phase, Event], Phase | Verdict] = {
    (phase, event): row[column] for event, row in _TABLE.items() for column, phase in enumerate(_ORDER)
}


@dataclass(frozen=True, slots=True)
class Change:
    """One step of a workspace's history."""

    event: Event
    phase: Phase
    reason: str
    at: datetime


@dataclass(frozen=True, slots=True)
class Workspace:
    """What decisions need to know of a workspace.

    `failure` is why the current run cannot go on; it makes the end of stopping `failed` instead of `stopped`.
    `doomed` says that the workspace is to be deleted once its run is over.
    """

    id: WorkspaceId
    phase: Phase
    reason: str
    since: datetime
    run: RunNumber
    failure: str | None = None
    doomed: bool = False
    history: tuple[Change, ...] = ()


class TransitionRejected(Permanent):
    """The table rejects the event in this phase. The message carries the workspace's history."""

    def __init__(self, workspace: Workspace, event: Event) -> None:
        history = "; ".join(f"{c.at:%H:%M:%S} {c.event} → {c.phase}" for c in workspace.history[-8:]) or "none"
        super().__init__(
            f"workspace {workspace.id} is {workspace.phase} (run {workspace.run}), which does not allow "
            f"'{event}'. History: {history}",
            code="wrong_phase",
        )


def transition(workspace: Workspace, event: Event, reason: str, now: datetime) -> Workspace:
    """The workspace after `event`; the same object where the event changes nothing.

    Raises:
        TransitionRejected: the table rejects the pair.
    """
    outcome = TRANSITIONS[workspace.phase, event]
    if outcome is Verdict.REJECTED:
        raise TransitionRejected(workspace, event)
    doomed = workspace.doomed or event is Event.DELETE
    if outcome is Verdict.IGNORED:
        # A run that is already on its way down still has to learn that the workspace is to go.
        return replace(workspace, doomed=doomed) if doomed != workspace.doomed else workspace
    assert isinstance(outcome, Phase)
    failure, run = workspace.failure, workspace.run
    if event is Event.FAIL:
        failure = reason
    elif event is Event.START:
        failure, run, doomed = None, RunNumber(workspace.run + 1), False
    elif event is Event.NODE_RETURNED and (doomed or failure):
        outcome = Phase.STOPPING  # what was on its way down when its node was lost goes on down
    if event is Event.RELEASED:
        outcome = Phase.DELETED if doomed else Phase.FAILED if failure else Phase.STOPPED
        reason = failure or reason
    return replace(
        workspace,
        phase=outcome,
        reason=reason,
        since=now,
        run=run,
        failure=failure,
        doomed=doomed,
        history=(*workspace.history[-31:], Change(event, outcome, reason, now)),
    )
