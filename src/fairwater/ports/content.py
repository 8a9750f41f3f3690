"""How a repository comes onto a volume."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from fairwater.domain.ids import RunNumber, WorkspaceId
from fairwater.domain.workspaces.run import Progress, Source


class Content(Protocol):
    """Brings a repository onto a volume, in a place that can harm nobody else."""

    def ready(self, volume: Path) -> bool:
        """Whether `bring` came to its end on this volume before."""
        ...

    async def bring(
        self,
        workspace: WorkspaceId,
        run: RunNumber,
        source: Source | None,
        volume: Path,
        log: Path,
        report: Callable[[Progress], None],
    ) -> None:
        """Clones `source` into the volume's `workspace/NAME`; after an interruption it begins anew.

        Raises:
            Permanent: `no_such_host`, `not_a_repository`, `no_such_ref`, `access_denied`, `quota_exceeded`,
                `not_a_listed_root`, `clone_failed`; the message says what to do.
        """
        ...
