"""A node that is just enough for the API's tests, and the clock that its world goes by."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from fairwater.domain.failure import Permanent, Temporary
from fairwater.domain.ids import RunNumber, WorkspaceId
from fairwater.domain.workspaces.run import RunFacts, RunState, TaskFacts, TaskState
from fairwater.ports.agent import Fact, FileEntry, Hello, StartRequest
from fairwater.ports.database import Restored
from fairwater.ports.process import Channel, ExecRequest, TerminalSize

START = datetime(2022, 4, 11, 8, 0, tzinfo=UTC)


class HandClock:
    """Time that passes when a test says so."""

    def __init__(self) -> None:
        self.time = START

    def now(self) -> datetime:
        return self.time

    def advance(self, seconds: float) -> None:
        self.time += timedelta(seconds=seconds)


@dataclass
class ScriptedProcess:
    """A command that prints `pieces`, then ends with `status`; `until_hung_up`, not before it is closed."""

    pieces: list[tuple[Channel, bytes]]
    status: int = 0
    until_hung_up: bool = False
    until_input_ends: bool = False
    written: list[bytes] = field(default_factory=list)
    signals: list[str] = field(default_factory=list)
    sizes: list[TerminalSize] = field(default_factory=list)
    closed: asyncio.Event = field(default_factory=asyncio.Event)
    ended_input: asyncio.Event = field(default_factory=asyncio.Event)

    async def output(self) -> AsyncIterator[tuple[Channel, bytes]]:
        for piece in self.pieces:
            yield piece
        if self.until_hung_up:
            await self.closed.wait()
        if self.until_input_ends:
            await self.ended_input.wait()

    async def write(self, data: bytes) -> None:
        self.written.append(data)
        if not data:
            self.ended_input.set()

    async def signal(self, name: str) -> None:
        self.signals.append(name)

    async def resize(self, size: TerminalSize) -> None:
        self.sizes.append(size)

    async def wait(self) -> int:
        if self.until_hung_up:
            await self.closed.wait()
        if self.until_input_ends:
            await self.ended_input.wait()
        return self.status

    async def close(self) -> None:
        self.closed.set()


class TinyAgent:
    """Just enough of a node for the API: files in a dictionary, one scripted command, nothing that runs."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.process = ScriptedProcess([])
        self.requests: list[ExecRequest] = []
        self.asked = asyncio.Event()
        self.failure: Permanent | None = None
        self.task_facts: tuple[TaskFacts, ...] = (TaskFacts(0, "build", TaskState.RUNNING),)
        self.task_logs: dict[int, list[bytes]] = {0: [b"building\n"]}
        self.task_over = asyncio.Event()

    async def hello(self) -> Hello:
        if self.failure is not None:
            raise self.failure
        return Hello(1, "0", "tiny", "boot", "none")

    async def facts(self) -> tuple[Fact, ...]:
        return (Fact("isolation", "missing", "none"),)

    async def runs(self) -> tuple[RunFacts, ...]:
        return ()

    async def start_run(self, workspace: WorkspaceId, request: StartRequest) -> RunFacts:
        return RunFacts(workspace, request.run, RunState.RUNNING, "running", START)

    async def stop_run(self, workspace: WorkspaceId, run: RunNumber, *, force: bool = False) -> RunFacts | None:
        return None

    async def delete_volume(self, workspace: WorkspaceId, run: RunNumber) -> None:
        return None

    async def changes(self) -> AsyncIterator[RunFacts]:
        for facts in await self.runs():
            yield facts

    async def exec(self, workspace: WorkspaceId, run: RunNumber, request: ExecRequest) -> ScriptedProcess:
        if self.failure is not None:
            raise self.failure
        self.requests.append(request)
        self.asked.set()
        return self.process

    async def list_folder(self, workspace: WorkspaceId, path: str) -> tuple[FileEntry, ...]:
        return tuple(FileEntry(name, "file", len(data), 0o644, 0.0) for name, data in sorted(self.files.items()))

    async def read_file(self, workspace: WorkspaceId, path: str) -> AsyncIterator[bytes]:
        if path == "/workspace":
            raise Permanent("it is a folder", code="is_folder")
        if path not in self.files:
            raise Permanent("there is no such file", code="no_such_file")

        async def chunks() -> AsyncIterator[bytes]:
            yield self.files[path]

        return chunks()

    async def write_file(self, workspace: WorkspaceId, path: str, chunks: AsyncIterator[bytes]) -> int:
        self.files[path] = b"".join([chunk async for chunk in chunks])
        return len(self.files[path])

    async def logs(self, workspace: WorkspaceId, run: RunNumber, *, follow: bool = False) -> AsyncIterator[bytes]:
        yield f"run {run} of {workspace}\n".encode()

    async def tasks(self, workspace: WorkspaceId, run: RunNumber) -> tuple[TaskFacts, ...]:
        if self.failure is not None:
            raise self.failure
        return self.task_facts

    async def task_log(
        self, workspace: WorkspaceId, run: RunNumber, task: int, *, follow: bool = False
    ) -> AsyncIterator[bytes]:
        if task not in self.task_logs:
            raise Permanent(f"there is no task {task}", code="no_such_task")
        for piece in self.task_logs[task]:
            yield piece
        if follow:
            await self.task_over.wait()


class TinyCopies:
    """A database's backups: the bytes it gives, and those it was given."""

    def __init__(self) -> None:
        self.pieces = [b"first ", b"second"]
        self.failure: Temporary | None = None
        self.fails_at = 1
        self.restored: bytes | None = None
        self.unknown: tuple[WorkspaceId, ...] = ()
        self.go_on = asyncio.Event()
        self.go_on.set()

    async def backup(self) -> AsyncIterator[bytes]:
        for number, piece in enumerate(self.pieces):
            if number == 1:
                await self.go_on.wait()
            if number == self.fails_at and self.failure is not None:
                raise self.failure
            yield piece

    async def restore(self, chunks: AsyncIterator[bytes]) -> Restored:
        self.restored = b"".join([chunk async for chunk in chunks])
        return Restored({"users": 1}, self.unknown)
