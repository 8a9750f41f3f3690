"""Where the content of workspaces is kept on a node."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from fairwater.domain.ids import WorkspaceId
from fairwater.domain.units import Bytes
from fairwater.domain.workspaces.run import VolumeState


@dataclass(frozen=True, slots=True)
class Volume:
    """A volume on this node. `root` is where it is attached, None while it is not.

    Below `root`: `workspace/` and `home/`, which a workspace sees; `state/`, which it does not.
    """

    workspace: WorkspaceId
    state: VolumeState
    root: Path | None = None


class Volumes(Protocol):
    """Each workspace's content on a volume of its own, with a hard quota.

    Before a start a volume is absent; after a restart of the agent, what is attached stays attached and is found.
    Every method may be repeated.
    """

    async def find(self, workspace: WorkspaceId) -> Volume: ...

    async def create(self, workspace: WorkspaceId, quota: Bytes) -> None:
        """An empty volume; fine where there is one already. Raises Temporary where the disk is too full."""
        ...

    async def attach(self, workspace: WorkspaceId, quota: Bytes) -> Volume:
        """Makes the content reachable and grows the volume to `quota` where it is smaller; read back."""
        ...

    async def detach(self, workspace: WorkspaceId) -> None:
        """Everything is on disk afterwards, and nothing of it is mounted. Raises Temporary while it is in use."""
        ...

    async def delete(self, workspace: WorkspaceId) -> None: ...
