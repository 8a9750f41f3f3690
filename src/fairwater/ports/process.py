"""A command that runs in a workspace, and how its streams travel.

On a WebSocket each binary message is one frame: a channel byte, then the bytes. `CONTROL` carries one JSON object:
towards the command `{"resize": [rows, columns]}`, `{"signal": "TERM"}` or `{"eof": true}` (standard input ends);
from it, first `{"started": true}` and last `{"exit": status}`, or `{"error": {"code": …, "message": …}}` at any time,
with `retry_after_s` where it is temporary.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from enum import IntEnum
from typing import Protocol


class Channel(IntEnum):
    STDIN = 0
    STDOUT = 1
    STDERR = 2
    CONTROL = 3


@dataclass(frozen=True, slots=True)
class TerminalSize:
    rows: int = 24
    columns: int = 80


@dataclass(frozen=True, slots=True)
class ExecRequest:
    """What to run. `user` is the workspace's own, or root *inside* the workspace; `cwd` None is the repository.

    With `terminal`, one pseudo-terminal carries all streams, and output arrives on `STDOUT`.
    """

    command: tuple[str, ...]
    cwd: str | None = None
    environment: tuple[tuple[str, str], ...] = ()
    user: str = "workspace"
    terminal: TerminalSize | None = None


class Process(Protocol):
    """A command under way. Leaving it (`close`) hangs it up: SIGHUP to its process group."""

    def output(self) -> AsyncIterator[tuple[Channel, bytes]]:
        """The chunks of standard output and error as they come, until both are closed; to be iterated once."""
        ...

    async def write(self, data: bytes) -> None:
        """Writes to standard input, waiting while the command does not read; empty data ends it."""
        ...

    async def signal(self, name: str) -> None:
        """Sends a signal (`TERM`, `INT`, `HUP`, `KILL`, …) to the command's process group."""
        ...

    async def resize(self, size: TerminalSize) -> None: ...

    async def wait(self) -> int:
        """The exit status: 128 + n where signal n ended it. Raises Temporary where the connection to it was lost."""
        ...

    async def close(self) -> None: ...
