"""What people and programs do inside a running workspace, on the node itself.

Joins the runs (who is up, under which number), the launcher and the files of the attached volume; decides nothing
about who may.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from pathlib import Path

from fairwater.domain.failure import Permanent
from fairwater.domain.ids import RunNumber, WorkspaceId
from fairwater.domain.workspaces.run import RunState, TaskFacts
from fairwater.loops.journal import log_size, read_log
from fairwater.loops.runs import RunKeeper
from fairwater.node.files import HOME, VolumeFiles
from fairwater.node.init_client import TASK_LOG_KEPT
from fairwater.ports.agent import FileEntry
from fairwater.ports.process import ExecRequest, Process
from fairwater.ports.sandboxes import Launcher
from fairwater.ports.volumes import Volumes

_LOG_CHUNK_BYTES = 64 * 1024
_LOG_POLL_S = 0.2
_LOG_READ_MAX = 16 * 1024 * 1024
"""How far back a log is read."""


class NodeAccess:
    """Implements `ports.agent.WorkspaceAccess`.

    `files_of` makes the files of an attached volume from its root and from where its home directory is seen.
    """

    def __init__(
        self, runs: RunKeeper, volumes: Volumes, launcher: Launcher, files_of: Callable[[Path, str], VolumeFiles]
    ) -> None:
        self._runs = runs
        self._volumes = volumes
        self._launcher = launcher
        self._files_of = files_of

    async def exec(self, workspace: WorkspaceId, run: RunNumber, request: ExecRequest) -> Process:
        return await self._launcher.exec(self._runs.sandbox_of(workspace, run), request)

    async def list_folder(self, workspace: WorkspaceId, path: str) -> tuple[FileEntry, ...]:
        return (await (await self._files(workspace)).list_folder(path)).entries

    async def read_file(self, workspace: WorkspaceId, path: str) -> AsyncIterator[bytes]:
        chunks = (await self._files(workspace)).read_file(path)
        # The first chunk is asked for here: a file that cannot be read says so before anybody has begun to answer.
        first = await anext(chunks, b"")
        return _rejoined(first, chunks)

    async def write_file(self, workspace: WorkspaceId, path: str, chunks: AsyncIterator[bytes]) -> int:
        return await (await self._files(workspace)).write_file(path, chunks)

    async def logs(self, workspace: WorkspaceId, run: RunNumber, *, follow: bool = False) -> AsyncIterator[bytes]:
        log = self._runs.log_of(workspace, run, (await self._volumes.find(workspace)).root)

        async def over() -> bool:
            return not follow or await self._is_over(workspace, run)

        async for chunk in _read_on(log, over):
            yield chunk

    async def tasks(self, workspace: WorkspaceId, run: RunNumber) -> tuple[TaskFacts, ...]:
        return self._runs.tasks_of(workspace, run, (await self._volumes.find(workspace)).root)

    async def task_log(
        self, workspace: WorkspaceId, run: RunNumber, task: int, *, follow: bool = False
    ) -> AsyncIterator[bytes]:
        log = self._runs.task_log_of(workspace, run, task, (await self._volumes.find(workspace)).root)

        async def over() -> bool:
            if not follow or await self._is_over(workspace, run):
                return True
            facts = await self.tasks(workspace, run)
            return all(found.ended_at is not None for found in facts if found.number == task)

        async for chunk in _read_on(log, over):
            yield chunk

    async def _is_over(self, workspace: WorkspaceId, run: RunNumber) -> bool:
        return not any(
            facts.workspace == workspace and facts.run == run and facts.state is not RunState.ENDED
            for facts in await self._runs.runs()
        )

    async def _files(self, workspace: WorkspaceId) -> VolumeFiles:
        self._runs.sandbox_of(workspace)
        return self._files_of(await self._root(workspace), self._runs.home_of(workspace) or HOME)

    async def _root(self, workspace: WorkspaceId) -> Path:
        root = (await self._volumes.find(workspace)).root
        if root is None:
            raise Permanent(f"workspace {workspace} is not running: start it first", code="not_running")
        return root


async def _read_on(log: Path, over: Callable[[], Awaitable[bool]]) -> AsyncIterator[bytes]:
    """A log from its end's last 16 MiB on, until it is `over` and all of it was read."""
    # A workspace can make its own log as long as it likes, even without writing it.
    offset = max(0, log_size(log) - _LOG_READ_MAX)
    while True:
        # Looked at before reading: what was printed until the end is then read below.
        ended = await over()
        while log_size(log) < offset:
            offset = max(0, offset - TASK_LOG_KEPT)  # a task's log is cut at its front, by so much each time
        while chunk := await asyncio.to_thread(read_log, log, offset, _LOG_CHUNK_BYTES):
            offset += len(chunk)
            yield chunk
        if ended:
            return
        await asyncio.sleep(_LOG_POLL_S)


async def _rejoined(first: bytes, rest: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    try:
        if first:
            yield first
        async for chunk in rest:
            yield chunk
    finally:
        if isinstance(rest, AsyncGenerator):
            await rest.aclose()
