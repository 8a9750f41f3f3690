"""Finds what a path of a workspace means on its volume, seen from outside, without ever leaving the volume.

A workspace sees two folders of its volume: `workspace/` at /workspace and `home/` at its home directory. What lies in
them is hostile, and changes while we look. So a path is walked one name at a time from one of the two roots, by
descriptors and openat2: no name that is opened may be a symbolic link, a magic link or another mount. Links are read
and followed here, the way they would be inside. Every walk is bounded in links and steps.
Knows nothing of what is done with what it finds.
"""

from __future__ import annotations

import errno
import os
import stat
from collections import deque
from dataclasses import dataclass
from pathlib import Path

from fairwater.domain.failure import Permanent
from fairwater.node.linux import (
    RESOLVE_BENEATH,
    RESOLVE_NO_MAGICLINKS,
    RESOLVE_NO_SYMLINKS,
    RESOLVE_NO_XDEV,
    openat2,
)

Roots = dict[tuple[str, ...], Path]
"""Paths inside the workspace, as names, to the volume's folders on the machine."""
LINKS_MAX = 40
"""As many as Linux follows in one path."""
STEPS_MAX = 8192
PATH_MAX = 4096
_NO_WAY_OUT = RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS | RESOLVE_NO_MAGICLINKS | RESOLVE_NO_XDEV
_FOLDER_MODE = 0o755


@dataclass(slots=True)
class Place:
    """What a path led to: the descriptor (O_PATH) of its folder and, where it exists, of itself; a context manager.

    `name` is None for a root itself, whose `item` is the root. Where `item` is None nothing has that name yet.
    """

    folder: int
    name: str | None
    item: int | None

    def mode(self) -> int:
        """The item's st_mode; 0 where there is none."""
        return 0 if self.item is None else os.fstat(self.item).st_mode

    def __enter__(self) -> Place:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        os.close(self.folder)
        if self.item is not None:
            os.close(self.item)


@dataclass(frozen=True, slots=True)
class Owner:
    """The ids, as on disk, that what is made belongs to."""

    uid: int
    gid: int

    def take(self, descriptor: int) -> None:
        """Gives the owner what a descriptor (O_PATH too) stands for; without privilege it stays who made it."""
        if os.geteuid() == 0:
            os.chown(f"/proc/self/fd/{descriptor}", self.uid, self.gid)


def find(roots: Roots, path: str, *, make_folders: Owner | None = None, follow: bool = True) -> Place:
    """Walks `path`, an absolute path inside the workspace.

    With `make_folders`, missing folders on the way are made. With `follow` False, a link at the end is itself found.

    Raises:
        Permanent: `outside`, `no_such_file`, `not_a_folder`, `bad_path`.
        OSError: what the file system says otherwise.
    """
    return _Walk(roots, path, make_folders, follow).run()


def outside(path: str) -> Permanent:
    return Permanent(
        f"{path[:200]!r} leads outside of the workspace: only /workspace and the home directory can be reached",
        code="outside",
    )


class _Walk:
    def __init__(self, roots: Roots, path: str, make_folders: Owner | None, follow: bool) -> None:
        self._roots, self._path, self._make_folders, self._follow = roots, path, make_folders, follow
        self._links = self._steps = 0
        self._root: tuple[str, ...] = ()
        self._seen: list[str] = []  # names walked below the root, none of them a link
        self._left: deque[str] = deque()

    def run(self) -> Place:
        if not self._path.startswith("/"):
            raise outside(self._path)
        if "\0" in self._path or len(self._encoded(self._path)) > PATH_MAX:
            raise self._bad("too long, or with a character that no path has")
        folder = self._restart(_names(self._path))
        try:
            while self._left:
                name = self._left.popleft()
                self._count()
                if name == "..":
                    parent = [*self._root, *self._seen][:-1]
                    folder = _replace(folder, self._restart([*parent, *self._left]))
                    continue
                place = self._step(folder, name)
                if isinstance(place, Place):
                    folder = -1
                    return place
                folder = _replace(folder, place)
            place = Place(folder, None, os.dup(folder))
            folder = -1
            return place
        finally:
            if folder >= 0:
                os.close(folder)

    def _step(self, folder: int, name: str) -> int | Place:
        """Goes one name on: the next folder's descriptor, or the place where the walk ends."""
        item = self._open(folder, name)
        if item is None:
            return Place(folder, name, None)
        try:
            mode = os.fstat(item).st_mode
            last = not self._left
            if stat.S_ISLNK(mode) and (self._follow or not last):
                return self._follow_link(folder, item)
            if last:
                found, item = item, -1
                return Place(folder, name, found)
            if not stat.S_ISDIR(mode):
                raise Permanent(
                    f"{self._path[:200]!r}: {name[:80]!r} is not a folder; check the path", code="not_a_folder"
                )
            self._seen.append(name)
            found, item = item, -1
            return found
        finally:
            if item >= 0:
                os.close(item)

    def _open(self, folder: int, name: str) -> int | None:
        """Opens one name for looking at; None where the last name is missing."""
        try:
            return _look(folder, name)
        except FileNotFoundError:
            if not self._left:
                return None
            if self._make_folders is None:
                raise Permanent(
                    f"{self._path[:200]!r}: no such file or folder; check the path", code="no_such_file"
                ) from None
        except OSError as error:
            if error.errno in (errno.EXDEV, errno.ELOOP):
                raise outside(self._path) from None
            if error.errno == errno.ENAMETOOLONG:
                raise self._bad("a name in it is longer than 255 bytes") from None
            raise
        try:
            os.mkdir(self._encoded(name), _FOLDER_MODE, dir_fd=folder)
            made = True
        except FileExistsError:
            made = False  # somebody was quicker
        item = _look(folder, name)
        if made and stat.S_ISDIR(os.fstat(item).st_mode):
            self._make_folders.take(item)
        return item

    def _follow_link(self, folder: int, link: int) -> int:
        self._links += 1
        if self._links > LINKS_MAX:
            raise Permanent(
                f"{self._path[:200]!r}: more than {LINKS_MAX} symbolic links, or links that lead in a circle",
                code="bad_path",
            )
        target = os.readlink("", dir_fd=link)
        if target.startswith("/"):
            return self._restart([*_names(target), *self._left])
        self._left.extendleft(reversed(_names(target)))
        return os.dup(folder)

    def _restart(self, names: list[str]) -> int:
        """Begins anew at the root of the workspace, of which only the way to the roots exists here."""
        at: tuple[str, ...] = ()
        rest = deque(names)
        while rest and at not in self._roots:
            self._count()
            name = rest.popleft()
            at = at[:-1] if name == ".." else (*at, name)
            if not any(root[: len(at)] == at for root in self._roots):
                raise outside(self._path)
        if at not in self._roots:
            raise outside(self._path)
        self._root, self._seen, self._left = at, [], rest
        return os.open(self._roots[at], os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)

    def _count(self) -> None:
        self._steps += 1
        if self._steps > STEPS_MAX:
            raise self._bad("too many steps lead there")

    def _bad(self, why: str) -> Permanent:
        return Permanent(f"{self._path[:200]!r} is not a usable path: {why}", code="bad_path")

    def _encoded(self, text: str) -> bytes:
        try:
            return os.fsencode(text)
        except UnicodeEncodeError:
            raise self._bad("it cannot be written in UTF-8") from None


def _look(folder: int, name: str) -> int:
    return openat2(folder, name, os.O_PATH | os.O_NOFOLLOW, resolve=_NO_WAY_OUT)


def _names(path: str) -> list[str]:
    return [name for name in path.split("/") if name not in ("", ".")]


def _replace(old: int, new: int) -> int:
    os.close(old)
    return new
