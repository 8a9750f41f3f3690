"""What nodes have said last of runs, for people to see: in this server's memory, for every server asks the nodes."""

from __future__ import annotations

from dataclasses import dataclass, field

from fairwater.domain.ids import WorkspaceId
from fairwater.domain.workspaces.run import Progress
from fairwater.domain.workspaces.setup import Setup
from fairwater.domain.workspaces.workspace import Event, Phase
from fairwater.ports.catalogue import Committed


@dataclass
class Seen:
    progress: dict[WorkspaceId, Progress] = field(default_factory=dict)
    setups: dict[WorkspaceId, Setup] = field(default_factory=dict)

    def note_progress(self, workspace: WorkspaceId, progress: Progress | None) -> None:
        if progress is None:
            self.progress.pop(workspace, None)
        else:
            self.progress[workspace] = progress

    def changed(self, change: Committed) -> None:
        """Forgets what does not hold any more: progress ends with its phase, a setup with its run."""
        if change.after.phase is not change.before:
            self.progress.pop(change.after.id, None)
        if change.event is Event.START or change.after.phase is Phase.DELETED:
            self.setups.pop(change.after.id, None)
