"""A node agent in this process, wired as in production, on this machine's kernel; and a look into its workspaces."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeVar

from fairwater.bootstrap.node import Node, open_node
from fairwater.data_dir import DataDir
from fairwater.domain.ids import RunNumber, WorkspaceId
from fairwater.domain.units import MIB, Bytes
from fairwater.domain.workspaces.classes import WorkspaceClass
from fairwater.domain.workspaces.run import RunFacts, RunSpec, RunState, Source
from fairwater.ports.agent import StartRequest
from fairwater.ports.process import ExecRequest
from fairwater.settings import load_settings

T = TypeVar("T")
WITHIN_S = 20.0
SMALL = WorkspaceClass("small", cpu_cores=1, memory=Bytes(256 * MIB), processes=128, disk=Bytes(512 * MIB))


@dataclass
class Lab:
    """Starts workspaces and looks into them."""

    node: Node
    data: DataDir
    repository: Path
    names: Iterator[WorkspaceId]
    started: list[WorkspaceId] = field(default_factory=list)

    def spec(self, **changes: object) -> RunSpec:
        source = Source(f"file://{self.repository}", "repo", None, local=True)
        return replace(RunSpec("host", SMALL, source), **changes)  # type: ignore[arg-type]

    async def start(
        self, workspace: WorkspaceId | None = None, run: int = 1, spec: RunSpec | None = None
    ) -> WorkspaceId:
        """Starts a run and waits until it is up."""
        workspace = workspace or next(self.names)
        self.started.append(workspace)
        await self.node.runs.start_run(workspace, StartRequest(RunNumber(run), spec or self.spec(), True))
        facts = await self.until(workspace, RunState.RUNNING, RunState.ENDED)
        assert facts.state is RunState.RUNNING, facts
        return workspace

    async def some(self) -> WorkspaceId:
        """A workspace that runs: one of before, or a new one."""
        for facts in await self.node.runs.runs():
            if facts.state is RunState.RUNNING:
                return facts.workspace
        return await self.start()

    async def stop(self, workspace: WorkspaceId, run: int = 1) -> RunFacts:
        await self.node.runs.stop_run(workspace, RunNumber(run))
        return await self.until(workspace, RunState.ENDED)

    async def facts(self, workspace: WorkspaceId) -> RunFacts:
        return next(facts for facts in await self.node.runs.runs() if facts.workspace == workspace)

    async def until(self, workspace: WorkspaceId, *states: RunState) -> RunFacts:
        return await wait_for(lambda: self._is(workspace, states), f"{workspace} to be {states}")

    async def _is(self, workspace: WorkspaceId, states: tuple[RunState, ...]) -> RunFacts | None:
        facts = await self.facts(workspace)
        return facts if facts.state in states else None

    async def sh(self, workspace: WorkspaceId, script: str, *, user: str = "workspace") -> tuple[int, str]:
        """Exit status and output, both streams together, of a shell script in the workspace."""
        request = ExecRequest(("sh", "-c", script), user=user)
        run = (await self.facts(workspace)).run
        process = await self.node.access.exec(workspace, run, request)
        try:
            await process.write(b"")
            output = b"".join([chunk async for _, chunk in process.output()])
            return await process.wait(), output.decode(errors="replace")
        finally:
            await process.close()

    def init_pid(self, workspace: WorkspaceId) -> int:
        """The workspace's first process, as the machine numbers it."""
        sandbox = self.node.runs.sandbox_of(workspace)
        return int(sandbox.id.split("-")[1])


async def wait_for(look: Callable[[], Awaitable[T | None]], what: str, within_s: float = WITHIN_S) -> T:
    """The first true answer of `look`."""
    deadline = asyncio.get_running_loop().time() + within_s
    while not (answer := await look()):
        assert asyncio.get_running_loop().time() < deadline, f"waited {within_s} s for {what}"
        await asyncio.sleep(0.01)
    return answer


_NUMBERS = itertools.count(1)


def names() -> Iterator[WorkspaceId]:
    """Never one twice: a node knows the deleted ones."""
    for number in _NUMBERS:
        yield WorkspaceId(f"test{os.getpid() % 10000:04d}{number:04d}")


@contextlib.asynccontextmanager
async def lab_on(data_dir: Path, repository: Path, parked: int = 2, runtime: str = "crun") -> AsyncIterator[Lab]:
    settings = load_settings(
        environment={},
        flags={
            "node.parked": parked,
            "node.runtime": runtime,
            "node.git_file_roots": [str(repository.parent)],
            "node.stop_grace_s": "2s",
        },
    )
    data = DataDir(data_dir)
    async with open_node(settings, data) as node:
        yield Lab(node, data, repository, names())


async def end_all(lab: Lab) -> None:
    for facts in await lab.node.runs.runs():
        if facts.state is not RunState.ENDED:
            await lab.node.runs.stop_run(facts.workspace, facts.run, force=True)
            await lab.until(facts.workspace, RunState.ENDED)
        await lab.node.runs.delete_volume(facts.workspace, facts.run)
