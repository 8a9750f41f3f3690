"""Where on an attached volume a run's tasks leave what they show and how they ended."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Protocol

from fairwater.domain.ids import RunNumber
from fairwater.domain.workspaces.run import TaskFacts
from fairwater.domain.workspaces.setup import Task


class TaskRecords(Protocol):
    def files(self, volume: Path, run: RunNumber, number: int) -> tuple[Path, Path]:
        """The files for a task's output and for its exit status; their folder is made."""
        ...

    def refuse(self, volume: Path, run: RunNumber, number: int, message: str) -> None:
        """The task cannot be started: it counts as ended with the status 127, and `message` as what it showed."""
        ...

    def facts(
        self, volume: Path, run: RunNumber, tasks: Sequence[Task], started_at: datetime | None, *, alive: bool
    ) -> tuple[TaskFacts, ...]:
        """Where the tasks stand. `alive`: the run is up; without, a task that has not ended was stopped."""
        ...
