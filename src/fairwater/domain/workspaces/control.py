"""What the control plane does next for one workspace: the pure plan of the workspaces loop."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from fairwater.domain.ids import RunNumber
from fairwater.domain.plan import Plan, Waiting
from fairwater.domain.reading import Known, Missing, Reading
from fairwater.domain.workspaces.deadlines import Deadline, DeadlineKind
from fairwater.domain.workspaces.run import RunFacts, RunState
from fairwater.domain.workspaces.workspace import STARTING, Event, Phase, Workspace


@dataclass(frozen=True, slots=True)
class AskFacts:
    """Ask the node what it knows now: what was heard before the phase was entered proves nothing about it."""


@dataclass(frozen=True, slots=True)
class AskStart:
    """Ask the node for run `run`; repeating it is harmless."""

    run: RunNumber


@dataclass(frozen=True, slots=True)
class AskStop:
    """Ask the node to end run `run`; `force` skips the grace."""

    run: RunNumber
    force: bool = False


@dataclass(frozen=True, slots=True)
class DeleteVolume:
    """Ask the node to delete the volume, fenced by the last run."""

    run: RunNumber


@dataclass(frozen=True, slots=True)
class Record:
    """Write `event` into the database."""

    event: Event
    reason: str


Step = AskFacts | AskStart | AskStop | DeleteVolume | Record

_NODE_MUST_KNOW = frozenset({Phase.CREATING, Phase.RESTORING, Phase.INITIALIZING, Phase.RUNNING, Phase.STOPPING})
"""Phases in which a node that knows nothing of the run has released, or lost, it."""

_OVERDUE = {
    DeadlineKind.STARTUP: "did not start in time",
    DeadlineKind.INIT: "its content was not there in time",
}


def plan_workspace(
    workspace: Workspace, deadline: Deadline | None, facts: Reading[RunFacts | None], now: datetime
) -> Plan[Step]:
    """The next steps for `workspace`. `facts` is what the node says of its run: None, when it knows of none."""
    cause = f"{workspace.id}/{workspace.run}"
    overdue = deadline is not None and now >= deadline.at
    if workspace.phase is Phase.DELETED:
        return _plan_deleted(workspace, facts, cause)
    if overdue and workspace.phase in STARTING and deadline is not None:
        return Plan((Record(Event.FAIL, _overdue(workspace, deadline.kind, facts)),), cause=cause)
    if isinstance(facts, Missing):
        until = deadline.at if deadline and not overdue else None
        return Plan(waiting=Waiting(f"the node to answer: {facts.reason}", workspace.since, until), cause=cause)
    seen = facts.value
    if seen is not None and seen.run < workspace.run:
        if seen.state not in {RunState.STOPPING, RunState.ENDED}:
            return Plan((AskStop(seen.run),), cause=cause)
        if seen.state is RunState.STOPPING:
            return Plan(waiting=Waiting(f"run {seen.run} to be released", workspace.since), cause=cause)
        seen = None
    if seen is None and workspace.phase in _NODE_MUST_KNOW and isinstance(facts, Known) and facts.at < workspace.since:
        return Plan((AskFacts(),), cause=cause)
    match workspace.phase:
        case Phase.PENDING if seen is None:
            return Plan((AskStart(workspace.run),), cause=cause)
        case Phase.STOPPING if seen is None:
            # Only a fresh reading may say that nothing is left; a stale one proves nothing.
            if isinstance(facts, Known):
                return Plan((Record(Event.RELEASED, "stopped"),), cause=cause)
        case Phase.STOPPING if seen is not None and seen.state is not RunState.ENDED:
            if seen.state is not RunState.STOPPING or overdue:
                return Plan((AskStop(workspace.run, force=overdue),), cause=cause)
        case Phase.STOPPED | Phase.FAILED if seen is not None and seen.state is not RunState.ENDED:
            if seen.state is not RunState.STOPPING:
                return Plan((AskStop(seen.run),), cause=cause)
        case Phase.LOST if seen is not None and seen.state is RunState.RUNNING:
            return Plan((Record(Event.NODE_RETURNED, "its node is back"),), cause=cause)
        case Phase.CREATING | Phase.RESTORING | Phase.INITIALIZING | Phase.RUNNING if seen is None:
            if isinstance(facts, Known):
                return Plan((Record(Event.FAIL, "its node no longer knows the run"),), cause=cause)
        case _:
            pass
    records = () if seen is None else _records(workspace.phase, seen)
    if records:
        return Plan(records, cause=cause)
    return Plan(waiting=_waiting(workspace, None if overdue else deadline), cause=cause)


def _overdue(workspace: Workspace, kind: DeadlineKind, facts: Reading[RunFacts | None]) -> str:
    """With what the node was at when the time was over."""
    what = _OVERDUE.get(kind, "took too long")
    seen = None if isinstance(facts, Missing) else facts.value
    if seen is None or seen.run != workspace.run or seen.state not in {RunState.STARTING, RunState.INITIALIZING}:
        return what
    return f"{what}: {seen.reason}"


def _plan_deleted(workspace: Workspace, facts: Reading[RunFacts | None], cause: str) -> Plan[Step]:
    seen = None if isinstance(facts, Missing) else facts.value
    if seen is None or seen.state is RunState.ENDED:
        return Plan((DeleteVolume(workspace.run),), cause=cause)
    if seen.state is RunState.STOPPING:
        return Plan(waiting=Waiting(f"run {seen.run} to be released", workspace.since), cause=cause)
    return Plan((AskStop(seen.run),), cause=cause)


def _records(phase: Phase, seen: RunFacts) -> tuple[Record, ...]:
    """What the node's word changes in the database."""
    records: list[Record] = []
    if phase is Phase.PENDING:
        records.append(Record(Event.PLACED, "accepted by its node"))
        phase = Phase.CREATING
    match seen.state:
        case RunState.INITIALIZING if phase in {Phase.CREATING, Phase.RESTORING}:
            records.append(Record(Event.CONTENT_BEGAN, seen.reason))
        case RunState.RUNNING if phase in STARTING:
            records.append(Record(Event.READY, seen.reason))
        case RunState.STOPPING | RunState.ENDED if phase in STARTING or phase is Phase.RUNNING:
            if seen.failure:
                records.append(Record(Event.FAIL, seen.failure))
            else:
                records.append(Record(Event.ENDED, seen.reason))
            phase = Phase.STOPPING
        case _:
            pass
    if seen.state is RunState.ENDED and phase is Phase.STOPPING:
        records.append(Record(Event.RELEASED, seen.failure or seen.reason))
    return tuple(records)


def _waiting(workspace: Workspace, deadline: Deadline | None) -> Waiting:
    what = {
        Phase.PENDING: "a node to accept the run",
        Phase.CREATING: "the sandbox",
        Phase.RESTORING: "the content to be restored",
        Phase.INITIALIZING: "the repository to be brought in",
        Phase.STOPPING: "the run to be released",
    }.get(workspace.phase, "nothing")
    return Waiting(what, workspace.since, deadline.at if deadline else None)
