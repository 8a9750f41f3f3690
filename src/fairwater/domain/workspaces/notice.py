"""Something that a person should know of what was read or done for them, with the place that it is about."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Level(StrEnum):
    ERROR = "error"  # what was asked for was not done
    WARNING = "warning"  # it was done otherwise than written, or in part
    INFO = "info"


@dataclass(frozen=True, slots=True)
class Notice:
    """`line` and `column` count from 1, in `file`, a path in the repository. `code` is stable, for programs."""

    level: Level
    code: str
    message: str
    file: str | None = None
    line: int | None = None
    column: int | None = None

    def __str__(self) -> str:
        place = ":".join(str(part) for part in (self.file, self.line, self.column) if part is not None)
        return f"{place}: {self.message}" if place else self.message
