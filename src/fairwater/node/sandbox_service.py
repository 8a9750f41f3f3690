"""What serves a workspace from the agent, by way of a folder in its sandbox."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from fairwater.domain.ids import WorkspaceId


class Service(Protocol):
    """Serves workspaces, each in a folder of its own that its sandbox sees and cannot write to."""

    def environment(self, workspace: WorkspaceId) -> Mapping[str, str]:
        """Variables by which the programs of the workspace find it."""
        ...

    async def open(self, folder: Path, workspace: WorkspaceId) -> None:
        """Begins to serve `workspace` in `folder`; may be repeated."""
        ...

    async def close(self, folder: Path) -> None:
        """Ends what is served in `folder`; fine when nothing is."""
        ...
