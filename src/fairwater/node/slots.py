"""Slots: places on this node with a sandbox in them, parked and ready.

Makes and clears what a sandbox consists of: a user namespace with ids of its own, a network, a root file system, a
container whose first process waits. Decides nothing about who gets it. What a slot consists of can be read from its
folder and the kernel, so that a later agent finds it again.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import shutil
import signal
from pathlib import Path
from typing import Protocol

from fairwater.domain.failure import Permanent, Temporary
from fairwater.domain.workspaces.classes import WorkspaceClass
from fairwater.domain.workspaces.home import home_directory
from fairwater.node import linux
from fairwater.node.bundle import IDS, MOUNT_POINTS, BundleSpec, configuration
from fairwater.node.cgroups import Cgroups, limits_of
from fairwater.node.container import delete_container, make_namespaces, run_container
from fairwater.node.memory_folder import keep_in_memory, release_memory
from fairwater.node.root import SCRATCH_BYTES, make_places, mount_root, mounts_below
from fairwater.node.slot_record import Slot, read_slot, write_slot, write_whole
from fairwater.node.volume_ids import is_plain, keep_volume_namespace
from fairwater.ports.images import ROOT, ImageRoot, ImageUser

FIRST_ID = 0x7000_0000
"""Where the sandboxes' ids begin: above those of systemd's containers (which end at 0x6FFFFFFF), below 2³¹."""
SLOTS_MAX = 256
_RECORDS_BYTES = 256 * 1024**2
"""A bound for what lies in the slots' folders: some KiB each."""


class Network(Protocol):
    """What a slot needs of the network: see `node.network`."""

    def create(self, slot: int, netns: Path) -> str: ...
    def probe(self, slot: int, netns: Path) -> None: ...
    def prepare(self) -> None: ...
    def open(self, slot: int) -> None: ...
    def close(self, slot: int) -> None: ...
    def remove(self, slot: int) -> None: ...
    def nameservers(self) -> tuple[str, ...]: ...


def first_id(instance: int, number: int) -> int:
    """The machine's id of a slot's root; its other ids follow. No two slots of a machine share one."""
    return FIRST_ID + (instance * SLOTS_MAX + number) * IDS


class Slots:
    """The slots of one agent below `folder`; `instance` tells the agents of one machine apart (0 to 15)."""

    def __init__(
        self,
        folder: Path,
        instance: int,
        cgroups: Cgroups,
        network: Network,
        init: Path,
        runtime: str,
        parked_limits: WorkspaceClass,
    ) -> None:
        self._folder = folder
        self._instance = instance
        self._cgroups = cgroups
        self._network = network
        self._init = init
        self._runtime = runtime
        self._parked_limits = parked_limits

    def prepare(self) -> None:
        # Environments are kept with the slots, and may hold secrets.
        keep_in_memory(self._folder, _RECORDS_BYTES, 0o711)
        self._cgroups.prepare()

    def release(self) -> None:
        """After the last slot was cleared: gives the memory back."""
        release_memory(self._folder)

    def first_id(self, slot: Slot) -> int:
        return first_id(self._instance, slot.number)

    def found(self) -> tuple[tuple[int, Slot | None], ...]:
        """Every slot that left something behind; None where its making was interrupted."""
        slots: list[tuple[int, Slot | None]] = []
        for folder in self._folder.iterdir():
            if not folder.name.isdecimal():
                continue
            slots.append((int(folder.name), read_slot(folder)))
        return tuple(sorted(slots, key=lambda pair: pair[0]))

    def park(self, number: int, image: ImageRoot) -> Slot:
        """Makes slot `number` with a waiting container of `image`; about 100 ms. Clears up when it fails.

        Raises:
            Permanent: `bad_image`, where the image cannot be the root of a sandbox; `bad_user`.
            Temporary: `park_failed`, or `probe_failed` from the network's probe.
        """
        folder = self._folder / str(number)
        try:
            return self._park(number, folder, image)
        except OSError as error:
            self.clear(number)
            raise Temporary(f"slot {number}: {error}", code="park_failed", delay_s=1) from error
        except BaseException:
            self.clear(number)
            raise

    def _park(self, number: int, folder: Path, image: ImageRoot) -> Slot:
        base = first_id(self._instance, number)
        user = image.user
        if max(user.uid, user.gid) >= IDS:
            raise bad_user(user)
        for path in (folder, *(folder / name for name in ("ns", "root", "scratch", "bundle", "files"))):
            path.mkdir(exist_ok=True)
            # The runtime walks here as the sandbox's root; nobody else may.
            os.chown(path, 0, base)
            path.chmod(0o710)
        (folder / "service").mkdir(exist_ok=True)
        (folder / "service").chmod(0o755)
        user_ns, net_ns = folder / "ns/user", folder / "ns/net"
        make_namespaces(base, user_ns, net_ns)
        if not is_plain(user.uid, user.gid):
            keep_volume_namespace(user.uid, user.gid, base, folder / "ns/volume")
        address = self._network.create(number, net_ns)
        self._network.probe(number, net_ns)
        mount_root(folder, image, user_ns, base)
        files = self._files(folder)
        folders = (*MOUNT_POINTS, *(target for _, target in image.binds), home_directory(user.home, user.name))
        make_places(folder / "root", base, folders, files, image.working_directory)
        limits = limits_of(self._parked_limits)
        spec = BundleSpec(
            root=folder / "root",
            init=self._init,
            service=folder / "service",
            user_namespace=user_ns,
            network_namespace=net_ns,
            first_id=base,
            cgroup=self._cgroups.path(f"s{number}"),
            limits=limits,
            binds=image.binds,
            files=files,
            tmp_bytes=SCRATCH_BYTES,
        )
        (folder / "bundle/config.json").write_text(json.dumps(configuration(spec)))
        pid = run_container(self._runtime, self._cgroups.v2_to_hide, number, folder)
        started = linux.start_time(pid)
        if started is None:
            raise Temporary(f"slot {number}: its first process ended at once", code="park_failed", delay_s=1)
        root = next((known for known in image.users if known.uid == 0), ROOT)
        slot = Slot(number, folder, image.digest, pid, started, address, image.environment, user, root)
        write_slot(slot)
        return slot

    def _files(self, folder: Path) -> dict[str, Path]:
        resolv = "".join(f"nameserver {address}\n" for address in self._network.nameservers())
        files = {
            "/etc/resolv.conf": resolv,
            "/etc/hosts": "127.0.0.1 localhost\n::1 localhost ip6-localhost ip6-loopback\n",
            "/etc/hostname": "workspace\n",
        }
        paths: dict[str, Path] = {}
        for target, text in files.items():
            paths[target] = folder / "files" / Path(target).name
            write_whole(paths[target], text, 0o644)
        return paths

    def kill(self, slot: Slot) -> None:
        """Kills every process of the slot, and waits until the kernel has let go of them."""
        with contextlib.suppress(ProcessLookupError):
            pidfd = os.pidfd_open(slot.pid)
            try:
                if slot.alive():
                    signal.pidfd_send_signal(pidfd, signal.SIGKILL)
                    _wait_gone(pidfd)
            finally:
                os.close(pidfd)

    def clear(self, number: int) -> None:
        """Removes whatever there is of slot `number`, its processes too. May be repeated."""
        folder = self._folder / str(number)
        delete_container(self._runtime, number, folder)
        self._cgroups.remove(f"s{number}")
        for mount in mounts_below(folder):
            linux.umount(mount, linux.MNT_DETACH)
        self._network.remove(number)
        shutil.rmtree(folder, ignore_errors=True)


def bad_user(user: ImageUser) -> Permanent:
    return Permanent(
        f"the user {user.name[:80]!r} has the ids {user.uid}:{user.gid}: those of a workspace go up to {IDS - 1}; "
        "choose another user in the image",
        code="bad_user",
    )


def _wait_gone(pidfd: int) -> None:
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    if not poll.poll(30_000):
        raise Temporary("a killed sandbox still has processes after 30 s", code="not_dying", delay_s=5)
