"""How a repository comes onto a volume."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Protocol

from fairwater.domain.ids import RunNumber, WorkspaceId
from fairwater.domain.workspaces.run import Progress, Source
from fairwater.domain.workspaces.setup import Brought, Wanted
from fairwater.ports.images import ImageRoot, ImageUser

Configure = Callable[[Mapping[str, bytes]], Wanted]
"""From a repository's configuration files, by their path in it, to what they ask for."""


class Content(Protocol):
    """Brings a repository onto a volume, in a place that can harm nobody else."""

    def brought(self, volume: Path) -> Brought | None:
        """What `bring` led to on this volume before; None where it has not come to its end."""
        ...

    async def bring(
        self,
        workspace: WorkspaceId,
        run: RunNumber,
        source: Source | None,
        dotfiles: Source | None,
        volume: Path,
        log: Path,
        report: Callable[[Progress], None],
        configure: Configure,
    ) -> Brought:
        """Clones `source` into the volume's `workspace/NAME`, or where its configuration says, then what that
        configuration names beside it, submodules and LFS objects included, and `dotfiles` into the home directory's
        `.dotfiles`. After an interruption it begins anew. What could not be brought in beside the repository itself is
        told in the notices.

        Raises:
            Permanent: `no_such_host`, `not_a_repository`, `no_such_ref`, `access_denied`, `quota_exceeded`,
                `not_a_listed_root`, `clone_failed`; the message says what to do.
        """
        ...

    async def config_files(self, volume: Path, repository: str) -> Mapping[str, bytes]:
        """The repository's configuration files as they are now, by path; those named by
        `domain.workspaces.config.candidates`."""
        ...

    async def has_folder(self, volume: Path, folder: str) -> bool:
        """Whether `folder`, absolute in the workspace, is there; what is not below /workspace counts as there."""
        ...

    def home_ready(self, volume: Path) -> bool:
        """Whether `fill_home` came to its end on this volume before."""
        ...

    async def fill_home(
        self, workspace: WorkspaceId, run: RunNumber, volume: Path, image: ImageRoot, user: ImageUser
    ) -> None:
        """Copies what the image has in the user's home directory into the volume's, leaving what is there.

        Raises:
            Permanent: `quota_exceeded`.
        """
        ...
