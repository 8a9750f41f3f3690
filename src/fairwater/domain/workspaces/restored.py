"""What holds of a workspace after its database was put back to an earlier state, while nodes went on.

Decides from the node's word: it is newer than anything that was put back. A run number must never be given out twice,
for a node refuses what comes of an older run than it has seen.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime

from fairwater.domain.workspaces.run import RunFacts, RunState
from fairwater.domain.workspaces.workspace import AT_REST, Phase, Workspace

_REASON = "restored from a backup"
_PHASE = {
    RunState.STARTING: Phase.CREATING,
    RunState.INITIALIZING: Phase.INITIALIZING,
    RunState.RUNNING: Phase.RUNNING,
    RunState.STOPPING: Phase.STOPPING,
}


def after_restore(workspace: Workspace, facts: RunFacts | None, now: datetime) -> Workspace:
    """The workspace as it is to be, the same object where nothing of it changes. `facts` is what its node says, None
    where it knows of no run.

    A deletion that was asked for before the backup stays asked for; one from after it is forgotten with all else.
    """
    if workspace.phase is Phase.DELETED:
        return workspace if facts is None or facts.run <= workspace.run else replace(workspace, run=facts.run)
    newer = facts is not None and facts.run >= workspace.run
    run = facts.run if facts is not None and newer else workspace.run
    alive = facts is not None and newer and facts.state is not RunState.ENDED
    if alive and facts is not None:
        phase = Phase.STOPPING if workspace.doomed and run == workspace.run else _PHASE[facts.state]
        if phase is workspace.phase and run == workspace.run:
            return workspace
        doomed = workspace.doomed and run == workspace.run
        return replace(workspace, phase=phase, reason=_REASON, since=now, run=run, failure=facts.failure, doomed=doomed)
    if workspace.phase in AT_REST:
        return replace(workspace, run=run) if run != workspace.run else workspace
    failure = facts.failure if facts is not None and newer else None
    ended = Phase.DELETED if workspace.doomed else Phase.FAILED if failure else Phase.STOPPED
    return replace(workspace, phase=ended, reason=failure or _REASON, since=now, run=run, failure=failure)
