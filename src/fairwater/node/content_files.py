"""What is read and kept of content on a volume, seen from the machine: marks, configuration files, folders.

The marks lie in the volume's `state/`, which the workspace does not see. All else is hostile, and changes while it is
looked at: it is opened by openat2, which never leaves the folder that was asked about.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import stat
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from itertools import islice
from pathlib import Path, PurePosixPath

from fairwater.domain.workspaces.config import CANDIDATES, FILE_BYTES_MAX
from fairwater.domain.workspaces.notice import Level, Notice
from fairwater.domain.workspaces.setup import Brought
from fairwater.node import linux

_CONTENT_MARK, _HOME_MARK = "content-ready", "home-ready"
_INSIDE = linux.RESOLVE_BENEATH | linux.RESOLVE_NO_MAGICLINKS | linux.RESOLVE_NO_XDEV
"""Links are followed as long as they stay inside: a repository may keep its configuration behind one."""
_TRIES = 1000
"""openat2(2) says EAGAIN where something was renamed anywhere on the machine while it went through a `..`."""
_ENTRIES_MAX = 100
_MARK_BYTES_MAX = 1024 * 1024
_ABSENT = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.EXDEV, errno.ENAMETOOLONG, errno.EACCES})


def read_brought(volume: Path) -> Brought | None:
    """What was kept by `keep_brought`, None where nothing was."""
    try:
        text = (volume / "state" / _CONTENT_MARK).read_bytes()[:_MARK_BYTES_MAX]
    except FileNotFoundError:
        return None
    if not text:
        return Brought(_only_checkout(volume))  # of a version that brought in one repository and kept no more
    kept = json.loads(text)
    notices = tuple(Notice(**{**notice, "level": Level(notice["level"])}) for notice in kept["notices"])
    return Brought(kept["repository"], kept["subfolder"], notices)


def keep_brought(volume: Path, brought: Brought) -> None:
    """Marks the content as complete; whole on disk, or not there."""
    _keep(volume, _CONTENT_MARK, json.dumps(asdict(brought)).encode())


def home_filled(volume: Path) -> bool:
    return (volume / "state" / _HOME_MARK).exists()


def keep_home_filled(volume: Path) -> None:
    _keep(volume, _HOME_MARK, b"")


def _keep(volume: Path, name: str, content: bytes) -> None:
    aside = volume / "state" / f"{name}.new"
    with open(os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600), "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    aside.replace(volume / "state" / name)


def _only_checkout(volume: Path) -> str:
    """The one folder below `workspace/` that is a repository, "" where there are several or none."""
    found = []
    with os.scandir(volume / "workspace") as entries:
        for entry in entries:
            if entry.is_dir(follow_symlinks=False) and (volume / "workspace" / entry.name / ".git").exists():
                found.append(entry.name)
    return found[0] if len(found) == 1 and found[0].isprintable() else ""


def read_config_files(workspace: Path, repository: str) -> Mapping[str, bytes]:
    """The configuration files of the repository at `repository` below the folder `workspace`, by path.

    Of a file that is too large, one byte more than allowed is read, so that it can be told.
    """
    found: dict[str, bytes] = {}
    try:
        root = _open_inside(workspace, repository, os.O_PATH | os.O_DIRECTORY)
    except OSError as error:
        if error.errno in _ABSENT:
            return found
        raise
    try:
        for path in (path for candidate in CANDIDATES for path in _paths(root, candidate)):
            content = _read(root, path)
            if content is not None:
                found[path] = content
    finally:
        os.close(root)
    return found


def _paths(root: int, candidate: str) -> tuple[str, ...]:
    """The paths that a candidate stands for: a `*` is each folder's name there, of the first hundred entries."""
    before, star, after = candidate.partition("/*/")
    if not star:
        return (candidate,)
    try:
        folder = _resolve(root, before, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        if error.errno in _ABSENT:
            return ()
        raise
    try:
        with os.scandir(folder) as entries:
            names = sorted(entry.name for entry in islice(entries, _ENTRIES_MAX))
    finally:
        os.close(folder)
    return tuple(f"{before}/{name}/{after}" for name in names if name.isprintable())


def _read(root: int, path: str) -> bytes | None:
    try:
        looked_at = _resolve(root, path, os.O_PATH)
    except OSError as error:
        if error.errno in _ABSENT:
            return None
        raise
    try:
        if not stat.S_ISREG(os.fstat(looked_at).st_mode):
            return None  # a FIFO would be waited for
        with open(f"/proc/self/fd/{looked_at}", "rb") as file:
            return file.read(FILE_BYTES_MAX + 1)
    except PermissionError:
        return None
    finally:
        os.close(looked_at)


def folder_is_there(volume: Path, folder: str) -> bool:
    """Whether `folder`, absolute in the workspace, is one; what is not below /workspace counts as there."""
    pure = PurePosixPath(folder)
    if not pure.is_relative_to("/workspace"):
        return True
    return is_folder(volume / "workspace", str(pure.relative_to("/workspace")))


def is_folder(root: Path, path: str) -> bool:
    """Whether `path` is a folder below `root`, links followed as long as they stay there."""
    try:
        os.close(_open_inside(root, path, os.O_PATH | os.O_DIRECTORY))
    except (OSError, ValueError):
        return False
    return True


def is_file(root: Path, path: str) -> bool:
    """The same for a plain file."""
    try:
        file = _open_inside(root, path, os.O_PATH)
    except (OSError, ValueError):
        return False
    try:
        return stat.S_ISREG(os.fstat(file).st_mode)
    finally:
        os.close(file)


def _open_inside(root: Path, path: str, flags: int) -> int:
    with linux.opened(root, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW) as folder:
        return _resolve(folder, path or ".", flags)


def _resolve(folder: int, path: str, flags: int) -> int:
    for _ in range(_TRIES):
        with contextlib.suppress(BlockingIOError):
            return linux.openat2(folder, path, flags, resolve=_INSIDE)
    raise OSError(errno.EAGAIN, f"{path[:200]} could not be opened in {_TRIES} tries")


def is_free(place: str, taken: Iterable[str]) -> bool:
    """Whether a checkout at `place` lies neither in one of `taken` nor around one."""
    mine = PurePosixPath(place)
    others = [PurePosixPath(other) for other in taken]
    return not any(mine.is_relative_to(other) or other.is_relative_to(mine) for other in others)
