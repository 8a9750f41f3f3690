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
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Protocol

from fairwater.domain.failure import Temporary
from fairwater.domain.workspaces.classes import WorkspaceClass
from fairwater.node import linux
from fairwater.node.bundle import IDS, BundleSpec, configuration
from fairwater.node.cgroups import Cgroups, limits_of
from fairwater.node.container import delete_container, make_namespaces, run_container
from fairwater.node.root import SCRATCH_BYTES, mount_root, mounts_below
from fairwater.ports.images import ImageRoot

FIRST_ID = 0x7000_0000
"""Where the sandboxes' ids begin: above those of systemd's containers (which end at 0x6FFFFFFF), below 2³¹."""
SLOTS_MAX = 256


class Network(Protocol):
    """What a slot needs of the network: see `node.network`."""

    def create(self, slot: int, netns: Path) -> str: ...
    def probe(self, slot: int, netns: Path) -> None: ...
    def prepare(self) -> None: ...
    def open(self, slot: int) -> None: ...
    def close(self, slot: int) -> None: ...
    def remove(self, slot: int) -> None: ...
    def nameservers(self) -> tuple[str, ...]: ...


@dataclass(frozen=True, slots=True)
class Slot:
    """A slot with a container in it. `pid` is its first process, which began at `started` (clock ticks)."""

    number: int
    folder: Path
    image: str
    pid: int
    started: int
    address: str
    environment: tuple[tuple[str, str], ...] = ()

    @property
    def group(self) -> str:
        return f"s{self.number}"

    @property
    def control(self) -> Path:
        """The socket on which the first process takes commands."""
        return self.folder / "control"

    def alive(self) -> bool:
        return linux.start_time(self.pid) == self.started


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
        self._folder.mkdir(parents=True, exist_ok=True)
        self._folder.chmod(0o711)
        self._cgroups.prepare()

    def first_id(self, slot: Slot) -> int:
        return first_id(self._instance, slot.number)

    def found(self) -> tuple[tuple[int, Slot | None], ...]:
        """Every slot that left something behind; None where its making was interrupted."""
        slots: list[tuple[int, Slot | None]] = []
        for folder in self._folder.iterdir():
            if not folder.name.isdecimal():
                continue
            try:
                record = json.loads((folder / "slot.json").read_text())
            except (FileNotFoundError, ValueError):
                slots.append((int(folder.name), None))
                continue
            environment = tuple((name, value) for name, value in record.pop("environment"))
            slots.append((int(folder.name), Slot(folder=folder, environment=environment, **record)))
        return tuple(sorted(slots, key=lambda pair: pair[0]))

    def park(self, number: int, image: ImageRoot) -> Slot:
        """Makes slot `number` with a waiting container of `image`; about 100 ms. Clears up when it fails.

        Raises:
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
        for path in (folder, *(folder / name for name in ("ns", "root", "scratch", "bundle", "files"))):
            path.mkdir(exist_ok=True)
            # The runtime walks here as the sandbox's root; nobody else may.
            os.chown(path, 0, base)
            path.chmod(0o710)
        user_ns, net_ns = folder / "ns/user", folder / "ns/net"
        make_namespaces(base, user_ns, net_ns)
        address = self._network.create(number, net_ns)
        self._network.probe(number, net_ns)
        mount_root(folder, image, user_ns, base)
        limits = limits_of(self._parked_limits)
        spec = BundleSpec(
            root=folder / "root",
            init=self._init,
            user_namespace=user_ns,
            network_namespace=net_ns,
            first_id=base,
            cgroup=self._cgroups.path(f"s{number}"),
            limits=limits,
            binds=image.binds,
            files=self._files(folder),
            tmp_bytes=SCRATCH_BYTES,
        )
        (folder / "bundle/config.json").write_text(json.dumps(configuration(spec)))
        pid = run_container(self._runtime, self._cgroups.v2_to_hide, number, folder)
        started = linux.start_time(pid)
        if started is None:
            raise Temporary(f"slot {number}: its first process ended at once", code="park_failed", delay_s=1)
        slot = Slot(number, folder, image.reference, pid, started, address, image.environment)
        record = asdict(slot)
        del record["folder"]
        _write(folder / "slot.json", json.dumps(record))
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
            _write(paths[target], text, 0o644)
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


def _wait_gone(pidfd: int) -> None:
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    if not poll.poll(30_000):
        raise Temporary("a killed sandbox still has processes after 30 s", code="not_dying", delay_s=5)


def _write(path: Path, text: str, mode: int = 0o600) -> None:
    aside = path.with_suffix(".new")
    aside.write_text(text)
    aside.chmod(mode)
    aside.replace(path)
