"""Isolated places in which a workspace runs, parked ahead of need."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NewType, Protocol

from fairwater.domain.ids import RunNumber, WorkspaceId
from fairwater.domain.workspaces.classes import WorkspaceClass
from fairwater.domain.workspaces.run import SandboxState
from fairwater.domain.workspaces.setup import Task
from fairwater.ports.images import ImageRoot, ImageUser
from fairwater.ports.process import ExecRequest, Process

SandboxId = NewType("SandboxId", str)


@dataclass(frozen=True, slots=True)
class Tenant:
    """For whom a sandbox is claimed. `role` is `run`, or `content` for the helper that brings in the repository."""

    workspace: WorkspaceId
    run: RunNumber
    role: str = "run"


@dataclass(frozen=True, slots=True)
class Sandbox:
    """A claimed sandbox, as found: also after a restart of the agent."""

    id: SandboxId
    tenant: Tenant
    state: SandboxState


@dataclass(frozen=True, slots=True)
class Admission:
    """What is put into a claimed sandbox. `binds`: a folder of the machine, read-only, at a path of the sandbox.

    `user` is whom everything runs as and whose home directory the volume's is, None for the image's own.
    `environment` is for every process, `remote_environment` for commands and tasks beside the first process.
    """

    limits: WorkspaceClass
    volume: Path
    environment: Mapping[str, str]
    cwd: str
    binds: tuple[tuple[Path, str], ...] = ()
    user: ImageUser | None = None
    remote_environment: Mapping[str, str] = field(default_factory=dict)


class Sandboxes(Protocol):
    """Claims, fills and removes sandboxes. `claimed` tells after a restart what was there before it."""

    def claimed(self) -> tuple[Sandbox, ...]: ...

    async def claim(self, tenant: Tenant, image: ImageRoot) -> Sandbox:
        """The sandbox of `tenant`: the one it has, else a parked one, else one made now.

        Raises Temporary: none can be made now; `probe_failed`: no working network.
        """
        ...

    async def admit(self, sandbox: Sandbox, admission: Admission) -> None:
        """Limits written, volume moved in, network opened: each read back. Raises Temporary where one does not hold."""
        ...

    async def remove(self, sandbox: Sandbox) -> None:
        """Kills every process in it; afterwards nothing of it holds the volume. The rest is cleared behind it."""
        ...

    def watch(self, died: Callable[[Sandbox], None]) -> None:
        """Calls `died` when the first process of a claimed sandbox is gone, without polling."""
        ...


class Launcher(Protocol):
    """Runs commands in an admitted sandbox."""

    async def launch(
        self, sandbox: Sandbox, command: tuple[str, ...] | None, log: Path, *, cwd: str | None = None
    ) -> None:
        """Marks the sandbox launched and lets the first process go, its output appended to `log`; once only."""
        ...

    async def start_task(self, sandbox: Sandbox, task: Task, log: Path, status: Path) -> None:
        """Runs a task in a terminal of its own, which nobody need hold; once only for each number.

        Its output is appended to `log`, the last MiB of it at least; when it has ended, its exit status is in `status`,
        in decimal, with a newline.

        Raises:
            Permanent: `no_shell`, where the image has no `sh`.
        """
        ...

    async def exec(self, sandbox: Sandbox, request: ExecRequest) -> Process: ...

    async def terminate(self, sandbox: Sandbox) -> None:
        """SIGTERM to every process in it but the first; SIGHUP to those in a terminal, for shells. Returns at once."""
        ...

    async def alive(self, sandbox: Sandbox) -> int:
        """How many processes it holds beside the first."""
        ...
