"""The node agent, wired together."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import pwd
import shutil
import sys
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from pathlib import Path

import uvloop

from fairwater import __version__
from fairwater.bootstrap.process import SystemClock, raise_descriptor_limit, stop_on_signals
from fairwater.data_dir import DataDir
from fairwater.domain.failure import Permanent
from fairwater.domain.units import GIB, MIB, Bytes
from fairwater.domain.workspaces.parking import ParkingPolicy
from fairwater.loops.run_parts import RunParts
from fairwater.loops.runs import RunKeeper
from fairwater.node.api.access import NodeAccess
from fairwater.node.api.app import create_agent_app
from fairwater.node.cgroups import Cgroups
from fairwater.node.content import SandboxedContent
from fairwater.node.credential_service import CredentialService
from fairwater.node.facts import node_facts
from fairwater.node.files import VolumeFiles
from fairwater.node.host_image import HostImage
from fairwater.node.image_usage import ImageUsage
from fairwater.node.images.bringing import StoreSettings
from fairwater.node.images.offered import OfferedImages
from fairwater.node.images.store import ImageStore
from fairwater.node.instance import Instance, claim_instance, remove_if_free
from fairwater.node.memory_folder import keep_in_memory, release_memory
from fairwater.node.mounts import PrivateMounts
from fairwater.node.network import WorkspaceNetwork
from fairwater.node.plain.boot import boot_id
from fairwater.node.plain.content import PlainContent
from fairwater.node.plain.images import PlainImages
from fairwater.node.plain.sandboxes import PlainLauncher, PlainSandboxes
from fairwater.node.plain.volumes import PlainVolumes
from fairwater.node.sandboxes import ParkedSandboxes
from fairwater.node.secrets import FileSecrets
from fairwater.node.slots import Slots
from fairwater.node.tasks import VolumeTasks
from fairwater.node.volumes import BtrfsVolumes
from fairwater.ports.agent import API_VERSION, Fact, Hello
from fairwater.ports.sandboxes import Sandbox
from fairwater.serving.logs import configure_logs
from fairwater.serving.serve import LOCAL, serve
from fairwater.settings import Settings
from fairwater.settings_sections import ImageSettings

INIT = "libexec/fairwater-init"
INSTALLATION = Path("/opt/fairwater")
_THREADS_MAX = 32
_SECRETS_BYTES = 16 * MIB
_IMAGES_DISK = Bytes(50 * GIB)
PLAIN = "plain"
"""The runtime without isolation."""


@dataclass(frozen=True, slots=True)
class Node:
    """A node agent's parts: what its API serves."""

    runs: RunKeeper
    access: NodeAccess
    sandboxes: ParkedSandboxes | PlainSandboxes


def run_node(settings: Settings, data_dir: Path) -> None:
    """The node agent, until SIGTERM or SIGINT; workspaces go on without it."""
    configure_logs(part="node")
    raise_descriptor_limit()
    data = DataDir(data_dir)
    if settings.node.runtime == PLAIN:
        uvloop.run(_run_node(settings, open_plain_node(settings, data), data))
        return
    instance = claim_instance(data.root)
    # While there is one thread: see `node.mounts`.
    mounts = PrivateMounts(instance.folder, Cgroups(instance.name).v2_to_hide)
    uvloop.run(_run_node(settings, open_node(settings, data, instance), data))
    if not instance.in_use():
        mounts.forget()
        mounts.outside(lambda: remove_if_free(instance))


async def _run_node(settings: Settings, opened: AbstractAsyncContextManager[Node], data: DataDir) -> None:
    stop = stop_on_signals()
    # Blocking calls wait for disks above all: a few slow ones, on the way down, must not hold up the starts.
    asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(_THREADS_MAX))
    async with opened as node:

        async def facts() -> tuple[Fact, ...]:
            return await asyncio.to_thread(node_facts)

        server_uid, server_gid = _ids_of(settings.server.user)
        await serve(
            create_agent_app(node.runs, node.access, facts),
            unix_socket=data.node_socket,
            allowed_uids=frozenset({0, os.geteuid(), server_uid}),
            socket_mode=0o660,
            socket_owner=(os.geteuid(), server_gid) if os.geteuid() == 0 else None,
            stop=stop,
            limits=LOCAL,
        )


@contextlib.asynccontextmanager
async def open_node(settings: Settings, data: DataDir, instance: Instance | None = None) -> AsyncIterator[Node]:
    """The node agent's parts, recovered; at the end the workspaces are left as they are."""
    if os.geteuid() != 0:
        raise Permanent("isolated workspaces need root: run as root, or set node.runtime to 'plain'", code="not_root")
    data.node.mkdir(parents=True, exist_ok=True, mode=0o700)
    instance = instance or claim_instance(data.root)
    network = settings.network
    net = WorkspaceNetwork(
        instance.number,
        str(network.pool),
        network.mtu,
        [str(allowed) for allowed in network.allow],
        Path("/etc/resolv.conf"),
        nameservers=network.nameservers,
    )
    cgroups = Cgroups(instance.name)
    keep_in_memory(instance.folder / "secrets", _SECRETS_BYTES, 0o700)
    secrets = FileSecrets(instance.folder / "secrets")
    slots = Slots(
        instance.folder / "slots", instance.number, cgroups, net, _init_program(), settings.node.runtime,
        settings.classes["standard"],
    )  # fmt: skip
    programs = HostImage(data.node / "images")
    usage = ImageUsage(data.node / "image-usage.json", SystemClock())
    policy = ParkingPolicy(settings.images.parked_memory, settings.node.parked)
    sandboxes = ParkedSandboxes(slots, cgroups, net, programs, usage, policy, CredentialService(secrets))

    def pulls_group(sandbox: Sandbox) -> Path:
        group = sandboxes.group(sandbox)
        cgroups.yield_processors(group)
        return Path(cgroups.path(group))

    store = ImageStore(
        data.node / "oci", sandboxes, programs, _store_settings(settings.images, data.node), sandboxes.in_use,
        pulls_group,
    )  # fmt: skip
    images = OfferedImages(programs, store, sandboxes.prefer)
    volumes = BtrfsVolumes(data.node / "volumes")
    await asyncio.to_thread(volumes.prepare)
    await asyncio.to_thread(net.prepare)
    await sandboxes.open()
    await store.open()
    content = SandboxedContent(
        sandboxes, images, secrets, settings.node.git_file_roots, timeout_s=settings.deadlines.init_s
    )
    parts = RunParts(volumes, sandboxes, sandboxes, content, images, secrets, VolumeTasks(), SystemClock())
    keeper = RunKeeper(parts, data.node / "runs", _hello(settings), settings.node.stop_grace_s)
    await keeper.recover()
    try:
        yield Node(keeper, NodeAccess(keeper, volumes, sandboxes, VolumeFiles), sandboxes)
    finally:
        await keeper.close()
        await store.close()
        empty = not sandboxes.claimed()
        await sandboxes.close(remove_parked=True)
        if empty:
            # Nothing of ours runs: give the machine back as it was.
            await asyncio.to_thread(net.shutdown)
            await asyncio.to_thread(cgroups.shutdown)
            release_memory(instance.folder / "secrets")
        else:
            await asyncio.to_thread(net.release)
        instance.release(forget=empty)


@contextlib.asynccontextmanager
async def open_plain_node(settings: Settings, data: DataDir) -> AsyncIterator[Node]:
    """The node agent's parts without isolation. Raises Permanent as root, which every workspace would be too."""
    if os.geteuid() == 0:
        raise Permanent(
            "node.runtime is 'plain', and as root every workspace would be root on this machine: choose crun, or run "
            "as another user",
            code="plain_as_root",
        )
    data.node.mkdir(parents=True, exist_ok=True, mode=0o700)
    volumes = PlainVolumes(data.node / "volumes")
    secrets = FileSecrets(_runtime_folder(data) / "secrets")
    sandboxes = PlainSandboxes(data.node / "sandboxes")
    launcher = PlainLauncher(sandboxes)
    content = PlainContent(settings.node.git_file_roots, secrets, timeout_s=settings.deadlines.init_s)
    parts = RunParts(volumes, sandboxes, launcher, content, PlainImages(), secrets, VolumeTasks(), SystemClock())
    keeper = RunKeeper(parts, data.node / "runs", _hello(settings), settings.node.stop_grace_s)

    def files_of(root: Path, home: str) -> VolumeFiles:
        return VolumeFiles(root, home, owner_uid=os.geteuid(), owner_gid=os.getegid())

    await keeper.recover()
    try:
        yield Node(keeper, NodeAccess(keeper, volumes, launcher, files_of), sandboxes)
    finally:
        await keeper.close()


def _store_settings(images: ImageSettings, folder: Path) -> StoreSettings:
    disk = images.disk or min(_IMAGES_DISK, Bytes(shutil.disk_usage(folder).total // 4))
    return StoreSettings(
        disk=disk,
        pull_rate=images.pull_rate,
        insecure=images.insecure_registries,
        folders=images.folders,
        stall_s=images.stall_s,
    )


def _runtime_folder(data: DataDir) -> Path:
    """A folder in memory where this user has one; else on the disk, closed to others."""
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    if runtime and Path(runtime).is_dir():
        return Path(runtime) / f"fairwater-{hashlib.sha256(os.fsencode(data.root)).hexdigest()[:12]}"
    return data.node


def _hello(settings: Settings) -> Hello:
    return Hello(API_VERSION, __version__, settings.node.name, boot_id(), settings.node.runtime)


def _init_program() -> Path:
    """The first process of every workspace, compiled when Fairwater was installed."""
    for place in (Path(sys.prefix).parent / INIT, INSTALLATION / INIT):
        if place.exists():
            return place
    raise Permanent(f"{INSTALLATION / INIT} is missing: install Fairwater with 'make up'", code="not_installed")


def _ids_of(user: str) -> tuple[int, int]:
    """Uid and gid of the server's user; this process's own where there is no such user."""
    try:
        entry = pwd.getpwnam(user)
    except KeyError:
        return os.geteuid(), os.getegid()
    return entry.pw_uid, entry.pw_gid
