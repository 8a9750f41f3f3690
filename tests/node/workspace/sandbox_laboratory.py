"""Sandboxes on this machine's kernel without the rest of a node, small images for them, and a look inside."""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import functools
import itertools
import os
import shutil
import tempfile
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from tests.node.init.program import build_init

from fairwater.bootstrap.process import SystemClock
from fairwater.domain.ids import RunNumber, WorkspaceId
from fairwater.domain.units import GIB, MIB, Bytes
from fairwater.domain.workspaces.classes import WorkspaceClass
from fairwater.domain.workspaces.parking import ParkingPolicy
from fairwater.node.cgroups import Cgroups
from fairwater.node.host_image import HostImage
from fairwater.node.image_usage import ImageUsage
from fairwater.node.instance import claim_instance
from fairwater.node.network import WorkspaceNetwork
from fairwater.node.sandbox_service import Service
from fairwater.node.sandboxes import ParkedSandboxes
from fairwater.node.slots import Slots
from fairwater.node.volumes import BtrfsVolumes
from fairwater.ports.images import ROOT, ImageRoot, ImageUser
from fairwater.ports.process import Channel, ExecRequest
from fairwater.ports.sandboxes import Admission, Sandbox, Tenant

BUSYBOX = Path("/bin/busybox")
SMALL = WorkspaceClass("small", cpu_cores=1, memory=Bytes(256 * MIB), processes=128, disk=Bytes(512 * MIB))
_NUMBERS = itertools.count(1)


@dataclass
class SandboxLab:
    """Claims and fills sandboxes; `folder` is where images may be made."""

    sandboxes: ParkedSandboxes
    volumes: BtrfsVolumes
    images: HostImage
    usage: ImageUsage
    slots_folder: Path
    folder: Path
    cgroups: Cgroups
    attached: list[WorkspaceId] = field(default_factory=list)

    async def volume(self, workspace: WorkspaceId | None = None) -> tuple[WorkspaceId, Path]:
        workspace = workspace or WorkspaceId(f"box{os.getpid() % 10000:04d}{next(_NUMBERS):05d}")
        await self.volumes.create(workspace, SMALL.disk)
        root = (await self.volumes.attach(workspace, SMALL.disk)).root
        assert root is not None
        if workspace not in self.attached:
            self.attached.append(workspace)
        return workspace, root

    async def start(
        self,
        image: ImageRoot,
        workspace: WorkspaceId | None = None,
        run: int = 1,
        role: str = "run",
        environment: Mapping[str, str] | None = None,
        **changes: object,
    ) -> Sandbox:
        """A sandbox of `image`, admitted and launched without a first process."""
        return await self.launch(image, workspace, run, role, None, None, environment or {}, **changes)

    async def start_with(
        self, image: ImageRoot, workspace: WorkspaceId, command: tuple[str, ...], cwd: str | None, **changes: object
    ) -> Sandbox:
        """A sandbox whose first process is `command`."""
        return await self.launch(image, workspace, 1, "run", command, cwd, {}, **changes)

    async def launch(
        self,
        image: ImageRoot,
        workspace: WorkspaceId | None,
        run: int,
        role: str,
        command: tuple[str, ...] | None,
        cwd: str | None,
        environment: Mapping[str, str],
        **changes: object,
    ) -> Sandbox:
        workspace, root = await self.volume(workspace)
        sandbox = await self.sandboxes.claim(Tenant(workspace, RunNumber(run), role), image)
        admission = Admission(SMALL, root, environment, "/workspace")
        await self.sandboxes.admit(sandbox, replace(admission, **changes))  # type: ignore[arg-type]
        await self.sandboxes.launch(sandbox, command, root / "state" / f"run-{run}.log", cwd=cwd)
        return sandbox

    def behind_others(self, sandbox: Sandbox) -> Path:
        """As the agent has it for pulls: the sandbox's group, put behind all others that want a processor."""
        group = self.sandboxes.group(sandbox)
        self.cgroups.yield_processors(group)
        return Path(self.cgroups.path(group))

    async def run(self, sandbox: Sandbox, *command: str, user: str = "workspace") -> tuple[int, str]:
        """Exit status and output, both streams together, of a command."""
        process = await self.sandboxes.exec(sandbox, ExecRequest(command, user=user))
        try:
            await process.write(b"")
            output = b"".join([chunk async for channel, chunk in process.output() if channel in _OUTPUT])
            return await process.wait(), output.decode(errors="replace")
        finally:
            await process.close()

    async def sh(self, sandbox: Sandbox, script: str, *, user: str = "workspace") -> tuple[int, str]:
        return await self.run(sandbox, "sh", "-c", script, user=user)

    async def end_all(self) -> None:
        for sandbox in self.sandboxes.claimed():
            await self.sandboxes.remove(sandbox)
        for workspace in self.attached:
            await self.volumes.detach(workspace)
            await self.volumes.delete(workspace)


_OUTPUT = (Channel.STDOUT, Channel.STDERR)


@contextlib.asynccontextmanager
async def sandbox_lab(
    data_dir: Path,
    parked: int = 0,
    memory: Bytes = Bytes(GIB // 8),
    service: Service | None = None,
) -> AsyncIterator[SandboxLab]:
    """Opens `data_dir` as an agent does; what is still claimed at the end lives on, to be found by the next."""
    instance = claim_instance(data_dir)
    network = WorkspaceNetwork(instance.number, "10.213.0.0/16", None, [], Path("/etc/resolv.conf"), nameservers=())
    cgroups = Cgroups(instance.name)
    slots = Slots(instance.folder / "slots", instance.number, cgroups, network, first_process(), "crun", SMALL)
    images = HostImage(data_dir / "images")
    usage = ImageUsage(data_dir / "usage.json", SystemClock())
    sandboxes = ParkedSandboxes(slots, cgroups, network, images, usage, ParkingPolicy(memory, parked), service)
    volumes = BtrfsVolumes(data_dir / "volumes")
    try:
        await asyncio.to_thread(volumes.prepare)
        await asyncio.to_thread(network.prepare)
        await sandboxes.open()
        yield SandboxLab(sandboxes, volumes, images, usage, instance.folder / "slots", data_dir, cgroups)
    finally:
        empty = not sandboxes.claimed()
        await sandboxes.close(remove_parked=True)
        if empty:
            await asyncio.to_thread(network.shutdown)
            await asyncio.to_thread(cgroups.shutdown)
        else:
            await asyncio.to_thread(network.release)
        instance.release(forget=empty)


@functools.cache
def first_process() -> Path:
    """The checkout's own, built once, where a sandbox can reach it; nobody may read it, as where it is installed."""
    folder = Path(tempfile.mkdtemp(prefix="fw-init-", dir="/var/tmp"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    folder.chmod(0o755)
    program = build_init(folder)
    program.chmod(0o711)
    return program


def user(name: str, uid: int, gid: int | None = None, home: str | None = None, **changes: object) -> ImageUser:
    return replace(ImageUser(name, uid, uid if gid is None else gid, home or f"/home/{name}"), **changes)  # type: ignore[arg-type]


def layer(folder: Path) -> Path:
    """An empty layer."""
    folder.mkdir(parents=True)
    folder.chmod(0o755)
    return folder


def busybox_layer(folder: Path, *users: ImageUser) -> Path:
    """A layer with a shell and its programs, linked statically, and hardly anything else."""
    layer(folder)
    for name in ("bin", "etc"):
        (folder / name).mkdir()
    shutil.copy(BUSYBOX, folder / "bin/busybox")
    for name in ("sh", "cat", "ls", "id", "stat", "touch", "mkdir", "env", "pwd", "readlink", "mount", "rm", "sleep",
                 "test", "echo", "chown", "wc", "grep", "ln"):  # fmt: skip
        (folder / "bin" / name).symlink_to("busybox")
    known = (ROOT, *users)
    (folder / "etc/passwd").write_text("".join(f"{u.name}:x:{u.uid}:{u.gid}::{u.home}:{u.shell}\n" for u in known))
    (folder / "etc/group").write_text("".join(f"{u.name}:x:{u.gid}:\n" for u in known))
    return folder


def image_of(layers: Sequence[Path], **changes: object) -> ImageRoot:
    """An image of the layers, the uppermost first, named by its uppermost folder."""
    name = layers[0].name
    return replace(ImageRoot(f"oci:{name}", tuple(layers), digest=f"sha256:{name}"), **changes)  # type: ignore[arg-type]
