"""A command in a workspace, seen as one story: its output as it comes, and its exit status as the last word."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field

from fairwater.domain.failure import Permanent, Temporary
from fairwater.domain.workspaces.workspace import ACTIVE
from fairwater.ports.catalogue import Entry
from fairwater.ports.process import Channel, ExecRequest, Process, TerminalSize
from fairwater.server.messages import OpenTerminal, RunCommand
from fairwater.server.services import Services

COLLECTED_BYTES_MAX = 1024 * 1024
_STDIN_CHUNK_BYTES = 64 * 1024

Piece = tuple[Channel, bytes] | int


def exec_request(body: RunCommand | OpenTerminal) -> ExecRequest:
    terminal = body.terminal if isinstance(body, OpenTerminal) else None
    return ExecRequest(
        command=tuple(body.command),
        cwd=body.cwd,
        environment=tuple(sorted(body.environment.items())),
        user=body.user,
        terminal=TerminalSize(terminal.rows, terminal.columns) if terminal else None,
    )


async def begin(services: Services, entry: Entry, request: ExecRequest) -> Process:
    """Raises Permanent: `not_running`; others from the node."""
    workspace = entry.workspace
    if workspace.phase not in ACTIVE:
        raise Permanent(
            f"workspace {entry.name} is {workspace.phase}: start it with `fairwater workspace start {entry.name}`",
            code="not_running",
        )
    return await services.access.exec(workspace.id, workspace.run, request)


async def story(process: Process) -> AsyncGenerator[Piece]:
    """Each piece of output, then the exit status."""
    async for piece in process.output():
        yield piece
    yield await process.wait()


@asynccontextmanager
async def fed(process: Process, stdin: bytes) -> AsyncIterator[None]:
    """Writes `stdin` meanwhile, and ends it."""
    feeding = asyncio.create_task(_feed(process, stdin))
    try:
        yield
    finally:
        feeding.cancel()


@contextmanager
def alarm(after_s: float) -> Iterator[asyncio.Event]:
    """An event that is set after `after_s` seconds, unless the block has ended before."""
    rung = asyncio.Event()
    timer = asyncio.get_running_loop().call_later(after_s, rung.set)
    try:
        yield rung
    finally:
        timer.cancel()


@dataclass(slots=True)
class Collected:
    """What a command printed, as far as it is kept. The rest is read all the same: a full pipe would stop it."""

    kept: dict[Channel, bytearray] = field(
        default_factory=lambda: {Channel.STDOUT: bytearray(), Channel.STDERR: bytearray()}
    )
    truncated: set[Channel] = field(default_factory=set)

    def add(self, channel: Channel, data: bytes) -> None:
        kept = self.kept[channel]
        room = COLLECTED_BYTES_MAX - len(kept)
        kept.extend(data[:room])
        if len(data) > room:
            self.truncated.add(channel)

    def text(self, channel: Channel) -> str:
        return self.kept[channel].decode("utf-8", "replace")


async def _feed(process: Process, stdin: bytes) -> None:
    try:
        for start in range(0, len(stdin), _STDIN_CHUNK_BYTES):
            await process.write(stdin[start : start + _STDIN_CHUNK_BYTES])
        await process.write(b"")
    except (Temporary, Permanent):
        return  # a command need not read its input; how it ended is told by its exit status


def cut_off() -> Permanent:
    return Permanent("the command was hung up: the server is stopping, or you may no longer run it", code="cut_off")
