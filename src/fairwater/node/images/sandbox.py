"""The sandbox that an image is brought in by: a neighbour like any other, with the machine's own programs in it.

Its volume is a folder of the images' disk. Nothing that it writes is believed: what is used of it is proven by digest
and opened without following links.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from fairwater.domain.ids import RunNumber, workspace_id
from fairwater.domain.units import GIB, Bytes
from fairwater.domain.workspaces.classes import WorkspaceClass
from fairwater.node.tree_removal import remove_tree
from fairwater.ports.images import ImageRoot
from fairwater.ports.process import Channel, ExecRequest
from fairwater.ports.sandboxes import Admission, Launcher, Sandbox, Sandboxes, Tenant

LIMITS = WorkspaceClass("image", cpu_cores=2, memory=Bytes(2 * GIB), processes=512, disk=Bytes(0))
ROLE = "image"
ORIGIN = "/mnt/origin"
"""Where a folder of the machine is seen."""
AUTHFILE = "/run/registry-auth.json"
"""In memory, and gone with the sandbox."""
_KEPT = 64 * 1024
_OUTPUT_MAX = 5 * 1024**2


class PullSandboxes(Sandboxes, Launcher, Protocol):
    """Both halves are needed, of the same thing."""


class CommandFailed(Exception):
    """A command ended with `status`; `stderr` is the end of what it said."""

    def __init__(self, status: int, stderr: str) -> None:
        super().__init__(f"a command ended with {status}")
        self.status = status
        self.stderr = stderr


@dataclass
class PullSandbox:
    """One pull's: `workspace` is the folder seen at /workspace, `done` is beside it and out of its reach."""

    sandboxes: PullSandboxes
    sandbox: Sandbox
    folder: Path
    heard: Callable[[], None] = field(default=lambda: None)
    """Called whenever a command says something."""

    @property
    def workspace(self) -> Path:
        return self.folder / "workspace"

    @property
    def done(self) -> Path:
        return self.folder / "done"

    async def run(
        self,
        command: tuple[str, ...],
        *,
        stdin: bytes = b"",
        on_line: Callable[[bytes], None] | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> bytes:
        """One command as root of the sandbox, to its end; returns its standard output, or hands it out line by line.

        Raises:
            CommandFailed: its status is not 0, or it said more than anything here has to say.
        """
        variables = {"TMPDIR": "/workspace/tmp", "LC_ALL": "C", **(environment or {})}
        request = ExecRequest(command, cwd="/", environment=tuple(variables.items()), user="root")
        process = await self.sandboxes.exec(self.sandbox, request)
        output, errors, rest = bytearray(), bytearray(), b""
        try:
            if stdin:
                await process.write(stdin)
            await process.write(b"")
            async for channel, chunk in process.output():
                self.heard()
                if channel is Channel.STDERR:
                    errors += chunk
                    del errors[:-_KEPT]
                elif on_line is None:
                    output += chunk
                    if len(output) > _OUTPUT_MAX:
                        raise CommandFailed(1, "a document is larger than 4 MiB")
                else:
                    *lines, rest = (rest + chunk).split(b"\n")
                    rest = rest[-_KEPT:]
                    for line in lines:
                        on_line(line)
            status = await process.wait()
        finally:
            await process.close()
        if status:
            raise CommandFailed(status, errors.decode("utf-8", "replace"))
        return bytes(output)


@contextlib.asynccontextmanager
async def pull_sandbox(
    sandboxes: PullSandboxes,
    image: ImageRoot,
    incoming: Path,
    origin: Path | None,
    admitted: Callable[[Sandbox], None],
) -> AsyncIterator[PullSandbox]:
    """A sandbox with an empty folder below `incoming`; both are gone afterwards, however it ends.

    `origin` is a folder of the machine that it sees, read-only. `admitted` is called before anything runs in it.
    """
    name = workspace_id(secrets.token_bytes(12))
    folder = incoming / name
    await asyncio.to_thread(_lay_out, folder)
    sandbox: Sandbox | None = None
    try:
        tenant = Tenant(name, RunNumber(1), role=ROLE)
        sandbox = await sandboxes.claim(tenant, image)
        binds = ((origin, ORIGIN),) if origin is not None else ()
        await sandboxes.admit(sandbox, Admission(LIMITS, folder, {}, "/workspace", binds))
        admitted(sandbox)
        yield PullSandbox(sandboxes, sandbox, folder)
    finally:
        await asyncio.shield(_clear(sandboxes, sandbox, folder))


async def _clear(sandboxes: PullSandboxes, sandbox: Sandbox | None, folder: Path) -> None:
    if sandbox is not None:
        await sandboxes.remove(sandbox)
    await asyncio.to_thread(remove_tree, folder)  # nobody is left who could change anything meanwhile


def _lay_out(folder: Path) -> None:
    for path in (folder, folder / "workspace", folder / "home", folder / "done", folder / "workspace/tmp",
                 folder / "workspace/blobs", folder / "workspace/blobs/sha256"):  # fmt: skip
        path.mkdir(mode=0o755)
    (folder / "done").chmod(0o700)
