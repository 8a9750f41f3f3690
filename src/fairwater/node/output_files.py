"""The files on a volume into which a workspace's processes write by descriptors that they are given.

A full volume has no room for one: its owner must still get in, to make some, so that then nothing is kept.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def opened_log(path: Path) -> Iterator[int]:
    """The log of a first process, to be appended to."""
    with _opened(path, os.O_WRONLY | os.O_APPEND) as log:
        if stat.S_ISREG(os.fstat(log).st_mode):
            os.fchmod(log, 0o622)  # so that the workspace's user can open its /dev/stdout; its folder is closed to it
        yield log


@contextlib.contextmanager
def opened_for_task(path: Path) -> Iterator[int]:
    """What a task has shown, or its exit status, to be read and written."""
    with _opened(path, os.O_RDWR) as file:
        yield file


@contextlib.contextmanager
def _opened(path: Path, flags: int) -> Iterator[int]:
    try:
        file = os.open(path, flags | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        if error.errno not in {errno.ENOSPC, errno.EDQUOT}:
            raise
        file = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    try:
        yield file
    finally:
        os.close(file)
