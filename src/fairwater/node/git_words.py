"""Git's words as they come: progress to be shown, lines to be logged, the end kept for an explanation."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import IO

from fairwater.domain.workspaces.git import parse_progress
from fairwater.domain.workspaces.run import Progress

_KEPT = 64 * 1024
_LINE_MAX = 16 * 1024
_LINE_END = re.compile(rb"([\r\n])")


class GitFailed(Exception):
    """A command ended with `status`; `stderr` is the end of what it said."""

    def __init__(self, status: int, stderr: str) -> None:
        super().__init__(f"a command ended with {status}")
        self.status = status
        self.stderr = stderr


class GitWords:
    """Feed it standard error; everything in there may come from a hostile server."""

    def __init__(self, log: IO[bytes], report: Callable[[Progress], None]) -> None:
        self._log = log
        self._report = report
        self._said = bytearray()
        self._rest = b""

    def feed(self, chunk: bytes) -> None:
        self._said += chunk
        del self._said[:-_KEPT]
        *parts, rest = _LINE_END.split(self._rest + chunk)
        latest: Progress | None = None
        for line, end in zip(parts[::2], parts[1::2], strict=True):
            text = line.decode("utf-8", "replace")
            latest = parse_progress(text) or latest
            if end == b"\n" and text:
                self._log.write("".join(sign if sign.isprintable() else "?" for sign in text).encode() + b"\n")
        self._rest = rest[-_LINE_MAX:]
        if latest is not None:
            self._report(latest)

    @property
    def said(self) -> str:
        """The last 64 KiB."""
        return self._said.decode("utf-8", "replace")
