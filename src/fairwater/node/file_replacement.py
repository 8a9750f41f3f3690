"""A file's new version, which nobody sees before it is whole, and what the file system's refusals mean to a person.

Calls block. What is written belongs to the workspace's user on disk. Not on disk when this returns: a crash of the
machine may lose it, as with any program that does not ask for more.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import stat
from collections.abc import Iterator

from fairwater.domain.failure import Permanent, Temporary
from fairwater.node.volume_paths import Owner, Place, Roots, find

_NEW_MODE = 0o644
_PERMISSIONS = 0o777  # set-uid, set-gid and sticky bits are not carried over
_NO_TMPFILE = (errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL)
_FULL = (errno.EDQUOT, errno.ENOSPC, errno.EFBIG)


class Replacement:
    """A new version of a file, invisible until `commit`. Blocks. Raises as `VolumeFiles.write_file`."""

    def __init__(self, roots: Roots, owner: Owner, path: str) -> None:
        self._path = path
        self.size = 0
        """Bytes written."""
        with told(path):
            self._place: Place | None = _place_for_writing(roots, owner, path)
        self._temporary: str | None = None
        self._file = -1
        try:
            with told(path):
                self._open(self._place.folder)
                owner.take(self._file)
                item = self._place.item
                os.fchmod(self._file, _NEW_MODE if item is None else os.fstat(item).st_mode & _PERMISSIONS)
        except BaseException:
            self.close()
            raise

    def write(self, data: bytes) -> None:
        rest = memoryview(data)
        with told(self._path):
            while rest:
                written = os.write(self._file, rest)
                self.size += written
                rest = rest[written:]

    def commit(self) -> None:
        """Puts the file in its place in one step."""
        assert self._place is not None
        assert self._place.name is not None
        folder = self._place.folder
        with told(self._path):
            if self._temporary is None:
                name = _temporary_name()
                os.link(f"/proc/self/fd/{self._file}", name, dst_dir_fd=folder, follow_symlinks=True)
                self._temporary = name
            os.rename(self._temporary, self._place.name, src_dir_fd=folder, dst_dir_fd=folder)
            self._temporary = None

    def close(self) -> None:
        """Drops what was not committed; may be repeated."""
        if self._place is None:
            return
        if self._temporary is not None:
            with contextlib.suppress(OSError):  # gone already: the workspace can see the name
                os.unlink(self._temporary, dir_fd=self._place.folder)
        if self._file >= 0:
            os.close(self._file)
        self._place.close()
        self._place = None

    def _open(self, folder: int) -> None:
        """Without a name where the file system can: then nothing is left behind, whenever we are killed."""
        try:
            self._file = os.open(".", os.O_TMPFILE | os.O_WRONLY | os.O_CLOEXEC, 0o600, dir_fd=folder)
            return
        except OSError as error:
            if error.errno not in _NO_TMPFILE:
                raise
        flags = os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_WRONLY | os.O_CLOEXEC
        name = _temporary_name()
        self._file = os.open(name, flags, 0o600, dir_fd=folder)
        self._temporary = name


def _place_for_writing(roots: Roots, owner: Owner, path: str) -> Place:
    """Where a file is or will be. Raises as `write_file`."""
    place = find(roots, path, make_folders=owner)
    try:
        mode = place.mode()
        if place.name is None or stat.S_ISDIR(mode) or path.endswith("/"):
            raise is_folder(path)
        if place.item is not None:
            refuse_unless_plain(path, mode)
    except Permanent:
        place.close()
        raise
    return place


@contextlib.contextmanager
def told(path: str) -> Iterator[None]:
    """What the file system refuses, in words for the person who asked."""
    shown = repr(path[:200])
    try:
        yield
    except FileNotFoundError as error:
        raise Temporary(f"{shown}: its folder was changed meanwhile: try again", code="changed_meanwhile") from error
    except IsADirectoryError as error:
        raise is_folder(path) from error
    except OSError as error:
        number = error.errno
        if number in _FULL:
            raise Permanent(
                f"{shown}: the workspace's disk is full, nothing was changed: delete files there, or ask for more",
                code="quota_exceeded",
            ) from error
        if number == errno.ENOTEMPTY:
            raise Permanent(
                f"{shown}: the folder is not empty: delete what is in it first", code="folder_not_empty"
            ) from error
        if number == errno.EIO:
            raise Temporary(
                f"{shown}: the disk failed; look at the machine's kernel log", code="disk_failed"
            ) from error
        raise Permanent(f"{shown}: {error.strerror}; check the path", code="bad_path") from error


def is_folder(path: str) -> Permanent:
    return Permanent(f"{path[:200]!r} is a folder; name a file", code="is_folder")


def no_such_file(path: str) -> Permanent:
    return Permanent(f"{path[:200]!r}: no such file; check the path", code="no_such_file")


def refuse_unless_plain(path: str, mode: int) -> None:
    if mode == 0:
        raise no_such_file(path)
    if not stat.S_ISREG(mode):
        raise Permanent(
            f"{path[:200]!r} is no plain file but a FIFO, a socket or a device; those are not read or written",
            code="not_a_file",
        )


def _temporary_name() -> str:
    return f".fairwater-{secrets.token_hex(8)}"
