"""The file system that a sandbox sees as its root: an overlay of the image's layers, ids moved to the sandbox's own.

Decides how files of the machine are shown to a sandbox: never setuid, never as devices, never under ids of the
machine's. Refuses to know which files those are.
"""

from __future__ import annotations

import os
from pathlib import Path

from fairwater.node import linux
from fairwater.ports.images import ImageRoot

SCRATCH_BYTES = 1 << 30
"""What may be written outside `/workspace` and the home directory; it is memory, and counts as the workspace's."""


def mount_root(folder: Path, image: ImageRoot, user_ns: Path, base: int) -> None:
    """The overlay that the sandbox sees as its root, ids moved to the slot's own.

    An image's `binds` are not among it: they are the machine's own files, and with their ids moved root in the sandbox
    could read what on the machine only root may.
    """
    lowers: list[Path] = []
    with linux.opened(user_ns) as userns:
        for index, layer in enumerate(image.layers):
            lowers.append(folder / f"layer{index}")
            mount_shifted(layer, lowers[-1], userns, linux.MOUNT_ATTR_RDONLY)
    scratch = folder / "scratch"
    quiet = linux.MS_NOSUID | linux.MS_NODEV
    linux.mount("tmpfs", scratch, "tmpfs", quiet, f"mode=0700,size={SCRATCH_BYTES}")
    for name in ("upper", "work"):
        (scratch / name).mkdir(mode=0o755)
    os.chown(scratch / "upper", base, base)
    lower = ":".join(map(str, lowers))
    data = f"lowerdir={lower},upperdir={scratch}/upper,workdir={scratch}/work"
    linux.mount("overlay", folder / "root", "overlay", quiet, data)


def mount_shifted(source: Path, target: Path, userns: int, attributes: int) -> None:
    """Shows `source` at `target` with ids moved as the user namespace `userns` maps them; never setuid or devices."""
    target.mkdir(exist_ok=True)
    fd = shifted(source, userns, attributes)
    try:
        linux.move_mount(fd, target)
    finally:
        os.close(fd)


def shifted(source: Path, userns: int, attributes: int = 0) -> int:
    """A detached, id-shifted copy of the mount at `source`, as a descriptor to be moved into place."""
    fd = linux.open_tree(source)
    try:
        flags = linux.MOUNT_ATTR_IDMAP | linux.MOUNT_ATTR_NOSUID | linux.MOUNT_ATTR_NODEV | attributes
        linux.mount_setattr(fd, flags, userns)
    except BaseException:
        os.close(fd)
        raise
    return fd


def mounts_below(folder: Path) -> list[Path]:
    """Mount points below `folder`, the innermost and latest first."""
    prefix = f"{folder}/"
    found = [
        line.split()[4].encode().decode("unicode_escape")
        for line in Path("/proc/self/mountinfo").read_text().splitlines()
    ]
    return [Path(path) for path in reversed(found) if path.startswith(prefix)]
