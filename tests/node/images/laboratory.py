"""A store of images on this machine's kernel, its pulls in real sandboxes that reach one address of this machine."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import shutil
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

from tests.node.workspace.sandbox_laboratory import SMALL, SandboxLab, first_process

from fairwater.bootstrap.process import SystemClock
from fairwater.domain.units import GIB, MIB, Bytes
from fairwater.domain.workspaces.parking import ParkingPolicy
from fairwater.domain.workspaces.run import Progress
from fairwater.domain.workspaces.secrets import Credential, CredentialKind, RunSecrets
from fairwater.node.cgroups import Cgroups
from fairwater.node.host_image import HostImage
from fairwater.node.image_usage import ImageUsage
from fairwater.node.images.bringing import StoreSettings
from fairwater.node.images.store import ImageStore
from fairwater.node.images.view import merged, read_in
from fairwater.node.instance import claim_instance
from fairwater.node.network import WorkspaceNetwork
from fairwater.node.sandboxes import ParkedSandboxes
from fairwater.node.slots import Slots
from fairwater.node.volumes import BtrfsVolumes
from fairwater.ports.images import ImageRoot

STALL_S = 3.0
PORTS = range(5000, 5040)
"""Those that sandboxes reach, of an address that only this process has."""
_next_port = itertools.cycle(PORTS)


def reachable_port() -> int:
    return next(_next_port)


@contextlib.asynccontextmanager
async def boxes_reaching(
    data_dir: Path, address: str, parked: int = 2, program: Path | None = None
) -> AsyncIterator[SandboxLab]:
    """Sandboxes that reach `PORTS` of `address`, as where an operator has listed them.

    `program` is their first process, where it is built already.
    """
    instance = claim_instance(data_dir)
    allow = [f"{address}/32:{port}" for port in PORTS]
    network = WorkspaceNetwork(instance.number, "10.213.0.0/16", None, allow, Path("/etc/resolv.conf"), nameservers=())
    cgroups = Cgroups(instance.name)
    program = program or first_process()
    slots = Slots(instance.folder / "slots", instance.number, cgroups, network, program, "crun", SMALL)
    images = HostImage(data_dir / "images")
    usage = ImageUsage(data_dir / "usage.json", SystemClock())
    sandboxes = ParkedSandboxes(slots, cgroups, network, images, usage, ParkingPolicy(Bytes(GIB // 8), parked))
    volumes = BtrfsVolumes(data_dir / "volumes")
    await asyncio.to_thread(volumes.prepare)
    await asyncio.to_thread(network.prepare)
    await sandboxes.open()
    lab = SandboxLab(sandboxes, volumes, images, usage, instance.folder / "slots", data_dir, cgroups)
    try:
        yield lab
        await lab.end_all()
    finally:
        await sandboxes.close(remove_parked=True)
        await asyncio.to_thread(network.shutdown)
        await asyncio.to_thread(cgroups.shutdown)
        instance.release(forget=True)


@dataclass
class Clock:
    """Time that goes on only when told to."""

    at: float = field(default_factory=time.time)

    def __call__(self) -> float:
        return self.at


@dataclass
class StoreLab:
    """Stores on the same sandboxes. `used` are digests that count as in use."""

    boxes: SandboxLab
    folder: Path
    address: str
    clock: Clock = field(default_factory=Clock)
    used: set[str] = field(default_factory=set)

    @contextlib.asynccontextmanager
    async def store(self, **changes: object) -> AsyncIterator[ImageStore]:
        """Opens the one folder of this lab as an agent does; `changes` are of `StoreSettings`."""
        settings = StoreSettings(Bytes(2 * GIB), stall_s=STALL_S)
        store = ImageStore(
            self.folder / "store",
            self.boxes.sandboxes,
            self.boxes.images,
            replace(settings, **changes),  # type: ignore[arg-type]
            lambda: frozenset(self.used),
            self.boxes.behind_others,
            now=self.clock,
        )
        await store.open()
        try:
            yield store
        finally:
            await store.close()

    @property
    def layers(self) -> set[str]:
        """The layers that are here."""
        return {f"sha256:{path.name}" for path in (self.folder / "store/mount/layers").iterdir()}

    @property
    def left_over(self) -> list[Path]:
        """What pulls have not cleared behind them."""
        mount = self.folder / "store/mount"
        return [*(mount / "incoming").iterdir(), *(mount / "removed").iterdir()]


@contextlib.contextmanager
def a_folder() -> Iterator[Path]:
    path = Path(tempfile.mkdtemp(prefix="fw-images-", dir="/var/tmp"))
    path.chmod(0o755)
    try:
        yield path
    finally:
        shutil.rmtree(path)


def secrets_for(host: str, username: str, secret: str, *, plain_http: bool = True) -> RunSecrets:
    return RunSecrets((Credential(CredentialKind.TOKEN, host, username, secret, plain_http),))


def content(image: ImageRoot, path: str) -> bytes | None:
    """A file as workspaces of the image see it."""
    with merged(image.layers, user_xattrs=image.user_xattrs) as root:
        return read_in(root, path, MIB)


def entries(image: ImageRoot, path: str = "/") -> set[str]:
    with merged(image.layers, user_xattrs=image.user_xattrs) as root:
        return {entry.name for entry in Path(f"/proc/self/fd/{root}{path}").iterdir()}


@dataclass
class Told:
    """Everything that was reported."""

    all: list[Progress] = field(default_factory=list)

    def __call__(self, progress: Progress) -> None:
        self.all.append(progress)

    @property
    def steps(self) -> list[str]:
        return list(dict.fromkeys(progress.step for progress in self.all))
