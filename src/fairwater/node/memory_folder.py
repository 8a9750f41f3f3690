"""A folder whose files are in memory and on no disk, also where `/run` is not: what workspaces are given lies in it."""

from __future__ import annotations

import ctypes
from pathlib import Path

from fairwater.node import linux

_IN_MEMORY = frozenset({0x01021994, 0x858458F6})
"""tmpfs and ramfs, by the number that statfs(2) tells."""


def keep_in_memory(folder: Path, size: int, mode: int) -> None:
    """Makes `folder` where it is missing; mounts a file system of `size` bytes there, unless it is in memory already.

    What is in it stays as it is: a folder that is not empty is left alone. May be repeated.

    Raises:
        OSError: it cannot be mounted.
    """
    folder.mkdir(parents=True, exist_ok=True)
    folder.chmod(mode)
    if _file_system(folder) in _IN_MEMORY or any(folder.iterdir()):
        return
    options = f"mode={mode:o},size={size}"
    quiet = linux.MS_NOSUID | linux.MS_NODEV
    try:
        linux.mount("tmpfs", folder, "tmpfs", quiet, f"{options},noswap")
    except OSError:  # since Linux 6.4
        linux.mount("tmpfs", folder, "tmpfs", quiet, options)


def release_memory(folder: Path) -> None:
    """Unmounts what `keep_in_memory` mounted, once nothing is left in it."""
    if linux.is_mount(folder) and not any(folder.iterdir()):
        linux.umount(folder, linux.MNT_DETACH)  # a socket that was bound in it may still be open


def _file_system(folder: Path) -> int:
    """f_type of statfs(2), which os.statvfs leaves out: the first word of its answer."""
    answer = (ctypes.c_long * 64)()
    if ctypes.CDLL(None, use_errno=True).statfs(str(folder).encode(), ctypes.byref(answer)):
        raise OSError(ctypes.get_errno(), f"statfs {folder}")
    return int(answer[0]) & 0xFFFFFFFF
