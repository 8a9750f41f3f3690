"""A sparse btrfs image per workspace, on its own loop device with direct IO, mounted while it is used.

The image's size is the quota: hard on every kernel. The loop device gives the workspace complete IO figures and a
device of its own to limit. The content is one subvolume, so that one snapshot is one point in time.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import shutil
import struct
import subprocess
import time
from fcntl import ioctl
from pathlib import Path

from fairwater.domain.failure import Permanent, Temporary
from fairwater.domain.ids import WorkspaceId
from fairwater.domain.units import GIB, Bytes, format_bytes
from fairwater.domain.workspaces.run import VolumeState
from fairwater.node import linux
from fairwater.ports.volumes import Volume

WORKSPACE_UID = 1000
"""The workspace's user, as ids stand on disk: counted from 0, moved to the sandbox's own range when mounted there."""
SPARE_MIN = 2 * GIB
"""Free space of the node's disk below which no volume is made."""
QUOTA_MIN = Bytes(256 * 1024**2)
_SUBVOLUME = "content"
_BTRFS_IOC_SUBVOL_CREATE = 0x5000940E
_BTRFS_IOC_RESIZE = 0x50009403
_DAMAGED = frozenset({errno.EINVAL, errno.EIO, errno.EUCLEAN, errno.ESTALE})
"""What mount(2) says of a file system that it cannot read; anything else may pass."""
_RELEASED_WITHIN_S = 3.0
"""How long the last reference to a file system may take to go after unmounting, before that counts as in use."""


class BtrfsVolumes:
    """Implements `ports.volumes.Volumes` below `folder`, which only root may enter."""

    def __init__(self, folder: Path, sys: Path = Path("/sys")) -> None:
        self._folder = folder.resolve()  # the kernel tells a loop device's file by its real path
        self._sys = sys
        self._attached: dict[WorkspaceId, str] = {}

    def prepare(self) -> None:
        """Makes the folders, and finds what a predecessor has attached."""
        for part in (self._folder, self._folder / "images", self._folder / "mounts", self._folder / "new"):
            part.mkdir(parents=True, exist_ok=True, mode=0o700)
        images = {str(image): WorkspaceId(image.stem) for image in (self._folder / "images").glob("*.img")}
        for block in (self._sys / "block").glob("loop*"):
            workspace = images.get(linux.loop_backing(block.name, self._sys) or "")
            if workspace is not None:
                self._attached[workspace] = f"/dev/{block.name}"

    async def find(self, workspace: WorkspaceId) -> Volume:
        root = self._root(workspace)
        if linux.is_mount(root):
            return Volume(workspace, VolumeState.ATTACHED, root)
        if self._held_by(workspace) is not None:
            # Unmounted here, but something still has it: its last writes may not be on disk yet.
            return Volume(workspace, VolumeState.ATTACHED)
        return Volume(workspace, VolumeState.DETACHED if self._image(workspace).exists() else VolumeState.ABSENT)

    def _held_by(self, workspace: WorkspaceId) -> str | None:
        """The loop device that the image is behind, None where it is behind none."""
        device = self._attached.get(workspace)
        if device is not None and linux.loop_backing(device, self._sys) == str(self._image(workspace)):
            return device
        self._attached.pop(workspace, None)
        return None

    async def create(self, workspace: WorkspaceId, quota: Bytes) -> None:
        await asyncio.to_thread(self._create, workspace, quota)

    async def attach(self, workspace: WorkspaceId, quota: Bytes) -> Volume:
        await asyncio.to_thread(self._attach, workspace, quota)
        volume = await self.find(workspace)
        if volume.state is not VolumeState.ATTACHED:
            raise Temporary(f"the volume of {workspace} is not mounted after mounting it", code="volume_detached")
        return volume

    async def detach(self, workspace: WorkspaceId) -> None:
        await asyncio.to_thread(self._detach, workspace)

    async def delete(self, workspace: WorkspaceId) -> None:
        await asyncio.to_thread(self._delete, workspace)

    def _image(self, workspace: WorkspaceId) -> Path:
        return self._folder / "images" / f"{workspace}.img"

    def _root(self, workspace: WorkspaceId) -> Path:
        return self._folder / "mounts" / workspace

    def _create(self, workspace: WorkspaceId, quota: Bytes) -> None:
        image = self._image(workspace)
        if image.exists():
            return
        free = shutil.disk_usage(self._folder).free
        if free < SPARE_MIN:
            raise Temporary(
                f"the node's disk has {format_bytes(free)} left, less than {format_bytes(SPARE_MIN)}: free some space "
                f"below {self._folder}",
                code="disk_full",
                delay_s=10,
            )
        aside = image.with_suffix(".new")
        # Never where a volume is found: one that is not complete is none.
        root = self._folder / "new" / workspace
        if linux.is_mount(root):  # a predecessor was killed in between
            linux.umount(root, linux.MNT_DETACH)
        aside.unlink(missing_ok=True)
        with open(aside, "wb") as file:
            os.fchmod(file.fileno(), 0o600)
            file.truncate(max(quota, QUOTA_MIN))
        # Metadata twice (DUP) begins with a chunk so large that a full volume can still delete and write again; with
        # "single" it begins with 8 MiB, and a volume once full stays so.
        _run("mkfs.btrfs", "--quiet", "--force", "--nodiscard", "--metadata", "dup", str(aside))
        root.mkdir(mode=0o700, exist_ok=True)
        with linux.loop_device(aside) as device:
            linux.mount(device, root, "btrfs", linux.MS_NOSUID | linux.MS_NODEV | linux.MS_NOATIME)
        try:
            self._lay_out(root)
        finally:
            linux.umount(root)
        root.rmdir()
        self._wait_until_free(workspace, device, aside)
        # Only a volume that is complete gets its name.
        aside.rename(image)

    @staticmethod
    def _lay_out(root: Path) -> None:
        with linux.opened(root) as folder:
            ioctl(folder, _BTRFS_IOC_SUBVOL_CREATE, _volume_arguments(_SUBVOLUME))
        content = root / _SUBVOLUME
        for name in ("workspace", "home"):
            (content / name).mkdir(mode=0o755)
            os.chown(content / name, WORKSPACE_UID, WORKSPACE_UID)
        (content / "state").mkdir(mode=0o700)

    def _attach(self, workspace: WorkspaceId, quota: Bytes) -> None:
        image, root = self._image(workspace), self._root(workspace)
        if linux.is_mount(root):
            return
        root.mkdir(mode=0o700, exist_ok=True)
        if image.stat().st_size < quota:
            os.truncate(image, quota)
        # A device that still has the image must be used again: through a second one, the file system would be two.
        held = self._held_by(workspace)
        with contextlib.nullcontext(held) if held else linux.loop_device(image) as device:
            flags = linux.MS_NOSUID | linux.MS_NODEV | linux.MS_NOATIME
            try:
                linux.mount(device, root, "btrfs", flags, f"subvol={_SUBVOLUME},discard=async")
            except OSError as error:
                if error.errno not in _DAMAGED:
                    raise Temporary(
                        f"the volume of {workspace} cannot be mounted now: {error.strerror}", code="volume_in_use"
                    ) from error
                raise Permanent(
                    f"the volume of {workspace} cannot be mounted ({error.strerror or error}); its image is kept at "
                    f"{image}",
                    code="volume_damaged",
                ) from error
        self._attached[workspace] = device
        shown = os.statvfs(root)
        if shown.f_blocks * shown.f_frsize < image.stat().st_size:  # also where a growth was interrupted
            linux.set_loop_capacity(device)
            with linux.opened(root) as folder:
                ioctl(folder, _BTRFS_IOC_RESIZE, _volume_arguments("max"))

    def _detach(self, workspace: WorkspaceId) -> None:
        root = self._root(workspace)
        if linux.is_mount(root):
            linux.sync_file_system(root)
            try:
                linux.umount(root)
            except OSError as error:
                if error.errno == errno.EBUSY:
                    raise Temporary(f"the volume of {workspace} is still in use", code="volume_in_use") from error
                raise
        device = self._held_by(workspace)
        if device is not None:
            self._wait_until_free(workspace, device, self._image(workspace))
            self._attached.pop(workspace, None)

    def _wait_until_free(self, workspace: WorkspaceId, device: str, image: Path) -> None:
        """Until the device has let go of the image: a file system must never be reached through two."""
        deadline = time.monotonic() + _RELEASED_WITHIN_S
        while linux.loop_backing(device, self._sys) == str(image):
            if time.monotonic() > deadline:
                raise Temporary(f"the volume of {workspace} is still held by a process", code="volume_in_use")
            time.sleep(0.001)

    def _delete(self, workspace: WorkspaceId) -> None:
        self._detach(workspace)
        self._image(workspace).unlink(missing_ok=True)
        self._image(workspace).with_suffix(".new").unlink(missing_ok=True)
        root = self._root(workspace)
        if root.exists():
            root.rmdir()


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise OSError(errno.EIO, f"{command[0]}: {done.stderr.strip()[-400:]}")


def _volume_arguments(name: str) -> bytearray:
    """struct btrfs_ioctl_vol_args; mutable, because Python passes only such buffers of more than 1 KiB."""
    return bytearray(struct.pack("=q4088s", 0, name.encode()))
