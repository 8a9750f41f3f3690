"""Files in and out of a volume, for people and programs outside of the workspace.

Everything on the volume is hostile: names, links, kinds of files, and changes while we look. Where a path leads is
`volume_paths.py`'s; here only plain files are read and written and only folders listed. A file is replaced as a whole
or stays as it was. Decides nothing about who may; blocking calls run in threads.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import stat
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from fairwater.domain.failure import Permanent
from fairwater.node.file_replacement import Replacement, is_folder, no_such_file, refuse_unless_plain, told
from fairwater.node.volume_paths import Owner, Roots, find
from fairwater.ports.agent import FileEntry

T = TypeVar("T")

LISTED_MAX = 10_000
HOME = "/home/dev"
"""Where the home directory is seen by the user of the image `host`."""
CHUNK = 256 * 1024
"""Bytes read at once."""


@dataclass(frozen=True, slots=True)
class Listing:
    """The entries of a folder by name; `cut` when there are more than could be told."""

    entries: tuple[FileEntry, ...]
    cut: bool = False


class VolumeFiles:
    """The files of one attached volume. What is made belongs to `owner_uid` and `owner_gid`, ids as on disk."""

    def __init__(self, volume: Path, home: str = HOME, *, owner_uid: int = 1000, owner_gid: int = 1000) -> None:
        home_names = tuple(name for name in home.split("/") if name)
        self._roots: Roots = {("workspace",): volume / "workspace", home_names: volume / "home"}
        self._owner = Owner(owner_uid, owner_gid)

    async def list_folder(self, path: str) -> Listing:
        """At most `LISTED_MAX` entries. Raises Permanent: `no_such_file`, `not_a_folder`, `outside`, `bad_path`."""
        return await asyncio.to_thread(self._list_folder, path)

    async def read_file(self, path: str) -> AsyncIterator[bytes]:
        """The bytes of a file, in chunks. Raises Permanent: `no_such_file`, `is_folder`, `not_a_file`, `outside`."""
        async with _Aside() as aside:
            file = await aside.run(lambda: aside.hold(self.open_for_reading(path), os.close))
            while chunk := await aside.run(_read, path, file):
                yield chunk

    async def write_file(self, path: str, chunks: AsyncIterator[bytes]) -> int:
        """Replaces a file as a whole, or leaves it as it was; makes missing folders. Returns the bytes written.

        A file that is replaced keeps its mode.

        Raises:
            Permanent: `quota_exceeded`, `is_folder`, `not_a_file`, `not_a_folder`, `outside`, `bad_path`.
            Temporary: `changed_meanwhile`, when somebody in the workspace interferes.
        """
        async with _Aside() as aside:
            new = await aside.run(lambda: aside.hold(Replacement(self._roots, self._owner, path), Replacement.close))
            async for chunk in chunks:
                await aside.run(new.write, chunk)
            await aside.run(new.commit)
            return new.size

    async def delete(self, path: str) -> None:
        """Deletes a file, a link or an empty folder.

        Raises Permanent: `no_such_file`, `folder_not_empty`, `outside`, `bad_path`.
        """
        await asyncio.to_thread(self._delete, path)

    def open_for_reading(self, path: str) -> int:
        """A descriptor of a plain file, the caller's to close; its size is fstat's. Blocks; raises as `read_file`."""
        with told(path), find(self._roots, path) as place:
            mode = place.mode()
            if stat.S_ISDIR(mode):
                raise is_folder(path)
            refuse_unless_plain(path, mode)
            # It was looked at through O_PATH: opened anew, what was looked at is what is read.
            return os.open(f"/proc/self/fd/{place.item}", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)

    def _list_folder(self, path: str) -> Listing:
        with told(path), find(self._roots, path) as place:
            if place.item is None:
                raise no_such_file(path)
            if not stat.S_ISDIR(place.mode()):
                raise Permanent(f"{path[:200]!r} is not a folder; read it as a file", code="not_a_folder")
            folder = os.open(f"/proc/self/fd/{place.item}", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                with os.scandir(folder) as found:
                    entries: list[FileEntry] = []
                    for entry in found:
                        if len(entries) == LISTED_MAX:
                            return Listing(tuple(sorted(entries, key=_by_name)), cut=True)
                        with contextlib.suppress(FileNotFoundError):  # gone meanwhile
                            entries.append(_entry(entry))
                return Listing(tuple(sorted(entries, key=_by_name)))
            finally:
                os.close(folder)

    def _delete(self, path: str) -> None:
        with told(path), find(self._roots, path, follow=False) as place:
            if place.item is None:
                raise no_such_file(path)
            if place.name is None:
                raise Permanent(f"{path[:200]!r} itself cannot be deleted, only what is in it", code="outside")
            if stat.S_ISDIR(place.mode()):
                os.rmdir(place.name, dir_fd=place.folder)
            else:
                os.unlink(place.name, dir_fd=place.folder)


def _read(path: str, file: int) -> bytes:
    with told(path):
        return os.read(file, CHUNK)


class _Aside:
    """One thread for one operation: its calls run in order, and what it holds is let go last, cancelled or not.

    A descriptor must never be closed while a call that was given up on still uses it.
    """

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, "files")
        self._held = contextlib.ExitStack()

    async def run(self, work: Callable[..., T], *arguments: object) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work, *arguments)

    def hold(self, thing: T, let_go: Callable[[T], object]) -> T:
        self._held.callback(let_go, thing)
        return thing

    async def __aenter__(self) -> _Aside:
        return self

    async def __aexit__(self, *_: object) -> None:
        last = self._thread.submit(self._held.close)
        self._thread.shutdown(wait=False)
        await asyncio.shield(asyncio.wrap_future(last))


def _entry(entry: os.DirEntry[str]) -> FileEntry:
    status = entry.stat(follow_symlinks=False)
    return FileEntry(entry.name, _kind(status.st_mode), status.st_size, stat.S_IMODE(status.st_mode), status.st_mtime)


def _kind(mode: int) -> str:
    if stat.S_ISREG(mode):
        return "file"
    if stat.S_ISDIR(mode):
        return "folder"
    return "symlink" if stat.S_ISLNK(mode) else "other"


def _by_name(entry: FileEntry) -> str:
    return entry.name
