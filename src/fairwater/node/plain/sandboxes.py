"""Plain processes in place of sandboxes. What that does not isolate is in `fairwater.node.plain.NOT_ISOLATED`.

A sandbox is a record in a folder and a mark in the environment of its processes. There is no first process that
could die, so a sandbox is dead only when the machine was restarted under it. After a restart of the agent, processes
are found again by their mark; what is lost are the streams of commands under way, which are hung up.
"""

from __future__ import annotations

import asyncio
import json
import os
import shlex
import signal
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from fairwater.domain.failure import Permanent, Temporary
from fairwater.domain.ids import RunNumber, WorkspaceId
from fairwater.domain.workspaces.run import SandboxState
from fairwater.domain.workspaces.setup import Task
from fairwater.node.plain.boot import boot_id
from fairwater.node.plain.log import open_log
from fairwater.node.plain.marked import marked_processes, signal_marked
from fairwater.node.plain.places import HOME, Places
from fairwater.node.plain.process import start_process
from fairwater.ports.images import ImageRoot
from fairwater.ports.process import ExecRequest, Process
from fairwater.ports.sandboxes import Admission, Sandbox, SandboxId, Tenant

_KILL_ROUNDS_MAX = 100
_KILL_ROUND_S = 0.05


@dataclass(frozen=True, slots=True)
class _Record:
    """What is kept of a sandbox on disk."""

    sandbox: Sandbox
    boot: str
    volume: str | None = None
    cwd: str = "/workspace"
    environment: tuple[tuple[str, str], ...] = ()
    remote_environment: tuple[tuple[str, str], ...] = ()


class PlainSandboxes:
    """Implements `ports.sandboxes.Sandboxes`; its records are in `folder`."""

    def __init__(self, folder: Path, *, home: str = HOME, proc: Path = Path("/proc")) -> None:
        self._folder = folder
        self._home = home
        self._proc = proc
        self._boot = boot_id(proc)
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._records = {record.sandbox.id: record for record in self._load()}

    def claimed(self) -> tuple[Sandbox, ...]:
        return tuple(
            record.sandbox if record.boot == self._boot else replace(record.sandbox, state=SandboxState.DEAD)
            for record in self._records.values()
        )

    async def claim(self, tenant: Tenant, image: ImageRoot) -> Sandbox:
        name = SandboxId(f"{tenant.workspace}-{tenant.run}-{tenant.role}")
        if name not in self._records:
            self._keep(_Record(Sandbox(name, tenant, SandboxState.PARKED), self._boot))
        return self._records[name].sandbox

    async def admit(self, sandbox: Sandbox, admission: Admission) -> None:
        record = self.record(sandbox)
        if record.sandbox.state is SandboxState.LAUNCHED:
            return
        self._keep(
            replace(
                record,
                sandbox=replace(record.sandbox, state=SandboxState.ADMITTED),
                volume=os.fspath(admission.volume),
                cwd=admission.cwd,
                environment=tuple(admission.environment.items()),
                remote_environment=tuple(admission.remote_environment.items()),
            )
        )

    async def remove(self, sandbox: Sandbox) -> None:
        # First of all nothing new may be started in it.
        self._records.pop(sandbox.id, None)
        for _ in range(_KILL_ROUNDS_MAX):
            if not await asyncio.to_thread(signal_marked, sandbox.id, (signal.SIGKILL,), self._proc):
                break
            await asyncio.sleep(_KILL_ROUND_S)
        else:
            raise Temporary(f"processes of {sandbox.tenant.workspace} do not die", code="processes_left", delay_s=5)
        (self._folder / f"{sandbox.id}.json").unlink(missing_ok=True)

    def watch(self, died: Callable[[Sandbox], None]) -> None:
        """Nothing to watch: there is no first process."""

    def places(self, sandbox: Sandbox, *, remote: bool = True) -> tuple[Places, str, dict[str, str]]:
        """Where an admitted sandbox's paths are, its working directory, and its environment; the first process' own,
        where not `remote`.

        Raises Permanent: `not_running`.
        """
        record = self.record(sandbox)
        if record.volume is None:
            raise Permanent(f"workspace {sandbox.tenant.workspace} is not up yet", code="not_running")
        environment = (*record.environment, *(record.remote_environment if remote else ()))
        return Places(Path(record.volume), self._home), record.cwd, dict(environment)

    def mark_launched(self, sandbox: Sandbox) -> bool:
        """Whether this call was the first: a sandbox is launched once."""
        record = self.record(sandbox)
        if record.sandbox.state is SandboxState.LAUNCHED:
            return False
        self._keep(replace(record, sandbox=replace(record.sandbox, state=SandboxState.LAUNCHED)))
        return True

    def record(self, sandbox: Sandbox) -> _Record:
        found = self._records.get(sandbox.id)
        if found is None:
            raise Permanent(f"workspace {sandbox.tenant.workspace} is not running", code="not_running")
        return found

    def _keep(self, record: _Record) -> None:
        sandbox = record.sandbox
        content = {
            "workspace": sandbox.tenant.workspace,
            "run": sandbox.tenant.run,
            "role": sandbox.tenant.role,
            "state": sandbox.state.value,
            "boot": record.boot,
            "volume": record.volume,
            "cwd": record.cwd,
            "environment": record.environment,
            "remote_environment": record.remote_environment,
        }
        file = self._folder / f"{sandbox.id}.json"
        aside = file.with_suffix(".new")
        aside.touch(mode=0o600)
        aside.write_text(json.dumps(content), encoding="utf-8")
        aside.replace(file)
        self._records[sandbox.id] = record

    def _load(self) -> list[_Record]:
        records = []
        for file in sorted(self._folder.glob("*.json")):
            content = json.loads(file.read_text(encoding="utf-8"))
            tenant = Tenant(WorkspaceId(content["workspace"]), RunNumber(content["run"]), content["role"])
            sandbox = Sandbox(SandboxId(file.stem), tenant, SandboxState(content["state"]))
            environment, remote = (
                tuple((name, value) for name, value in content.get(kind, ()))
                for kind in ("environment", "remote_environment")
            )
            records.append(_Record(sandbox, content["boot"], content["volume"], content["cwd"], environment, remote))
        return records


_IN_TERMINAL = """
if command -v script >/dev/null; then script --quiet --flush --return --command "$0" /dev/null; else sh -c "$0"; fi
echo $? >"$1"
"""
"""script(1) holds the terminal, and goes on without the agent."""


def _is_first(mark: Path) -> bool:
    try:
        mark.touch(mode=0o600, exist_ok=False)
    except FileExistsError:
        return False
    return True


class PlainLauncher:
    """Implements `ports.sandboxes.Launcher` for `PlainSandboxes`."""

    def __init__(self, sandboxes: PlainSandboxes, *, proc: Path = Path("/proc")) -> None:
        self._sandboxes = sandboxes
        self._proc = proc

    async def launch(
        self, sandbox: Sandbox, command: tuple[str, ...] | None, log: Path, *, cwd: str | None = None
    ) -> None:
        places, folder, environment = self._sandboxes.places(sandbox, remote=False)
        if not self._sandboxes.mark_launched(sandbox) or command is None:
            return
        with open_log(log) as output:
            start_process(
                command, places.on_machine(cwd or folder), places.environment(sandbox.id, environment), log=output
            )  # collected by its descriptor in the event loop

    async def start_task(self, sandbox: Sandbox, task: Task, log: Path, status: Path) -> None:
        places, cwd, environment = self._sandboxes.places(sandbox)
        if not _is_first(status.with_suffix(".started")):
            return
        marker = places.on_machine("/workspace/.fairwater")
        script = task.script.replace("/workspace/.fairwater", marker)
        command = ("sh", "-c", _IN_TERMINAL, f"sh -c {shlex.quote(script)}", os.fspath(status))
        with open_log(log) as output:
            start_process(
                command,
                places.on_machine(cwd),
                places.environment(sandbox.id, environment, {"TERM": "xterm-256color"}, dict(task.environment)),
                log=output,
            )

    async def exec(self, sandbox: Sandbox, request: ExecRequest) -> Process:
        if request.user != "workspace":
            raise Permanent(
                f"there is no user {request.user[:40]!r} here: without isolation only the workspace's own user is "
                "offered",
                code="no_such_user",
            )
        places, cwd, environment = self._sandboxes.places(sandbox)
        terminal = {"TERM": "xterm-256color"} if request.terminal else {}
        return start_process(
            request.command,
            places.on_machine(request.cwd or cwd),
            places.environment(sandbox.id, environment, terminal, dict(request.environment)),
            terminal=request.terminal,
        )

    async def terminate(self, sandbox: Sandbox) -> None:
        signals = (signal.SIGTERM, signal.SIGHUP, signal.SIGCONT)
        await asyncio.to_thread(signal_marked, sandbox.id, signals, self._proc)

    async def alive(self, sandbox: Sandbox) -> int:
        return len(await asyncio.to_thread(marked_processes, sandbox.id, self._proc))
