"""A folder per workspace in place of a volume. The quota is not enforced.

Below the adapter's folder each workspace has one with `content/` (what the port calls its root) and, while it is
attached, the file `attached`, which holds the boot in which that was so: a restart of the agent finds it attached,
a restart of the machine does not, as with a mount.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fairwater.domain.failure import Temporary
from fairwater.domain.ids import WorkspaceId
from fairwater.domain.units import MIB, Bytes, format_bytes
from fairwater.domain.workspaces.run import VolumeState
from fairwater.node.plain.boot import boot_id
from fairwater.ports.volumes import Volume

SPARE_MIN = Bytes(256 * MIB)
"""Free space of the disk below which no volume is made."""


class PlainVolumes:
    """Implements `ports.volumes.Volumes` below `folder`."""

    def __init__(self, folder: Path, *, spare_min: Bytes = SPARE_MIN, proc: Path = Path("/proc")) -> None:
        self._folder = folder
        self._spare_min = spare_min
        self._boot = boot_id(proc)

    async def find(self, workspace: WorkspaceId) -> Volume:
        own = self._folder / workspace
        if not own.is_dir():
            return Volume(workspace, VolumeState.ABSENT)
        try:
            attached = (own / "attached").read_text(encoding="ascii") == self._boot
        except FileNotFoundError:
            attached = False
        if attached:
            return Volume(workspace, VolumeState.ATTACHED, own / "content")
        return Volume(workspace, VolumeState.DETACHED)

    async def create(self, workspace: WorkspaceId, quota: Bytes) -> None:
        await asyncio.to_thread(self._create, workspace)

    async def attach(self, workspace: WorkspaceId, quota: Bytes) -> Volume:
        own = self._folder / workspace
        if not own.is_dir():
            raise Temporary(f"workspace {workspace} has no volume on this node yet", code="no_such_volume")
        (own / "attached").write_text(self._boot, encoding="ascii")
        return await self.find(workspace)

    async def detach(self, workspace: WorkspaceId) -> None:
        await asyncio.to_thread(self._detach, self._folder / workspace)

    async def delete(self, workspace: WorkspaceId) -> None:
        await asyncio.to_thread(self._delete, workspace)

    def _create(self, workspace: WorkspaceId) -> None:
        own = self._folder / workspace
        if own.is_dir():
            return
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        free = shutil.disk_usage(self._folder).free
        if free < self._spare_min:
            raise Temporary(
                f"the disk of {self._folder} has {format_bytes(free)} left, less than {format_bytes(self._spare_min)}: "
                "free some space",
                code="disk_full",
                delay_s=10,
            )
        # Made aside and renamed, so that a volume is there as a whole or not at all.
        aside = self._folder / f".{workspace}.new"
        _remove_tree(aside)
        for name in ("workspace", "home", "state"):
            (aside / "content" / name).mkdir(parents=True, mode=0o700 if name == "state" else 0o755)
        aside.rename(own)

    def _detach(self, own: Path) -> None:
        if not own.is_dir():
            return
        _sync_file_system(own)
        (own / "attached").unlink(missing_ok=True)

    def _delete(self, workspace: WorkspaceId) -> None:
        gone = self._folder / f".{workspace}.gone"
        _remove_tree(gone)
        with contextlib.suppress(FileNotFoundError):
            (self._folder / workspace).rename(gone)
        _remove_tree(gone)


def _sync_file_system(folder: Path) -> None:
    """Waits until everything written to the folder's file system is on its disk (syncfs(2))."""
    held = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        if ctypes.CDLL(None, use_errno=True).syncfs(held) != 0:
            raise Temporary(
                f"{folder} could not be written to disk: {os.strerror(ctypes.get_errno())}", code="sync_failed"
            )
    finally:
        os.close(held)


def _remove_tree(folder: Path) -> None:
    """Removes `folder` with all in it, folders without permissions among it; symlinks are not followed."""

    def open_up(_function: Callable[..., Any], path: str, failure: tuple[Any, BaseException, Any]) -> None:
        if isinstance(failure[1], FileNotFoundError):
            return
        for each in (Path(path).parent, Path(path)):
            if not each.is_symlink() and each.is_dir() and each.is_relative_to(folder):
                each.chmod(0o700)
        if Path(path).is_dir() and not Path(path).is_symlink():
            shutil.rmtree(path)
        else:
            Path(path).unlink(missing_ok=True)

    if folder.exists():
        shutil.rmtree(folder, onerror=open_up)
