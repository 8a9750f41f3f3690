"""Where on a volume a run's tasks leave what they show and how they ended.

Below `state/`, out of the workspace's sight; only the marker of what runs once is the workspace's own file, and is
looked up without following any link.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from fairwater.domain.ids import RunNumber
from fairwater.domain.workspaces.run import TaskFacts, TaskState
from fairwater.domain.workspaces.setup import Task
from fairwater.node import linux

_STATUS_BYTES = 16
_NOT_FOUND = 127
"""What a shell ends with whose command is not there."""
_ENDED_BY_STOP = frozenset({128 + number for number in (signal.SIGHUP, signal.SIGKILL, signal.SIGTERM)})
_BENEATH = linux.RESOLVE_BENEATH | linux.RESOLVE_NO_SYMLINKS | linux.RESOLVE_NO_MAGICLINKS


class VolumeTasks:
    """Implements `ports.tasks.TaskRecords`."""

    def files(self, volume: Path, run: RunNumber, number: int) -> tuple[Path, Path]:
        folder = volume / "state" / "tasks"
        folder.mkdir(mode=0o700, exist_ok=True)
        return folder / f"{run}-{number}.log", folder / f"{run}-{number}.status"

    def refuse(self, volume: Path, run: RunNumber, number: int, message: str) -> None:
        log, status = self.files(volume, run, number)
        for path, text in ((log, message), (status, str(_NOT_FOUND))):
            path.unlink(missing_ok=True)
            path.write_text(f"{text}\n", encoding="utf-8")

    def facts(
        self, volume: Path, run: RunNumber, tasks: Sequence[Task], started_at: datetime | None, *, alive: bool
    ) -> tuple[TaskFacts, ...]:
        return tuple(self._facts(volume, run, task, started_at, alive=alive) for task in tasks)

    def _facts(
        self, volume: Path, run: RunNumber, task: Task, started_at: datetime | None, *, alive: bool
    ) -> TaskFacts:
        if started_at is None:
            state = TaskState.WAITING if alive else TaskState.STOPPED
            return TaskFacts(task.number, task.name, state)
        ended = _read_status(self.files(volume, run, task.number)[1])
        if ended is not None:
            status, ended_at = ended
            state = TaskState.FAILED if status else TaskState.SUCCEEDED
            if not alive and status in _ENDED_BY_STOP:
                state = TaskState.STOPPED
            return TaskFacts(task.number, task.name, state, status, started_at, ended_at)
        if not alive:
            state = TaskState.STOPPED
        elif task.marker is not None and not _is_there(volume / "workspace", task.marker):
            state = TaskState.INITIALIZING
        else:
            state = TaskState.RUNNING
        return TaskFacts(task.number, task.name, state, None, started_at)


def _read_status(path: Path) -> tuple[int, datetime] | None:
    """The exit status and when it was written; None while there is none."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        text = os.read(fd, _STATUS_BYTES)
        written_at = datetime.fromtimestamp(os.fstat(fd).st_mtime, UTC)
    finally:
        os.close(fd)
    if not text.endswith(b"\n") or not text[:-1].isdigit():
        return None
    return int(text), written_at


def _is_there(workspace: Path, marker: str) -> bool:
    below = marker.removeprefix("/workspace/")
    try:
        with linux.opened(workspace, os.O_PATH | os.O_DIRECTORY) as folder:
            os.close(linux.openat2(folder, below, os.O_PATH, resolve=_BENEATH))
    except OSError:
        return False
    return True
