"""Places to mount on in a sandbox's root, found without being led astray by what an image put there.

A folder on the way may be a link, which is followed inside the root and never into another file system. At the place
itself there is a folder (or file) afterwards: a link or anything else of the image's gives way. Knows nothing of what
is mounted there. To be called while no process of a workspace runs in the root.
"""

from __future__ import annotations

import errno
import os
import stat
from dataclasses import dataclass

from fairwater.domain.failure import Permanent
from fairwater.node import linux

_FOLDER = os.O_PATH | os.O_DIRECTORY
_ON_THE_WAY = linux.RESOLVE_IN_ROOT | linux.RESOLVE_NO_MAGICLINKS | linux.RESOLVE_NO_XDEV
_ITSELF = linux.RESOLVE_BENEATH | linux.RESOLVE_NO_SYMLINKS | linux.RESOLVE_NO_MAGICLINKS
_TRIES = 1000
"""openat2(2) says EAGAIN where something was mounted anywhere on the machine while it went through a `..`."""
_MODE = 0o755


@dataclass(frozen=True, slots=True)
class RootPlaces:
    """Places below the folder `root` (a descriptor); what is made there belongs to the machine's id `owner`."""

    root: int
    owner: int

    def folder(self, path: str) -> int:
        """A descriptor (O_PATH) of the folder at `path`, made with those above it where they are missing.

        Raises:
            Permanent: `bad_image`, where what the image has on the way is no folder, or leads out of it.
        """
        parent, name = self._above(path)
        try:
            mode = _mode(parent, name)
            if mode is not None and not stat.S_ISDIR(mode):
                os.unlink(name, dir_fd=parent)
                mode = None
            if mode is None:
                self._make(parent, name)
            return _opened(parent, name, _ITSELF)
        except OSError as error:
            raise _bad(path, error) from error
        finally:
            os.close(parent)

    def make_folder(self, path: str) -> None:
        """Raises as `folder`."""
        os.close(self.folder(path))

    def leads_to_folder(self, path: str) -> bool:
        """Whether there is a folder at `path`, by way of links too."""
        try:
            os.close(_opened(self.root, path.lstrip("/") or ".", _ON_THE_WAY))
        except OSError:
            return False
        return True

    def make_file(self, path: str) -> None:
        """A plain file at `path`; one that is there stays. Raises as `folder`."""
        parent, name = self._above(path)
        try:
            mode = _mode(parent, name)
            if mode is not None and stat.S_ISREG(mode):
                return
            if mode is not None and stat.S_ISDIR(mode):
                os.rmdir(name, dir_fd=parent)
            elif mode is not None:
                os.unlink(name, dir_fd=parent)
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
            file = os.open(name, flags, 0o644, dir_fd=parent)
            os.fchown(file, self.owner, self.owner)
            os.close(file)
        except OSError as error:
            raise _bad(path, error) from error
        finally:
            os.close(parent)

    def _above(self, path: str) -> tuple[int, str]:
        """The folder above `path`, as a descriptor, and the name in it."""
        names = [name for name in path.split("/") if name not in ("", ".")]
        if not names or ".." in names or "\0" in path:
            raise Permanent(f"{path[:200]!r} is no place for a folder of a workspace", code="bad_image")
        folder = os.open(".", _FOLDER | os.O_CLOEXEC, dir_fd=self.root)
        try:
            for depth, name in enumerate(names[:-1], start=1):
                below = "/".join(names[:depth])
                try:
                    found = _opened(self.root, below, _ON_THE_WAY)
                except FileNotFoundError:
                    self._make(folder, name)
                    found = _opened(self.root, below, _ON_THE_WAY)
                os.close(folder)
                folder = found
        except OSError as error:
            os.close(folder)
            raise _bad(path, error) from error
        return folder, names[-1]

    def _make(self, parent: int, name: str) -> None:
        os.mkdir(name, _MODE, dir_fd=parent)
        os.chown(name, self.owner, self.owner, dir_fd=parent, follow_symlinks=False)


def _opened(folder: int, path: str, resolve: int) -> int:
    for _ in range(_TRIES):
        try:
            return linux.openat2(folder, path, _FOLDER, resolve=resolve)
        except OSError as error:
            if error.errno != errno.EAGAIN:
                raise
    raise OSError(errno.EAGAIN, f"{path[:200]} could not be opened in {_TRIES} tries")


def _mode(parent: int, name: str) -> int | None:
    try:
        return os.stat(name, dir_fd=parent, follow_symlinks=False).st_mode
    except FileNotFoundError:
        return None


def _bad(path: str, error: OSError) -> Permanent | OSError:
    """What an image cannot help, such as a full disk, stays as it is."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EIO, errno.EAGAIN):
        return error
    reason = os.strerror(error.errno or 0)
    return Permanent(
        f"the image has something at {path[:200]!r}, or above it, where a folder or file of the workspace's must go "
        f"({reason}): make it a plain folder in the image",
        code="bad_image",
    )
