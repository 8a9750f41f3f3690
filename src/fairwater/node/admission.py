"""How a workspace's content and name get into a container that is already there.

The volume's folders, ids moved to the slot's own range, are attached in the container's mount namespace from outside,
by descriptors: nothing in the container can be followed or tricked on the way. Read back from its mount table.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from fairwater.domain.failure import Temporary
from fairwater.node import linux
from fairwater.node.host_image import HOME, UID
from fairwater.node.root import shifted
from fairwater.node.slots import Slot

_CLONE_NEWUTS = 0x04000000


@dataclass(frozen=True, slots=True)
class Placement:
    """A folder of the machine, to be seen at `target` in the container."""

    source: Path
    target: str


def volume_placements(root: Path) -> tuple[Placement, ...]:
    return (Placement(root / "workspace", "/workspace"), Placement(root / "home", HOME))


def bring_in(slot: Slot, first_id: int, placements: Sequence[Placement], binds: Sequence[tuple[Path, str]]) -> None:
    """Attaches `placements`, writable, and `binds`, read-only and shown as the workspace's own. May be repeated.

    Raises:
        Temporary: `volume_not_in_place`, where the container's mount table does not show them afterwards.
    """
    present = mounted_in(slot.pid)
    wanted = [placement for placement in placements if placement.target not in present]
    wanted_binds = [(source, target) for source, target in binds if target not in present]
    trees: list[tuple[int, str]] = []
    try:
        with linux.opened(f"/proc/{slot.pid}/ns/user") as userns:
            trees += [(shifted(placement.source, userns), placement.target) for placement in wanted]
        trees += [(_shown_as_own(source, first_id), target) for source, target in wanted_binds]
        with linux.opened(f"/proc/{slot.pid}/ns/mnt") as mount_ns:
            linux.in_namespaces(lambda: _attach(trees), mount_ns=mount_ns)
    finally:
        for tree, _ in trees:
            os.close(tree)
    missing = [placement.target for placement in placements if placement.target not in mounted_in(slot.pid)]
    if missing:
        raise Temporary(f"slot {slot.number}: {', '.join(missing)} is not mounted", code="volume_not_in_place")


def _attach(trees: Sequence[tuple[int, str]]) -> None:
    for tree, target in trees:
        # Made by the machine's root, so it belongs to no id of the container: a place to mount on, and nothing more.
        Path(target).mkdir(parents=True, exist_ok=True)
        linux.move_mount(tree, target)


def _shown_as_own(source: Path, first_id: int) -> int:
    """A read-only copy of the mount at `source` in which its owner's files belong to the workspace's user.

    So a repository that only its owner may read can be cloned, and git finds nothing dubious about its ownership.
    """
    info = source.stat()
    with linux.held_namespaces("--user") as holder:
        for name, ident in (("uid_map", info.st_uid), ("gid_map", info.st_gid)):
            Path(f"/proc/{holder}/{name}").write_text(f"{ident} {first_id + UID} 1\n")
        with linux.opened(f"/proc/{holder}/ns/user") as userns:
            return shifted(source, userns, linux.MOUNT_ATTR_RDONLY | linux.MOUNT_ATTR_NOEXEC)


def mounted_in(pid: int) -> frozenset[str]:
    """Where something is mounted, as process `pid` sees it."""
    lines = Path(f"/proc/{pid}/mountinfo").read_text().splitlines()
    return frozenset(line.split(" ", 5)[4] for line in lines)


def name_host(slot: Slot, name: str) -> None:
    """Gives the container its host name, known to itself by its address too."""

    def set_name() -> None:
        raw = name.encode()
        if ctypes.CDLL(None, use_errno=True).sethostname(raw, len(raw)):
            number = ctypes.get_errno()
            raise OSError(number, f"sethostname: {os.strerror(number)}")

    def enter() -> None:
        with linux.opened(f"/proc/{slot.pid}/ns/uts") as uts:
            linux.setns(uts, _CLONE_NEWUTS)
        set_name()

    linux.in_namespaces(enter)
    # Written in place: the file is bound into the container, and a new one in its stead would not be.
    hosts = f"127.0.0.1 localhost\n::1 localhost ip6-localhost ip6-loopback\n{slot.address} {name}\n"
    (slot.folder / "files/hosts").write_text(hosts)
    (slot.folder / "files/hostname").write_text(f"{name}\n")
