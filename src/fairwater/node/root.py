"""The file system that a sandbox sees as its root: an overlay of the image's layers, ids moved to the sandbox's own.

Decides how files of the machine and of an image are shown to a sandbox: never setuid, never as devices, never under
ids of the machine's. Sees to it that there is a place for all that is mounted in it. Refuses to know which files those
are.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable
from pathlib import Path

from fairwater.domain.failure import Permanent
from fairwater.node import linux
from fairwater.node.root_places import RootPlaces
from fairwater.ports.images import ImageRoot

SCRATCH_BYTES = 1 << 30
"""What may be written outside `/workspace` and the home directory; it is memory, and counts as the workspace's."""
LAYERS_MAX = 500
"""As many as the kernel merges (OVL_MAX_STACK)."""


def mount_root(folder: Path, image: ImageRoot, user_ns: Path, base: int) -> None:
    """The overlay that the sandbox sees as its root, at `folder`/root, ids moved to the slot's own.

    The overlay keeps what it is made of: nothing else stays mounted. An image's `binds` are not among it: they are the
    machine's own files, and with their ids moved root in the sandbox could read what on the machine only root may.

    Raises:
        Permanent: `bad_image`, for more layers than can be merged.
        OSError: a layer is not there, or the kernel cannot merge them.
    """
    if len(image.layers) > LAYERS_MAX:
        raise Permanent(
            f"the image {image.reference} has {len(image.layers)} layers, more than the {LAYERS_MAX} that can be shown "
            "as one: build it with fewer",
            code="bad_image",
        )
    scratch, lowers = folder / "scratch", folder / "layers"
    lowers.mkdir(exist_ok=True)
    quiet = linux.MS_NOSUID | linux.MS_NODEV
    linux.mount("tmpfs", scratch, "tmpfs", quiet, f"mode=0700,size={SCRATCH_BYTES}")
    for name in ("upper", "work"):
        (scratch / name).mkdir(mode=0o755)
    os.chown(scratch / "upper", base, base)
    mounted: list[Path] = []
    with linux.opened(user_ns) as userns:
        for number, layer in enumerate(image.layers):
            mount_shifted(layer, lowers / str(number), userns, linux.MOUNT_ATTR_RDONLY)
            mounted.append(lowers / str(number))
    linux.in_namespaces(lambda: _merge(folder, len(mounted), user_xattrs=image.user_xattrs))
    for place in (*reversed(mounted), scratch):
        linux.umount(place, linux.MNT_DETACH)
        place.rmdir()


def _merge(folder: Path, layers: int, *, user_xattrs: bool) -> None:
    """To be called in a thread of its own: names from the folder it goes to, since mount(2) takes 4 KiB of options."""
    linux.unshare(linux.CLONE_FS)
    os.chdir(folder / "layers")
    lower = ":".join(str(number) for number in range(layers))
    data = f"lowerdir={lower},upperdir=../scratch/upper,workdir=../scratch/work"
    if user_xattrs:
        data += ",userxattr"
    linux.mount("overlay", "../root", "overlay", linux.MS_NOSUID | linux.MS_NODEV, data)


def make_places(root: Path, base: int, folders: Iterable[str], files: Iterable[str], wished: str) -> None:
    """Makes place in a root that no process is in yet; `wished` is a folder that may stay missing.

    Raises:
        Permanent: `bad_image`: see `root_places`.
    """
    with linux.opened(root, os.O_PATH | os.O_DIRECTORY) as fd:
        places = RootPlaces(fd, base)
        for folder in folders:
            places.make_folder(folder)
        for file in files:
            places.make_file(file)
        if wished.startswith("/") and not places.leads_to_folder(wished):
            with contextlib.suppress(Permanent):
                places.make_folder(wished)


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
