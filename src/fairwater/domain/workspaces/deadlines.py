"""By when a workspace must have got where. Every deadline is a row in the database; none is a sleeping task."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum

from fairwater.domain.workspaces.workspace import Phase


class DeadlineKind(StrEnum):
    STARTUP = "startup"  # from the request to a running workspace, content init apart
    INIT = "init"  # bringing in the content
    STOPPING = "stopping"  # from the request to a released run


@dataclass(frozen=True, slots=True)
class DeadlinePolicy:
    """How long each may take, in seconds."""

    startup_s: float = 120.0
    init_s: float = 900.0
    stopping_s: float = 120.0


@dataclass(frozen=True, slots=True)
class Deadline:
    kind: DeadlineKind
    at: datetime


_KIND_OF = {
    Phase.PENDING: DeadlineKind.STARTUP,
    Phase.CREATING: DeadlineKind.STARTUP,
    Phase.RESTORING: DeadlineKind.INIT,
    Phase.INITIALIZING: DeadlineKind.INIT,
    Phase.STOPPING: DeadlineKind.STOPPING,
}


def deadline_on_entering(
    phase: Phase, current: Deadline | None, now: datetime, policy: DeadlinePolicy
) -> Deadline | None:
    """The deadline in force once `phase` is entered at `now`.

    A phase of the same kind as before keeps the deadline (creating does not grant pending's time anew); a phase
    without one clears it.
    """
    kind = _KIND_OF.get(phase)
    if kind is None:
        return None
    if current is not None and current.kind is kind:
        return current
    allowed_s = {
        DeadlineKind.STARTUP: policy.startup_s,
        DeadlineKind.INIT: policy.init_s,
        DeadlineKind.STOPPING: policy.stopping_s,
    }[kind]
    return Deadline(kind, now + timedelta(seconds=allowed_s))
