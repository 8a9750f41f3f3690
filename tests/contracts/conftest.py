"""What the contract suites run against. A further adapter is one more parameter of `volumes`, `content` or `node`."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from starlette.types import ASGIApp

from fairwater.bootstrap.node import open_node
from fairwater.data_dir import DataDir
from fairwater.domain.ids import RunNumber, WorkspaceId
from fairwater.domain.units import MIB, Bytes
from fairwater.domain.workspaces.classes import WorkspaceClass
from fairwater.domain.workspaces.run import Progress, RunFacts, RunSpec, RunState, Source
from fairwater.domain.workspaces.setup import Brought, Wanted
from fairwater.engines.local.client import AgentClient
from fairwater.loops.run_parts import RunParts
from fairwater.loops.runs import RunKeeper
from fairwater.node.api.access import NodeAccess
from fairwater.node.api.app import create_agent_app
from fairwater.node.content import SandboxedContent
from fairwater.node.files import VolumeFiles
from fairwater.node.host_image import HostImage
from fairwater.node.plain.content import PlainContent
from fairwater.node.plain.images import PlainImages
from fairwater.node.plain.sandboxes import PlainLauncher, PlainSandboxes
from fairwater.node.plain.volumes import PlainVolumes
from fairwater.node.sandboxes import ParkedSandboxes
from fairwater.node.secrets import FileSecrets
from fairwater.node.tasks import VolumeTasks
from fairwater.node.volumes import BtrfsVolumes
from fairwater.ports.agent import API_VERSION, Fact, Hello, RunAgent, StartRequest, WorkspaceAccess
from fairwater.ports.content import Content
from fairwater.ports.process import Channel, ExecRequest, Process
from fairwater.ports.volumes import Volumes
from fairwater.serving.serve import LOCAL, Listening, serve
from fairwater.settings import Settings, load_settings

WORKSPACE = WorkspaceId("abcdefgh2345")
LIMITS = WorkspaceClass("test", cpu_cores=1, memory=Bytes(512 * MIB), processes=256, disk=Bytes(256 * MIB))
WITHIN_S = 20.0
HELLO = Hello(API_VERSION, "0.1.0", "test-node", "boot", "plain")


class SystemClock:
    def now(self) -> datetime:
        return datetime.now(UTC)


@pytest.fixture
def short_path() -> Iterator[Path]:
    """A folder whose path leaves room for the name of a unix socket."""
    folder = Path(tempfile.mkdtemp(prefix="fw-"))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@asynccontextmanager
async def served(app: ASGIApp, socket: Path | None = None, **options: Any) -> AsyncIterator[Listening]:
    """Serves `app` for as long as the block lasts."""
    stop, ready = asyncio.Event(), asyncio.get_running_loop().create_future()
    options.setdefault("allowed_uids", frozenset({os.getuid()}))
    serving = asyncio.create_task(serve(app, unix_socket=socket, stop=stop, ready=ready.set_result, **options))
    try:
        await asyncio.wait({serving, ready}, timeout=WITHIN_S, return_when=asyncio.FIRST_COMPLETED)
        if serving.done():
            serving.result()
        yield ready.result()
    finally:
        stop.set()
        async with asyncio.timeout(WITHIN_S):
            await serving


@pytest.fixture
def serving() -> Callable[..., AbstractAsyncContextManager[Listening]]:
    return served


# --- git repositories -----------------------------------------------------------------------------------------------


class Repository:
    """A repository to be cloned: branch `main` with two commits, branch `other`, tag `v1` on the first commit."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.mkdir(parents=True)
        self.git("init", "--quiet", "--initial-branch=main")
        self.write("README.md", "first\n")
        self.first = self.commit("first")
        self.git("tag", "v1")
        self.git("checkout", "--quiet", "-b", "other")
        self.write("other.txt", "other\n")
        self.commit("other")
        self.git("checkout", "--quiet", "main")
        self.write("README.md", "second\n")
        self.second = self.commit("second")

    def git(self, *arguments: str) -> str:
        environment = {
            "PATH": os.environ["PATH"], "HOME": str(self.path),
            "GIT_CONFIG_NOSYSTEM": "1", "GIT_CONFIG_GLOBAL": "/dev/null",
            "GIT_AUTHOR_NAME": "a", "GIT_AUTHOR_EMAIL": "a@b", "GIT_COMMITTER_NAME": "a", "GIT_COMMITTER_EMAIL": "a@b",
        }  # fmt: skip
        done = subprocess.run(
            ("git", "-C", str(self.path), *arguments), env=environment, check=True, capture_output=True, text=True
        )
        return done.stdout.strip()

    def write(self, name: str, text: str) -> None:
        (self.path / name).parent.mkdir(parents=True, exist_ok=True)
        (self.path / name).write_text(text)

    def commit(self, message: str) -> str:
        self.git("add", "--all")
        self.git("commit", "--quiet", "--message", message)
        return self.git("rev-parse", "HEAD")

    def source(self, ref: str | None = None) -> Source:
        return Source(f"file://{self.path}", "repo", ref, local=True)


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    return Repository(tmp_path / "origin" / "repo")


# --- volumes --------------------------------------------------------------------------------------------------------


@pytest.fixture(params=["plain", pytest.param("btrfs", marks=pytest.mark.root)])
def make_volumes(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[], Volumes]:
    """Makes the adapter: each call is a restart of the agent upon the same disk."""

    def btrfs() -> Volumes:
        volumes = BtrfsVolumes(tmp_path / "volumes")
        volumes.prepare()
        return volumes

    return btrfs if request.param == "btrfs" else lambda: PlainVolumes(tmp_path / "volumes")


# --- content --------------------------------------------------------------------------------------------------------


@dataclass
class ContentUnderTest:
    """`root` is an attached, empty volume's; `progress` is what was reported, `outcome` what `bring` returned."""

    content: Content
    root: Path
    progress: list[Progress]
    outcome: Brought = field(default_factory=Brought)

    async def bring(self, source: Source | None, wanted: Wanted = Wanted(), dotfiles: Source | None = None) -> Path:
        """Where the repository then is."""
        log = self.root / "state" / "run-1.log"
        self.outcome = await self.content.bring(
            WORKSPACE, RunNumber(1), source, dotfiles, self.root, log, self.progress.append, lambda _: wanted
        )
        return self.root / "workspace" / self.outcome.repository


@pytest.fixture(params=["plain", pytest.param("sandboxed", marks=pytest.mark.root)])
async def content(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[ContentUnderTest]:
    """Clones `file://` sources below `tmp_path`/origin."""
    origin = (tmp_path / "origin",)
    async with AsyncExitStack() as opened:
        volumes: Volumes
        content: Content
        if request.param == "sandboxed":
            isolated = await opened.enter_async_context(open_node(isolated_settings(tmp_path), DataDir(tmp_path)))
            assert isinstance(isolated.sandboxes, ParkedSandboxes)
            volumes = BtrfsVolumes(tmp_path / "node/volumes")
            images, secrets = HostImage(tmp_path / "images"), FileSecrets(tmp_path / "secrets")
            content = SandboxedContent(isolated.sandboxes, images, secrets, origin, timeout_s=WITHIN_S)
        else:
            volumes = PlainVolumes(tmp_path / "volumes")
            content = PlainContent(origin, timeout_s=WITHIN_S)
        await volumes.create(WORKSPACE, LIMITS.disk)
        root = (await volumes.attach(WORKSPACE, LIMITS.disk)).root
        assert root is not None
        yield ContentUnderTest(content, root, [])
        await volumes.delete(WORKSPACE)


def isolated_settings(folder: Path) -> Settings:
    flags = {"node.parked": 1, "node.git_file_roots": [str(folder / "origin")], "node.stop_grace_s": "2s"}
    return load_settings(environment={}, flags=flags)


# --- a node ---------------------------------------------------------------------------------------------------------


class Node:
    """A node agent, seen directly or over its socket; what is seen changes with a restart.

    On plain processes, or `isolated` as in production.
    """

    runs: RunAgent
    access: WorkspaceAccess

    def __init__(self, folder: Path, sockets: Path, *, remote: bool, isolated: bool = False) -> None:
        self._folder = folder
        self.isolated = isolated
        self.socket = sockets / "agent.sock"
        self._remote = remote
        self._open = AsyncExitStack()

    async def start(self) -> None:
        if self.isolated:
            settings = isolated_settings(self._folder)
            opened = await self._open.enter_async_context(open_node(settings, DataDir(self._folder)))
            self.runs, self.access = opened.runs, opened.access
        else:
            await self._start_plain()
        if self._remote:
            await self._go_remote()

    async def _start_plain(self) -> None:
        volumes = PlainVolumes(self._folder / "volumes")
        sandboxes = PlainSandboxes(self._folder / "sandboxes")
        launcher = PlainLauncher(sandboxes)
        content = PlainContent((self._folder / "origin",), timeout_s=WITHIN_S)
        journal = self._folder / "journal"
        secrets = FileSecrets(self._folder / "secrets")
        parts = RunParts(volumes, sandboxes, launcher, content, PlainImages(), secrets, VolumeTasks(), SystemClock())
        keeper = RunKeeper(parts, journal, HELLO, grace_s=2.0)
        await keeper.recover()
        self._open.push_async_callback(keeper.close)

        def files_of(root: Path, home: str) -> VolumeFiles:
            return VolumeFiles(root, home, owner_uid=os.getuid(), owner_gid=os.getgid())

        self.runs, self.access = keeper, NodeAccess(keeper, volumes, launcher, files_of)

    async def _go_remote(self) -> None:
        async def facts() -> tuple[Fact, ...]:
            return (Fact("isolation", "missing", "plain processes"),)

        app = create_agent_app(self.runs, self.access, facts)
        await self._open.enter_async_context(served(app, self.socket, limits=LOCAL))
        client = await self._open.enter_async_context(AgentClient(self.socket))
        self.runs, self.access = client, client

    async def stop(self) -> None:
        await self._open.aclose()

    async def restart(self) -> None:
        await self.stop()
        await self.start()

    async def up(self, workspace: WorkspaceId = WORKSPACE, run: int = 1, **spec: Any) -> RunFacts:
        """Starts a run and waits until it runs or has ended."""
        await self.runs.start_run(workspace, self.request(run, **spec))
        return await self.until(workspace, RunState.RUNNING, RunState.ENDED)

    @staticmethod
    def request(run: int = 1, *, local_allowed: bool = True, **spec: Any) -> StartRequest:
        return StartRequest(RunNumber(run), replace(RunSpec(image="host", limits=LIMITS), **spec), local_allowed)

    async def down(self, workspace: WorkspaceId = WORKSPACE, run: int = 1, *, force: bool = False) -> RunFacts:
        await self.runs.stop_run(workspace, RunNumber(run), force=force)
        return await self.until(workspace, RunState.ENDED)

    async def until(self, workspace: WorkspaceId, *states: RunState) -> RunFacts:
        async with asyncio.timeout(WITHIN_S):
            while True:
                for facts in await self.runs.runs():
                    if facts.workspace == workspace and facts.state in states:
                        return facts
                await self._change()

    async def _change(self) -> None:
        """Waits for a change; not for long, since one may have come just before."""
        changes = self.runs.changes()
        following = asyncio.ensure_future(anext(changes))
        await asyncio.wait({following}, timeout=0.1)
        following.cancel()
        await asyncio.gather(following, return_exceptions=True)

    async def run(self, *command: str, stdin: bytes = b"", run: int = 1, **request: Any) -> tuple[int, bytes, bytes]:
        """The exit status, output and errors of a command in the workspace."""
        process = await self.access.exec(WORKSPACE, RunNumber(run), ExecRequest(command, **request))
        return await finish(process, stdin)


async def feed(process: Process, stdin: bytes) -> None:
    if stdin:
        await process.write(stdin)
    await process.write(b"")


async def finish(process: Process, stdin: bytes = b"") -> tuple[int, bytes, bytes]:
    said: dict[Channel, list[bytes]] = {Channel.STDOUT: [], Channel.STDERR: []}
    try:
        async with asyncio.timeout(WITHIN_S):
            feeding = asyncio.create_task(feed(process, stdin))
            async for channel, data in process.output():
                said[channel].append(data)
            await feeding
            return await process.wait(), b"".join(said[Channel.STDOUT]), b"".join(said[Channel.STDERR])
    finally:
        await process.close()


@pytest.fixture(params=["direct", "socket", pytest.param("isolated", marks=pytest.mark.root)])
async def node(request: pytest.FixtureRequest, tmp_path: Path, short_path: Path) -> AsyncIterator[Node]:
    """A node agent, and at the end nothing left of its workspaces."""
    isolated = request.param == "isolated"
    under_test = Node(tmp_path, short_path, remote=request.param != "direct", isolated=isolated)
    await under_test.start()
    yield under_test
    for facts in await under_test.runs.runs():
        await under_test.runs.stop_run(facts.workspace, facts.run, force=True)
        await under_test.until(facts.workspace, RunState.ENDED)
    await under_test.stop()
