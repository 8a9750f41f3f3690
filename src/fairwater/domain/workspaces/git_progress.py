"""How far git and git-lfs are, from what they print."""

from __future__ import annotations

import re

from fairwater.domain.workspaces.run import Progress

_COUNTED = re.compile(
    r"(?:remote: )?(?P<step>[A-Z][a-z]+ (?:objects|deltas|files|LFS objects|content)):"
    r"\s+\d{1,3}% \((?P<done>\d{1,12})/(?P<total>\d{1,12})\)"
)
_UNCOUNTED = re.compile(r"(?:remote: )?(?P<step>Enumerating objects):\s+(?P<done>\d{1,12})")
_LINE_MAX = 4096


def parse_progress(line: str) -> Progress | None:
    """How far git is, from a line of its standard error (they end in `\\r` or `\\n`); None where it says no such thing.

    `Receiving objects:  12% (123/1000), 1.20 MiB | 800 KiB/s` is 123 of 1000 objects of the step "receiving objects".
    """
    text = line.strip()[:_LINE_MAX]
    counted = _COUNTED.match(text)
    if counted:
        step = counted["step"][0].lower() + counted["step"][1:]
        return Progress(step, int(counted["done"]), int(counted["total"]), step.rsplit(" ", 1)[1])
    uncounted = _UNCOUNTED.match(text)
    if uncounted:
        return Progress("enumerating objects", int(uncounted["done"]), None, "objects")
    return None
