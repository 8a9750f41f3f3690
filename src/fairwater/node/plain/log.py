"""The log of a run: appended to, readable by its owner alone."""

from __future__ import annotations

import os
from pathlib import Path
from typing import IO


def open_log(path: Path) -> IO[bytes]:
    """`path`, opened to append; a symlink in its place is refused (OSError)."""
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
    return open(os.open(path, flags, 0o600), "ab", buffering=0)
