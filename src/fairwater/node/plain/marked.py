"""The processes that carry a sandbox's mark in their environment, found by reading /proc.

Decides which processes belong to a sandbox; refuses to know why they are to be signalled. A process keeps the
environment it was started with, and hands it on to its children: so children are found whatever their parent,
session or group, and also by an agent that did not start them.
"""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterable, Iterator
from pathlib import Path

from fairwater.node.plain.places import MARKER

_ENVIRON_BYTES_MAX = 4 * 1024 * 1024


def marked_processes(sandbox: str, proc: Path = Path("/proc")) -> tuple[int, ...]:
    """The ids of the living processes of `sandbox`; dead ones that nobody has collected yet do not count."""
    mark = f"{MARKER}={sandbox}".encode()
    return tuple(pid for pid in _processes(proc) if _carries(pid, mark, proc))


def signal_marked(sandbox: str, signals: Iterable[signal.Signals], proc: Path = Path("/proc")) -> int:
    """Sends `signals` to every process of `sandbox`; how many there were.

    Each is held by a descriptor while it is looked at again, so that a process that got a dead one's id is not hit.
    """
    mark = f"{MARKER}={sandbox}".encode()
    count = 0
    for pid in _processes(proc):
        if not _carries(pid, mark, proc):
            continue
        with contextlib.suppress(ProcessLookupError, PermissionError):
            held = os.pidfd_open(pid)
            try:
                if _carries(pid, mark, proc):
                    count += 1
                    for each in signals:
                        signal.pidfd_send_signal(held, each)
            finally:
                os.close(held)
    return count


def _processes(proc: Path) -> Iterator[int]:
    own = os.getpid()
    for entry in os.scandir(proc):
        if entry.name.isdigit() and int(entry.name) != own:
            yield int(entry.name)


def _carries(pid: int, mark: bytes, proc: Path) -> bool:
    try:
        with open(proc / str(pid) / "environ", "rb") as file:
            environment = file.read(_ENVIRON_BYTES_MAX)
    except OSError:  # gone, or another user's
        return False
    return mark in environment.split(b"\0")
