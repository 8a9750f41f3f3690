"""Where a node keeps what a run may use and nobody may read: in memory, over a restart of the agent, on no disk."""

from __future__ import annotations

from typing import Protocol

from fairwater.domain.ids import WorkspaceId
from fairwater.domain.workspaces.secrets import RunSecrets


class SecretKeeper(Protocol):
    """Every method may be repeated."""

    def put(self, workspace: WorkspaceId, secrets: RunSecrets) -> None: ...

    def get(self, workspace: WorkspaceId) -> RunSecrets:
        """Empty where nothing is kept."""
        ...

    def forget(self, workspace: WorkspaceId) -> None: ...
