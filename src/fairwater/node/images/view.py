"""Reads an image as its workspaces see it: the layers merged, links followed inside it, and never out of it.

The merged view is mounted in a mount namespace of its own, which lives as long as its descriptors are held open:
nothing is left to be cleared, however this process ends. What is in an image is hostile.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Iterator
from pathlib import Path

from fairwater.node import linux
from fairwater.ports.images import ImageRoot

_MS_RDONLY = 0x1
_INSIDE = linux.RESOLVE_IN_ROOT | linux.RESOLVE_NO_MAGICLINKS
_ABSENT = frozenset(
    {errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG, errno.EXDEV, errno.ENXIO, errno.EACCES, errno.ENODEV}
)
_TRIES = 1000
"""openat2(2) says EAGAIN where something was renamed or mounted on the machine while it went through a `..`."""


@contextlib.contextmanager
def merged(layers: tuple[Path, ...], *, user_xattrs: bool) -> Iterator[int]:
    """The root of `layers`, the uppermost first, merged and read-only, as a descriptor. Blocks for some milliseconds.

    Raises:
        OSError: a layer is not there, or the kernel cannot merge them.
    """
    with contextlib.ExitStack() as held:
        if len(layers) == 1:  # the kernel merges two at least
            yield held.enter_context(linux.opened(layers[0], os.O_PATH | os.O_DIRECTORY))
            return
        root, namespace = linux.in_namespaces(lambda: _mount(layers, user_xattrs))
        held.callback(os.close, namespace)
        held.callback(os.close, root)
        yield root


def _mount(layers: tuple[Path, ...], user_xattrs: bool) -> tuple[int, int]:
    """The view's root and the mount namespace that it is in; to be called in a thread of its own.

    The namespace is to be held as long as the root: walking a mount that is in none, openat2(2) fails at each `..` that
    comes after a link, because letting go of such a mount looks to the kernel as if mounts had changed meanwhile.
    Nothing but the view is left in it: a copy of another mount would keep that from being released while the view is
    read, such as the volume of a workspace that ends.
    """
    linux.unshare(linux.CLONE_FS | linux.CLONE_NEWNS)
    linux.mount("none", "/", "none", linux.MS_REC | linux.MS_PRIVATE)
    with contextlib.ExitStack() as held:
        # By descriptor: the paths of a hundred layers would not fit into the page that mount(2) takes. Opened here,
        # since the kernel merges only what is mounted in the caller's own namespace.
        lowers = [held.enter_context(linux.opened(layer, os.O_PATH | os.O_DIRECTORY)) for layer in layers]
        options = "lowerdir=" + ":".join(f"/proc/self/fd/{lower}" for lower in lowers)
        if user_xattrs:
            options += ",userxattr"
        target = layers[0]  # hidden by the view, in this namespace only
        linux.mount("overlay", target, "overlay", linux.MS_NOSUID | linux.MS_NODEV | _MS_RDONLY, options)
        namespace = os.open("/proc/thread-self/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.chdir(target)
            linux.keep_only_here()
            return os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC), namespace
        except BaseException:
            os.close(namespace)
            raise


@contextlib.contextmanager
def opened_in_image(image: ImageRoot, path: str) -> Iterator[int | None]:
    """The folder at `path`, absolute in the image, as a descriptor (O_PATH); None where there is no such folder.

    Links are followed as in the image. What is below it is to be opened by openat2 with RESOLVE_BENEATH. An image's
    `binds` are not seen.
    """
    with merged(image.layers, user_xattrs=image.user_xattrs) as root:
        folder = _found(root, path, os.O_PATH | os.O_DIRECTORY)
        try:
            yield folder
        finally:
            if folder is not None:
                os.close(folder)


def read_in(root: int, path: str, size_max: int) -> bytes | None:
    """The first `size_max` bytes of the file at `path` below `root` (see `merged`); None where there is none."""
    # Without O_NONBLOCK, a pipe in the file's place would be waited for.
    file = _found(root, path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY)
    if file is None:
        return None
    with os.fdopen(file, "rb") as reader:
        return reader.read(size_max) if stat.S_ISREG(os.fstat(file).st_mode) else None


def _found(root: int, path: str, flags: int) -> int | None:
    for _ in range(_TRIES):
        try:
            return linux.openat2(root, path.lstrip("/") or ".", flags, resolve=_INSIDE)
        except OSError as error:
            if error.errno in _ABSENT:
                return None
            if error.errno != errno.EAGAIN:
                raise
    raise OSError(errno.EAGAIN, f"{path[:200]} in an image could not be opened in {_TRIES} tries")
