"""Git's words as they come: progress to be shown, lines to be logged, the end kept for an explanation."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import IO

from fairwater.domain.failure import Permanent
from fairwater.domain.workspaces.git_progress import parse_progress
from fairwater.domain.workspaces.run import Progress
from fairwater.ports.process import Channel, Process

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


async def listen(process: Process, words: GitWords, printed_max: int) -> bytes:
    """The command to its end: what it printed on standard output, of which `printed_max` bytes are let through.

    With `printed_max` 0 all that it says is words. Interrupted, it is hung up.

    Raises:
        GitFailed: its status is not 0.
        Permanent: `clone_failed`, where it prints more.
    """
    printed = bytearray()
    try:
        await process.write(b"")
        async for channel, chunk in process.output():
            if channel is Channel.STDERR or not printed_max:
                words.feed(chunk)
            else:
                printed += chunk
            if len(printed) > printed_max:
                raise Permanent(f"git printed more than {printed_max} bytes", code="clone_failed")
        status = await process.wait()
    finally:
        await process.close()
    if status:
        raise GitFailed(status, words.said)
    return bytes(printed)
