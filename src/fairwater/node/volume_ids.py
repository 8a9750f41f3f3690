"""Whose a volume's files are inside a sandbox.

On a volume a person's files belong to `WORKSPACE_UID`, whatever image they were written in. Inside they belong to
whoever the sandbox runs as: the two ids are exchanged, all others are the same on both sides.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from fairwater.node import linux
from fairwater.node.bundle import IDS
from fairwater.node.volumes import WORKSPACE_UID


def is_plain(uid: int, gid: int) -> bool:
    """Whether a sandbox's own user namespace shows the volume as it should."""
    return uid == gid == WORKSPACE_UID


def exchanged(own: int, first_id: int) -> str:
    """An id map of 0 to `IDS` in which `WORKSPACE_UID` and `own` change places, moved up by `first_id`."""
    low, high = sorted((WORKSPACE_UID, own))
    ranges = [(0, 0, low), (low, high, 1), (low + 1, low + 1, high - low - 1), (high, low, 1)]
    ranges.append((high + 1, high + 1, IDS - high - 1))
    if low == high:
        ranges = [(0, 0, IDS)]
    return "".join(f"{disk} {first_id + inside} {count}\n" for disk, inside, count in ranges if count > 0)


@contextlib.contextmanager
def volume_namespace(uid: int, gid: int, first_id: int) -> Iterator[Path]:
    """A user namespace whose map shows a volume as `uid`'s and `gid`'s, by the path of it; takes some milliseconds."""
    with linux.held_namespaces("--user") as holder:
        for name, own in (("uid_map", uid), ("gid_map", gid)):
            Path(f"/proc/{holder}/{name}").write_text(exchanged(own, first_id))
        yield Path(f"/proc/{holder}/ns/user")


def keep_volume_namespace(uid: int, gid: int, first_id: int, path: Path) -> None:
    """Such a namespace, kept at `path` by a bind mount."""
    with volume_namespace(uid, gid, first_id) as namespace:
        path.touch(mode=0o600)
        linux.mount(namespace, path, "none", linux.MS_BIND)
