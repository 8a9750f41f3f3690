"""The ports through which a node brings runs up and down, and what its loop's modules share of them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from fairwater.domain.failure import Temporary
from fairwater.domain.ids import RunNumber, WorkspaceId
from fairwater.ports.clock import Clock
from fairwater.ports.content import Content
from fairwater.ports.images import Images
from fairwater.ports.sandboxes import Launcher, Sandboxes
from fairwater.ports.secrets import SecretKeeper
from fairwater.ports.tasks import TaskRecords
from fairwater.ports.volumes import Volumes


def log_file(root: Path, run: RunNumber) -> Path:
    """Where on a volume the log of a run is kept: within the workspace's own quota, out of the workspace's sight."""
    return root / "state" / f"run-{run}.log"


@dataclass(frozen=True, slots=True)
class RunParts:
    """The ports through which a node brings runs up and down."""

    volumes: Volumes
    sandboxes: Sandboxes
    launcher: Launcher
    content: Content
    images: Images
    secrets: SecretKeeper
    tasks: TaskRecords
    clock: Clock

    async def root(self, workspace: WorkspaceId) -> Path:
        """Where the workspace's volume is attached. Raises Temporary, where it is not."""
        volume = await self.volumes.find(workspace)
        if volume.root is None:
            raise Temporary(f"the volume of {workspace} is not attached", code="volume_detached", delay_s=0.1)
        return volume.root
