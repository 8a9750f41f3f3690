"""The node agent, wired together."""

from __future__ import annotations

import asyncio
import contextlib
import os
import pwd
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
from fairwater.loops.runs import RunKeeper
from fairwater.node.api.access import NodeAccess
from fairwater.node.api.app import create_agent_app
from fairwater.node.cgroups import Cgroups
from fairwater.node.content import SandboxedContent
from fairwater.node.facts import node_facts
from fairwater.node.files import VolumeFiles
from fairwater.node.host_image import HostImage
from fairwater.node.instance import Instance, claim_instance, remove_if_free
from fairwater.node.mounts import PrivateMounts
from fairwater.node.network import WorkspaceNetwork
from fairwater.node.plain.boot import boot_id
from fairwater.node.plain.content import PlainContent
from fairwater.node.plain.images import PlainImages
from fairwater.node.plain.sandboxes import PlainLauncher, PlainSandboxes
from fairwater.node.plain.volumes import PlainVolumes
from fairwater.node.sandboxes import ParkedSandboxes
from fairwater.node.slots import Slots
from fairwater.node.volumes import BtrfsVolumes
from fairwater.ports.agent import API_VERSION, Fact, Hello
from fairwater.serving.logs import configure_logs
from fairwater.serving.serve import LOCAL, serve
from fairwater.settings import Settings

INIT = "libexec/fairwater-init"
INSTALLATION = Path("/opt/fairwater")
_THREADS_MAX = 32
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
    slots = Slots(
        instance.folder / "slots", instance.number, cgroups, net, _init_program(), settings.node.runtime,
        settings.classes["standard"],
    )  # fmt: skip
    sandboxes = ParkedSandboxes(slots, cgroups, net, HostImage(data.node / "images"), settings.node.parked)
    volumes = BtrfsVolumes(data.node / "volumes")
    await asyncio.to_thread(volumes.prepare)
    await asyncio.to_thread(net.prepare)
    await sandboxes.open()
    content = SandboxedContent(sandboxes, settings.node.git_file_roots, timeout_s=settings.deadlines.init_s)
    keeper = RunKeeper(
        volumes, sandboxes, sandboxes, content, SystemClock(), data.node / "runs", _hello(settings),
        settings.node.stop_grace_s,
    )  # fmt: skip
    await keeper.recover()
    try:
        yield Node(keeper, NodeAccess(keeper, volumes, sandboxes, VolumeFiles), sandboxes)
    finally:
        await keeper.close()
        empty = not sandboxes.claimed()
        await sandboxes.close(remove_parked=True)
        if empty:
            # Nothing of ours runs: give the machine back as it was.
            await asyncio.to_thread(net.shutdown)
            await asyncio.to_thread(cgroups.shutdown)
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
    sandboxes = PlainSandboxes(data.node / "sandboxes", PlainImages())
    launcher = PlainLauncher(sandboxes)
    content = PlainContent(settings.node.git_file_roots, timeout_s=settings.deadlines.init_s)
    keeper = RunKeeper(
        volumes, sandboxes, launcher, content, SystemClock(), data.node / "runs", _hello(settings),
        settings.node.stop_grace_s,
    )  # fmt: skip

    def files_of(root: Path) -> VolumeFiles:
        return VolumeFiles(root, owner_uid=os.geteuid(), owner_gid=os.getegid())

    await keeper.recover()
    try:
        yield Node(keeper, NodeAccess(keeper, volumes, launcher, files_of), sandboxes)
    finally:
        await keeper.close()


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
