"""What the control plane's loop reads and writes of workspaces: the database, seen from the loop."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from fairwater.domain.ids import RunNumber, WorkspaceId
from fairwater.domain.workspaces.deadlines import Deadline
from fairwater.domain.workspaces.run import Progress
from fairwater.domain.workspaces.setup import Setup
from fairwater.domain.workspaces.workspace import Event, Workspace
from fairwater.ports.agent import StartRequest


@dataclass(frozen=True, slots=True)
class WorkspaceRecord:
    """A workspace as the database has it."""

    workspace: Workspace
    deadline: Deadline | None


class WorkspaceRecords(Protocol):
    """Every write is one transaction: the row, its deadline, and a line of its history.

    Raises Temporary where the database is away, and `lease_lost` where another server looks after workspaces now:
    nothing was written then.
    """

    async def unfinished(self) -> tuple[WorkspaceId, ...]:
        """The workspaces that the loop looks after: not at rest, or deleted and not yet cleared."""
        ...

    async def load(self, workspace: WorkspaceId) -> WorkspaceRecord | None:
        """None for one that is unknown or cleared."""
        ...

    async def request(self, workspace: WorkspaceId, run: RunNumber) -> StartRequest | None:
        """What a node is asked to start, with what the run may use; None where it no longer is the current run.

        Raises:
            Permanent: the run cannot be asked for: `no_such_class`, `bad_context_url`, `wrong_master_key`.
        """
        ...

    async def record(
        self,
        workspace: WorkspaceId,
        run: RunNumber,
        event: Event,
        reason: str,
        now: datetime,
        then: Sequence[tuple[Event, str]] = (),
    ) -> Workspace | None:
        """Applies `event` to the workspace while its run is still `run`; None where it no longer is.

        The events of `then`, with their reasons, follow it: all of them are written, or none.

        Raises:
            TransitionRejected: the table rejects it.
        """
        ...

    async def note_progress(self, workspace: WorkspaceId, progress: Progress | None) -> None:
        """Shows how far the step under way is; lost at a crash, which is fine."""
        ...

    async def note_setup(self, workspace: WorkspaceId, setup: Setup) -> None:
        """Shows what the run was set up with; lost at a crash, and told again by the node."""
        ...

    async def cleared(self, workspace: WorkspaceId) -> None:
        """Nothing is left of a deleted workspace on any node."""
        ...
