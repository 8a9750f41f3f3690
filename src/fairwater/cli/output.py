"""What a person and a program see of a command: tables, objects, errors, exit codes.

Standard output carries the answer and nothing else; everything that is said beside it goes to standard error. Text that
came from elsewhere is stripped of control characters, so that no name or reason can move the cursor.
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from enum import IntEnum
from typing import Any, TextIO


class ExitCode(IntEnum):
    OK = 0
    FAILURE = 1
    WRONG_USE = 2
    NOT_NOW = 3  # and what it waits for is said


_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


def clean(text: object) -> str:
    """`text` without control characters; None is a dash."""
    return "-" if text is None else _CONTROL.sub("\N{REPLACEMENT CHARACTER}", str(text))


def write_json(value: object) -> None:
    """`value` as the only thing on standard output."""
    sys.stdout.write(json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def write_line(text: str = "", style: str = "") -> None:
    """`style` red or yellow shows on a terminal alone."""
    sys.stdout.write(_styled(clean(text), style, sys.stdout) + "\n")


def say(text: str, style: str = "") -> None:
    """Tells the person something beside the answer."""
    sys.stderr.write(_styled(clean(text), style, sys.stderr) + "\n")
    sys.stderr.flush()


def _styled(text: str, style: str, stream: TextIO) -> str:
    code = {"red": 31, "yellow": 33}.get(style)
    return f"\x1b[{code}m{text}\x1b[0m" if code and stream.isatty() and not os.environ.get("NO_COLOR") else text


def write_table(columns: Sequence[str], rows: Sequence[Sequence[object]], empty: str) -> None:
    """A table: drawn on a terminal, plain aligned text elsewhere. `empty` is said where there are no rows."""
    cells = [[" ".join(clean(cell).split()) for cell in row] for row in rows]
    if not cells:
        say(empty)
    elif sys.stdout.isatty():
        from rich.box import SIMPLE_HEAD
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text

        table = Table(*columns, box=SIMPLE_HEAD, pad_edge=False)
        for row in cells:
            table.add_row(*(Text(cell, style=_STYLES.get(cell, "")) for cell in row))
        Console(highlight=False).print(table)
    else:
        widths = [max(len(row[column]) for row in [list(columns), *cells]) for column in range(len(columns))]
        for row in [[column.upper() for column in columns], *cells]:
            line = "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))
            sys.stdout.write(line.rstrip() + "\n")


_STYLES = {
    "running": "green", "ok": "green", "failed": "red", "lost": "red", "missing": "red", "degraded": "yellow",
    "stopped": "dim", "stopping": "yellow", "blocked": "red",
}  # fmt: skip


def write_fields(fields: Sequence[tuple[str, object]]) -> None:
    """One thing, a line for each of its fields; what is None is left out."""
    shown = [(name, clean(value)) for name, value in fields if value is not None]
    width = max((len(name) for name, _ in shown), default=0)
    for name, value in shown:
        sys.stdout.write(f"{name.ljust(width)}  {value}\n")


def age(since: Any, now: datetime | None = None) -> str:
    """How long ago the API's time `since` was, for a person: `12s`, `5min`, `3h`, `8d`."""
    try:
        then = datetime.fromisoformat(str(since))
    except ValueError:
        return "-"
    seconds = ((now or datetime.now(UTC)) - (then if then.tzinfo else then.replace(tzinfo=UTC))).total_seconds()
    for length, unit in ((86_400, "d"), (3600, "h"), (60, "min")):
        if seconds >= length:
            return f"{int(seconds // length)}{unit}"
    return f"{max(0, int(seconds))}s"
