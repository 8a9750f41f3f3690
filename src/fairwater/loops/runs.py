"""The runs of one node, as `ports.agent.RunAgent`: accepted, fenced by number, found again after a restart."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import structlog

from fairwater.domain.failure import Permanent, Temporary
from fairwater.domain.ids import RunNumber, WorkspaceId
from fairwater.domain.workspaces.run import NodeView, RunFacts, RunState, RunStep, SandboxState, TaskFacts, Wish
from fairwater.loops.journal import Entry, Journal
from fairwater.loops.run_parts import RunParts, log_file
from fairwater.loops.run_steps import RunReconciler
from fairwater.loops.run_table import RunTable
from fairwater.loops.runner import LoopRunner
from fairwater.ports.agent import Hello, StartRequest
from fairwater.ports.images import is_local
from fairwater.ports.sandboxes import Sandbox

_QUICK_S = 1.0
"""How long a start is waited for before its caller is told where it stands; most take milliseconds."""


class RunKeeper:
    """Call `recover` before anything else, `close` at the end: it leaves the workspaces as they are."""

    def __init__(self, parts: RunParts, journal_dir: Path, hello: Hello, grace_s: float = 10.0) -> None:
        self._parts = parts
        self._clock = parts.clock
        self._hello = hello
        self._table = RunTable(Journal(journal_dir))
        self._runner: LoopRunner[WorkspaceId, NodeView, RunStep] = LoopRunner(
            RunReconciler(self._table, parts, grace_s), parts.clock
        )

    async def recover(self) -> None:
        """Finds what a predecessor left: runs that live go on, runs that died are cleared, helpers begin anew."""
        for damaged in self._table.journal.load(self._clock.now()):
            structlog.get_logger().error("journal_damaged", file=damaged)
        for sandbox in self._parts.sandboxes.claimed():
            workspace = sandbox.tenant.workspace
            entry = self._table.journal.get(workspace)
            if entry is not None and sandbox.tenant.role == "run" and entry.run == sandbox.tenant.run:
                self._table.sandboxes[workspace] = sandbox
            else:
                await self._parts.sandboxes.remove(sandbox)
        self._parts.sandboxes.watch(self._died)
        for entry in self._table.journal.entries():
            if entry.state is not RunState.ENDED:
                self._runner.poke(entry.workspace)

    async def close(self) -> None:
        await self._runner.close()
        self._table.close()

    async def hello(self) -> Hello:
        return self._hello

    async def runs(self) -> tuple[RunFacts, ...]:
        return tuple(self._table.facts(entry) for entry in self._table.journal.entries())

    async def start_run(self, workspace: WorkspaceId, request: StartRequest) -> RunFacts:
        self._table.fence(workspace, request.run)
        entry = self._table.journal.get(workspace)
        if entry is None or entry.run < request.run:
            if entry is not None and entry.state is not RunState.ENDED:
                await self.stop_run(workspace, entry.run)
                raise Temporary(f"run {entry.run} is still being released", code="run_alive", delay_s=0.25)
            sources = (request.spec.source, request.spec.dotfiles)
            if any(source is not None and source.local for source in sources) and not request.local_allowed:
                raise Permanent("file:// URLs are for the local administrator only", code="local_only")
            if is_local(request.spec.image) and not request.local_allowed:
                raise Permanent("images in folders are for the local administrator only", code="local_only")
            self._parts.secrets.put(workspace, request.secrets)
            now = self._clock.now()
            content_ready = entry is not None and entry.content_ready
            self._table.begin(
                Entry(
                    workspace, request.run, request.spec, Wish.RUNNING, RunState.STARTING, "starting", now,
                    content_ready=content_ready,
                )
            )  # fmt: skip
            self._runner.poke(workspace)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._table.live(workspace).settled.wait(), _QUICK_S)
        return self._table.facts(self._table.entry(workspace))

    async def stop_run(self, workspace: WorkspaceId, run: RunNumber, *, force: bool = False) -> RunFacts | None:
        self._table.fence(workspace, run)
        entry = self._table.journal.get(workspace)
        if entry is None or entry.run < run:
            return None
        wish = Wish.KILLED if force else Wish.STOPPED
        if entry.state is not RunState.ENDED and entry.wish is not Wish.KILLED and entry.wish is not wish:
            entry = replace(entry, wish=wish, state=RunState.STOPPING, reason="stopping", since=self._clock.now())
            self._table.change(entry)
            bringing = self._table.live(workspace).bringing
            if bringing is not None:
                bringing.cancel()
            self._runner.poke(workspace)
        return self._table.facts(entry)

    async def delete_volume(self, workspace: WorkspaceId, run: RunNumber) -> None:
        entry = self._table.journal.get(workspace)
        if entry is not None and entry.deleted:
            return  # asked for again
        self._table.fence(workspace, run)
        if entry is not None and entry.state is not RunState.ENDED:
            raise Permanent(f"run {entry.run} of {workspace} still holds the volume", code="run_alive")
        await self._parts.volumes.delete(workspace)
        self._table.forget(workspace)

    def changes(self) -> AsyncIterator[RunFacts]:
        return self._table.changes()

    def sandbox_of(self, workspace: WorkspaceId, run: RunNumber | None = None) -> Sandbox:
        """The sandbox of the run that is up. Raises Permanent: `not_running`, `stale_run`."""
        if run is not None:
            self._table.fence(workspace, run)
        entry, sandbox = self._table.journal.get(workspace), self._table.sandboxes.get(workspace)
        if entry is None or sandbox is None or entry.state is not RunState.RUNNING:
            state = entry.state.value if entry else "not on this node"
            raise Permanent(f"workspace {workspace} is {state}: start it first", code="not_running")
        return sandbox

    def home_of(self, workspace: WorkspaceId) -> str:
        """Where the run's home directory is in the workspace, "" where that is not known."""
        setup = self._table.entry(workspace).setup
        return setup.home if setup else ""

    def log_of(self, workspace: WorkspaceId, run: RunNumber, root: Path | None) -> Path:
        """Where the log of a run is: on its volume at `root`, or what was kept of it where that is not attached."""
        self._table.fence(workspace, run)
        return log_file(root, run) if root is not None else self._table.journal.kept_log(workspace)

    def tasks_of(self, workspace: WorkspaceId, run: RunNumber, root: Path | None) -> tuple[TaskFacts, ...]:
        """Where the tasks of a run stand. Raises Permanent: `stale_run`, `not_running`."""
        self._table.fence(workspace, run)
        entry = self._table.entry(workspace)
        if root is None or entry.state is RunState.ENDED:
            return entry.tasks
        tasks = entry.setup.tasks if entry.setup else ()
        return self._parts.tasks.facts(root, entry.run, tasks, entry.tasks_started_at, alive=True)

    def task_log_of(self, workspace: WorkspaceId, run: RunNumber, task: int, root: Path | None) -> Path:
        """As `log_of`, for a task. Raises Permanent: `no_such_task`."""
        self._table.fence(workspace, run)
        setup = self._table.entry(workspace).setup
        if setup is None or task not in {known.number for known in setup.tasks}:
            raise Permanent(f"run {run} of workspace {workspace} has no task {task}", code="no_such_task")
        if root is None:
            return self._table.journal.kept_log(workspace, task)
        return self._parts.tasks.files(root, run, task)[0]

    def _died(self, sandbox: Sandbox) -> None:
        workspace = sandbox.tenant.workspace
        held = self._table.sandboxes.get(workspace)
        if held is not None and held.id == sandbox.id:
            self._table.sandboxes[workspace] = replace(held, state=SandboxState.DEAD)
            self._runner.poke(workspace)
