"""The node agent as the control plane sees it: its messages and their version.

Spoken as HTTP and JSON over a unix socket; the socket's peer must be root or the server's user (SO_PEERCRED).

| method and path | body → answer |
| --- | --- |
| GET /v1/hello | → `Hello` |
| GET /v1/runs | → `RunFacts[]` |
| PUT /v1/runs/{workspace} | `StartRequest` → `RunFacts` |
| DELETE /v1/runs/{workspace}?run=N&force=false | → `RunFacts` |
| GET /v1/changes | → one `RunFacts` a line, each as it changes; an empty line every 10 s |
| DELETE /v1/volumes/{workspace}?run=N | → 204 |
| WS /v1/exec/{workspace}?run=N | first message `ExecRequest` as JSON, then the frames of `ports/process.py` |
| GET, PUT /v1/files/{workspace}/{path} | a file's bytes, or `FileEntry[]` of a folder |
| GET /v1/logs/{workspace}?run=N&follow=false | → the bytes of the run's log |
| GET /v1/tasks/{workspace}?run=N | → `TaskFacts[]` |
| GET /v1/tasks/{workspace}/{number}/log?run=N&follow=false | → the bytes of the task's output |
| GET /v1/facts | → `Fact[]` |

Every request carries `Fairwater-Agent-Api: VERSION`. A version the agent does not speak gets 426 and the list of those
it does. Version N speaks N − 1 too. A command of a run older than one seen is refused: 409, `stale_run`.
Errors are problem details (RFC 9457) with `code`, and `retry_after_s` where they are temporary.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Protocol

from fairwater.domain.ids import RunNumber, WorkspaceId
from fairwater.domain.workspaces.run import RunFacts, RunSpec, TaskFacts
from fairwater.domain.workspaces.secrets import RunSecrets
from fairwater.ports.process import ExecRequest, Process

API_VERSION = 1
SUPPORTED_VERSIONS = (1,)
VERSION_HEADER = "Fairwater-Agent-Api"


@dataclass(frozen=True, slots=True)
class Hello:
    """Who answers. `boot_id` changes with each boot of the machine; `runtime` is `crun`, `plain`, …"""

    api_version: int
    version: str
    node: str
    boot_id: str
    runtime: str


@dataclass(frozen=True, slots=True)
class StartRequest:
    """Start run `run` of a workspace, or say where it stands. `local_allowed`: the person may use `file://` and `oci:`.

    `secrets` are kept apart from all else, and never on a disk.
    """

    run: RunNumber
    spec: RunSpec
    local_allowed: bool = False
    secrets: RunSecrets = field(default_factory=RunSecrets)


@dataclass(frozen=True, slots=True)
class FileEntry:
    """`kind` is file, folder, symlink or other; `size` is in bytes; `modified_at` in seconds since 1970."""

    name: str
    kind: str
    size: int
    mode: int
    modified_at: float


@dataclass(frozen=True, slots=True)
class Fact:
    """One thing that a node offers, or not: `level` is ok, degraded or missing; `cost` says what is lost by it."""

    name: str
    level: str
    value: str
    cost: str = ""
    remedy: str = ""


class RunAgent(Protocol):
    """Runs on one node. Before a start, `runs` knows nothing of a workspace; after a restart it knows what lives."""

    async def hello(self) -> Hello: ...

    async def runs(self) -> tuple[RunFacts, ...]:
        """What the node knows of every run it holds, or held last."""
        ...

    async def start_run(self, workspace: WorkspaceId, request: StartRequest) -> RunFacts:
        """Accepts the run and brings it up; returns where it stands, running already where that is quick.

        Raises:
            Permanent: `stale_run`, for a number older than one seen; others from the run's own start.
            Temporary: the node cannot now.
        """
        ...

    async def stop_run(self, workspace: WorkspaceId, run: RunNumber, *, force: bool = False) -> RunFacts | None:
        """Begins the end of the run: signal, grace, kill, release. None where the node knows nothing of it.

        Raises:
            Permanent: `stale_run`.
        """
        ...

    async def delete_volume(self, workspace: WorkspaceId, run: RunNumber) -> None:
        """Deletes the volume and what is kept of the workspace; fine when there is none.

        Raises:
            Permanent: `stale_run`; `run_alive`, while a run holds the volume.
        """
        ...

    def changes(self) -> AsyncIterator[RunFacts]:
        """The facts of each run as they change, from now on. Ends when the connection does."""
        ...


class WorkspaceAccess(Protocol):
    """What people and programs do inside a running workspace."""

    async def exec(self, workspace: WorkspaceId, run: RunNumber, request: ExecRequest) -> Process:
        """Raises Permanent (`not_running`, `command_not_found`, `bad_cwd`, …)."""
        ...

    async def list_folder(self, workspace: WorkspaceId, path: str) -> tuple[FileEntry, ...]:
        """Entries by name. `path` is absolute in the workspace: /workspace/… or the home directory's."""
        ...

    async def read_file(self, workspace: WorkspaceId, path: str) -> AsyncIterator[bytes]:
        """Raises Permanent: `no_such_file`, `is_folder`, `not_a_file`, `outside`."""
        ...

    async def write_file(self, workspace: WorkspaceId, path: str, chunks: AsyncIterator[bytes]) -> int:
        """Replaces the file as a whole, or leaves it as it was; makes missing folders. Returns the bytes written.

        Raises Permanent: `quota_exceeded`, `is_folder`, `outside`.
        """
        ...

    def logs(self, workspace: WorkspaceId, run: RunNumber, *, follow: bool = False) -> AsyncIterator[bytes]:
        """What bringing in the content and the first process have printed; with `follow`, on until the run ends."""
        ...

    async def tasks(self, workspace: WorkspaceId, run: RunNumber) -> tuple[TaskFacts, ...]:
        """Where the tasks of the run stand, also after its end. Raises Permanent: `stale_run`, `not_running`."""
        ...

    def task_log(
        self, workspace: WorkspaceId, run: RunNumber, task: int, *, follow: bool = False
    ) -> AsyncIterator[bytes]:
        """What a task's terminal has shown; with `follow`, on until the task ends. Raises Permanent: `no_such_task`."""
        ...
