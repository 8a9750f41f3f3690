"""Removes a folder with all that is in it, whatever a stranger has put there.

However deep its folders are nested, few descriptors and little of the stack are used: what lies too deep is first moved
up. No link is followed. What cannot be removed stays, without an error: who needs the name free moves it away before.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

_DEPTH_MAX = 32
_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def remove_tree(folder: Path) -> None:
    """Fine where there is none. To be called while nobody else changes what is in it."""
    with contextlib.suppress(OSError):
        top = os.open(folder, _FLAGS)
        try:
            moved = _Moved(top)
            _empty(top, moved, 0)
            while moved.names:
                _remove(top, moved.names.pop(), moved, 0)
        finally:
            os.close(top)
        folder.rmdir()


class _Moved:
    """Folders that were moved up to `top`, by names that nobody else could have chosen."""

    def __init__(self, top: int) -> None:
        self.names: list[str] = []
        self._top = top
        self._prefix = os.urandom(8).hex()
        self._count = 0

    def take(self, folder: int, name: str) -> None:
        self._count += 1
        above = f"{self._prefix}-{self._count}"
        os.rename(name, above, src_dir_fd=folder, dst_dir_fd=self._top)
        self.names.append(above)


def _empty(folder: int, moved: _Moved, depth: int) -> None:
    with os.scandir(folder) as entries:
        found = [(entry.name, entry.is_dir(follow_symlinks=False)) for entry in entries]
    for name, is_folder in found:
        with contextlib.suppress(OSError):  # the others are to go all the same
            if not is_folder:
                os.unlink(name, dir_fd=folder)
            elif depth < _DEPTH_MAX:
                _remove(folder, name, moved, depth + 1)
            else:
                moved.take(folder, name)


def _remove(above: int, name: str, moved: _Moved, depth: int) -> None:
    with contextlib.suppress(OSError):
        folder = os.open(name, _FLAGS, dir_fd=above)
        try:
            _empty(folder, moved, depth)
        finally:
            os.close(folder)
        os.rmdir(name, dir_fd=above)
