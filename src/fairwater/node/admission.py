"""How a workspace's content and name get into a container that is already there.

The volume's folders, ids moved to the slot's own range, are attached in the container's mount namespace from outside,
by descriptors: nothing in the container can be followed or tricked on the way. Read back: what is found at the place
afterwards is the very folder.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from fairwater.domain.failure import Temporary
from fairwater.domain.workspaces.home import home_directory
from fairwater.node import linux
from fairwater.node.bundle import IDS
from fairwater.node.root import shifted
from fairwater.node.root_places import RootPlaces
from fairwater.node.slot_record import Slot
from fairwater.node.slots import bad_user
from fairwater.node.volume_ids import is_plain, volume_namespace
from fairwater.ports.images import ImageUser

_CLONE_NEWUTS = 0x04000000


@dataclass(frozen=True, slots=True)
class Placement:
    """A folder of the machine, to be seen at `target` in the container."""

    source: Path
    target: str


def volume_placements(root: Path, user: ImageUser) -> tuple[Placement, ...]:
    home = home_directory(user.home, user.name)
    return (Placement(root / "workspace", "/workspace"), Placement(root / "home", home))


def bring_in(
    slot: Slot, first_id: int, user: ImageUser, placements: Sequence[Placement], binds: Sequence[tuple[Path, str]]
) -> None:
    """Attaches `placements`, writable, and `binds`, read-only; both are shown as `user`'s. May be repeated.

    Raises:
        Permanent: `bad_user`, `bad_image`.
        Temporary: `volume_not_in_place`, where they are not found there afterwards.
    """
    if max(user.uid, user.gid) >= IDS:
        raise bad_user(user)
    trees: list[tuple[int, Placement]] = []
    with contextlib.ExitStack() as held:
        with _volume_namespace(slot, first_id, user) as path, linux.opened(path) as userns:
            for placement in placements:
                trees.append((shifted(placement.source, userns), placement))
                held.callback(os.close, trees[-1][0])
        for source, target in binds:
            trees.append((_shown_as_own(source, first_id, user), Placement(source, target)))
            held.callback(os.close, trees[-1][0])
        with linux.opened(f"/proc/{slot.pid}/ns/mnt") as mount_ns:
            missing = linux.in_namespaces(lambda: _attach(trees, first_id), mount_ns=mount_ns)
    if missing:
        raise Temporary(f"slot {slot.number}: {', '.join(missing)} is not mounted", code="volume_not_in_place")


def _attach(trees: Sequence[tuple[int, Placement]], first_id: int) -> list[str]:
    """In the container's mount namespace: mounts what is not there yet; returns where it is not afterwards."""
    missing: list[str] = []
    with linux.opened("/", os.O_PATH | os.O_DIRECTORY) as root:
        places = RootPlaces(root, first_id)
        for tree, placement in trees:
            if not _is_there(places, tree, placement.target):
                place = places.folder(placement.target)
                try:
                    linux.move_mount(tree, place)
                finally:
                    os.close(place)
        missing += [placement.target for tree, placement in trees if not _is_there(places, tree, placement.target)]
    return missing


def _is_there(places: RootPlaces, tree: int, target: str) -> bool:
    """Whether what lies at `target` is the root of the mount `tree`, wherever that was made."""
    place = places.folder(target)
    try:
        return os.path.samestat(os.fstat(place), os.fstat(tree))
    finally:
        os.close(place)


@contextlib.contextmanager
def _volume_namespace(slot: Slot, first_id: int, user: ImageUser) -> Iterator[Path]:
    """The user namespace that shows the volume as `user`'s: kept since parking, where it is the image's own user."""
    if is_plain(user.uid, user.gid):
        yield slot.folder / "ns/user"
    elif (user.uid, user.gid) == (slot.user.uid, slot.user.gid):
        yield slot.volume_ids
    else:
        with volume_namespace(user.uid, user.gid, first_id) as path:
            yield path


def _shown_as_own(source: Path, first_id: int, user: ImageUser) -> int:
    """A read-only copy of the mount at `source` in which its owner's files belong to the workspace's user.

    So a repository that only its owner may read can be cloned, and git finds nothing dubious about its ownership.
    """
    info = source.stat()
    with linux.held_namespaces("--user") as holder:
        for name, ident, own in (("uid_map", info.st_uid, user.uid), ("gid_map", info.st_gid, user.gid)):
            Path(f"/proc/{holder}/{name}").write_text(f"{ident} {first_id + own} 1\n")
        with linux.opened(f"/proc/{holder}/ns/user") as userns:
            return shifted(source, userns, linux.MOUNT_ATTR_RDONLY | linux.MOUNT_ATTR_NOEXEC)


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
