"""Keeps the parts of Fairwater running: starts them in order, starts again what died, ends them in order.

Decides when a part is started again (backing off while it keeps dying) and how long it may take to end; refuses to know
what a part does. Workspaces live on without their agent, so nothing is stopped because a part died.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import IO

from fairwater.cli.preparation import Account
from fairwater.domain.failure import Permanent

READY_S, END_S = 60.0, 30.0
_TOLD_AFTER_S = 5.0
LOG_BYTES_MAX = 10 * 1024 * 1024
LOGS_KEPT = 3
_BACKOFF_S = (0.5, 30.0)
_LOOK_S = 0.5
_STEADY_S = 60.0
"""A part that lived this long is no longer counted as dying again and again."""


class Interrupted(BaseException):
    """Ctrl-C, or another signal to end. No `Exception`: nothing but the supervisor may catch it."""


@dataclass(frozen=True, slots=True)
class Part:
    """A child process. `ready` says whether it does its work yet; `account` None keeps this process's own user."""

    name: str
    command: Sequence[str]
    environment: Mapping[str, str]
    log: Path
    ready: Callable[[], bool]
    account: Account | None = None


@dataclass(slots=True)
class _Child:
    part: Part
    process: subprocess.Popen[bytes] | None = None
    started_at: float = 0.0
    delay_s: float = _BACKOFF_S[0]
    again_at: float | None = None


@dataclass(slots=True)
class Supervisor:
    """The parts, in the order in which they start; they end in the opposite one."""

    parts: Sequence[Part]
    lock: int
    tell: Callable[[str], None]
    interrupts: Interrupts
    _children: list[_Child] = field(default_factory=list)
    _pipe: tuple[int, int] | None = None
    _over: threading.Event = field(default_factory=threading.Event)
    _watcher: threading.Thread | None = None

    def start(self) -> None:
        """Starts each part once the one before is ready. Raises Permanent: `part_failed`, with the end of its log."""
        self._pipe = os.pipe()
        self._children = [_Child(part) for part in self.parts]
        for child in self._children:
            self._spawn(child)
            ends = time.monotonic() + READY_S
            told = False
            while not child.part.ready():
                if not told and time.monotonic() > ends - READY_S + _TOLD_AFTER_S:
                    told = True
                    self.tell(f"the {child.part.name} is not ready yet; it says:\n{tail(child.part.log, 1)}")
                status = child.process.poll() if child.process else None
                if status is not None or time.monotonic() > ends:
                    why = f"ended with {_words(status)}" if status is not None else f"is not ready after {READY_S:g} s"
                    raise Permanent(
                        f"the {child.part.name} {why}. The end of {child.part.log}:\n{tail(child.part.log)}",
                        code="part_failed",
                    )
                time.sleep(0.03)
        self._watcher = threading.Thread(target=self._watch, daemon=True, name="supervisor")
        self._watcher.start()

    def wait(self) -> None:
        """Waits until interrupted. What dies meanwhile is started again, from `start` to `stop`."""
        self._over.wait()

    def _watch(self) -> None:
        while not self._over.wait(_LOOK_S):
            try:
                self.look()
            except OSError as error:
                self.tell(f"cannot look after server and agent: {error}")

    def look(self) -> None:
        """One look at every part."""
        for child in self._children:
            if child.part.log.exists() and child.part.log.stat().st_size > LOG_BYTES_MAX:
                rotate(child.part.log)
            if child.process is None:
                if child.again_at is not None and time.monotonic() >= child.again_at:
                    self._spawn(child)
                continue
            status = child.process.poll()
            if status is None:
                continue
            now = time.monotonic()
            if now - child.started_at > _STEADY_S:
                child.delay_s = _BACKOFF_S[0]
            child.process, child.again_at = None, now + child.delay_s
            self.tell(
                f"the {child.part.name} ended with {_words(status)}; starting it again in {child.delay_s:g} s "
                f"(its log: {child.part.log}); workspaces go on"
            )
            child.delay_s = min(child.delay_s * 2, _BACKOFF_S[1])

    def stop(self) -> None:
        """Ends the parts, the last first: SIGTERM, and SIGKILL after a bound or at an interrupt."""
        self._over.set()
        if self._watcher is not None:
            self._watcher.join(timeout=5)
        for child in reversed(self._children):
            process = child.process
            if process is None or process.poll() is not None:
                continue
            try:
                process.send_signal(signal.SIGTERM)
                process.wait(END_S)
            except (subprocess.TimeoutExpired, Interrupted):
                self.tell(f"the {child.part.name} did not end in time: killing it")
                process.kill()
                process.wait()
        if self._pipe is not None:
            for descriptor in self._pipe:
                os.close(descriptor)
            self._pipe = None

    def _spawn(self, child: _Child) -> None:
        part = child.part
        assert self._pipe is not None
        options: dict[str, object] = {}
        if part.account is not None:
            options = {"user": part.account.uid, "group": part.account.gid, "extra_groups": []}
        with self.interrupts.held(), _open_log(part.log) as log:
            child.process = subprocess.Popen(
                [*part.command, "--supervised", str(self.lock)],
                env=dict(part.environment),
                cwd="/",
                stdin=self._pipe[0],
                stdout=log,
                stderr=log,
                pass_fds=(self.lock,),
                start_new_session=True,
                umask=0o022,
                **options,  # type: ignore[call-overload]
            )
            child.started_at, child.again_at = time.monotonic(), None


class Interrupts:
    """Signals to end, as exceptions: each one breaks off what is under way, except what is `held`."""

    def __init__(self) -> None:
        self._depth = 0
        self._pending = False

    def __enter__(self) -> Interrupts:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, self._arrived)
        return self

    def __exit__(self, *error: object) -> None:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        for number in (signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_DFL)

    @contextmanager
    def held(self) -> Iterator[None]:
        """Signals that arrive within count when it is over. They only ever arrive in the main thread."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        self._depth += 1
        try:
            yield
        finally:
            self._depth -= 1
        if self._pending and not self._depth:
            self._pending = False
            raise Interrupted

    def _arrived(self, number: int, frame: FrameType | None) -> None:
        if self._depth:
            self._pending = True
            return
        raise Interrupted


def rotate(log: Path) -> None:
    """Keeps a few old logs. The part goes on writing into the same file, which is cut: it was opened for appending."""
    for number in range(LOGS_KEPT - 1, 0, -1):
        older = log.with_name(f"{log.name}.{number}")
        if older.exists():
            older.replace(log.with_name(f"{log.name}.{number + 1}"))
    shutil.copyfile(log, log.with_name(f"{log.name}.1"))
    os.truncate(log, 0)


def tail(log: Path, lines: int = 15) -> str:
    """The last lines of a log, for a person."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - 8192))
            text = file.read().decode("utf-8", "replace")
    except OSError as error:
        return f"(it cannot be read: {error.strerror})"
    return "\n".join(f"  {line}" for line in text.splitlines()[-lines:]) or "  (empty)"


def _open_log(log: Path) -> IO[bytes]:
    return os.fdopen(os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o640), "ab")


def _words(status: int) -> str:
    return f"status {status}" if status >= 0 else f"signal {signal.Signals(-status).name}"
