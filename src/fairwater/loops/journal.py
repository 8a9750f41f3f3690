"""What a node remembers of its runs across restarts of the agent, one small file a workspace.

The file is replaced as a whole, so a kill at any moment leaves the old or the new. It is not forced to disk: what a
power cut could lose is the fence of a run that the cut has ended anyway.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from fairwater.domain.ids import RunNumber, WorkspaceId
from fairwater.domain.workspaces.run import RunSpec, RunState, TaskFacts, Wish
from fairwater.domain.workspaces.setup import Setup


@dataclass(frozen=True, slots=True)
class Entry:
    """One workspace's last run. `launched`: its first process was let go; `content_ready`: its repository is there."""

    workspace: WorkspaceId
    run: RunNumber
    spec: RunSpec
    wish: Wish
    state: RunState
    reason: str
    since: datetime
    launched: bool = False
    content_ready: bool = False
    failure: str | None = None
    code: str | None = None
    revision: int = 0
    setup: Setup | None = None
    tasks_started_at: datetime | None = None
    tasks: tuple[TaskFacts, ...] = ()
    """Where the tasks stood when the run ended."""
    deleted: bool = False
    """Its volume is gone for good; what is left is the fence against late commands."""


_ENTRY = TypeAdapter(Entry)


FENCE_KEPT = timedelta(days=7)
"""How long a late command to a deleted workspace is known to be late."""
LOG_KEPT = 256 * 1024
"""Bytes of a log that outlive its run."""


def log_size(path: Path) -> int:
    """0 where there is no log."""
    try:
        return path.lstat().st_size
    except FileNotFoundError:
        return 0


def read_log(path: Path, offset: int, size: int) -> bytes:
    """At most `size` bytes of a log; none where there are no more. The log is never held open: its volume must stay
    free to be detached. The workspace can write it, so it is read only where it is a plain file."""
    try:
        log = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError):
        return b""
    try:
        return os.pread(log, size, offset)
    finally:
        os.close(log)


class Journal:
    """Entries by workspace, in memory and in `folder`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._entries: dict[WorkspaceId, Entry] = {}

    def load(self, now: datetime) -> tuple[str, ...]:
        """Reads what is there; returns the names of files that could not be read, which are left where they are."""
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        damaged: list[str] = []
        for path in sorted(self._folder.glob("*.json")):
            try:
                entry = _ENTRY.validate_json(path.read_bytes())
            except ValidationError:
                damaged.append(path.name)
                continue
            if entry.deleted and now - entry.since > FENCE_KEPT:
                path.unlink()
                continue
            self._entries[entry.workspace] = entry
        return tuple(damaged)

    def get(self, workspace: WorkspaceId) -> Entry | None:
        return self._entries.get(workspace)

    def entries(self) -> tuple[Entry, ...]:
        """Those of workspaces that are not deleted."""
        return tuple(entry for entry in self._entries.values() if not entry.deleted)

    def put(self, entry: Entry) -> None:
        path = self._path(entry.workspace)
        aside = path.with_suffix(".new")
        fd = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        with os.fdopen(fd, "wb") as file:
            file.write(_ENTRY.dump_json(entry))
        aside.replace(path)
        self._entries[entry.workspace] = entry

    def keep_log(self, workspace: WorkspaceId, log: Path, task: int | None = None) -> None:
        """Keeps the end of a run's or a task's log, so that it can be read while the volume is not attached."""
        kept = read_log(log, max(0, log_size(log) - LOG_KEPT), LOG_KEPT)
        self.kept_log(workspace, task).write_bytes(kept)

    def kept_log(self, workspace: WorkspaceId, task: int | None = None) -> Path:
        return self._folder / (f"{workspace}.log" if task is None else f"{workspace}.task{task}.log")

    def bury(self, entry: Entry) -> None:
        """Keeps of `entry` only the fence; what was asked for in it may be secret, and goes."""
        spec = replace(entry.spec, environment=(), command=None)
        self.put(replace(entry, spec=spec, setup=None, tasks=(), state=RunState.ENDED, deleted=True))
        for log in self._folder.glob(f"{entry.workspace}.*log"):
            log.unlink(missing_ok=True)

    def _path(self, workspace: WorkspaceId) -> Path:
        return self._folder / f"{workspace}.json"
