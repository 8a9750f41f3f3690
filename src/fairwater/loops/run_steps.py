"""The node agent's loop over one run: what `domain.workspaces.run.plan_run` plans, done through the ports.

Makes no choices of order. Each step may be interrupted and repeated.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import structlog

from fairwater.domain.failure import Permanent, Temporary
from fairwater.domain.ids import WorkspaceId
from fairwater.domain.plan import Plan
from fairwater.domain.workspaces.notice import Level, Notice
from fairwater.domain.workspaces.run import (
    NodeView,
    Progress,
    RunState,
    RunStep,
    SandboxState,
    VolumeState,
    Wish,
    plan_run,
)
from fairwater.loops.journal import Entry
from fairwater.loops.run_parts import RunParts, log_file
from fairwater.loops.run_provision import RunProvision
from fairwater.loops.run_setup import RunSetup, with_user
from fairwater.loops.run_table import RunTable
from fairwater.ports.sandboxes import Tenant

T = TypeVar("T")


class RunReconciler:
    name = "runs"

    def __init__(self, table: RunTable, parts: RunParts, grace_s: float) -> None:
        self._table = table
        self._parts = parts
        self._clock = parts.clock
        self._setup = RunSetup(parts.images, parts.content, parts.secrets)
        self._grace_s = grace_s
        provision = RunProvision(table, parts, self._setup)
        self._log = structlog.get_logger().bind(loop=self.name)
        self._steps: dict[RunStep, Callable[[Entry], Awaitable[None]]] = {
            RunStep.CREATE_VOLUME: self._create_volume,
            RunStep.ATTACH_VOLUME: self._attach_volume,
            RunStep.BRING_CONTENT: provision.bring_content,
            RunStep.CONFIGURE: provision.configure,
            RunStep.PREPARE_IMAGE: provision.prepare_image,
            RunStep.FILL_HOME: provision.fill_home,
            RunStep.CLAIM_SANDBOX: self._claim_sandbox,
            RunStep.ADMIT: self._admit,
            RunStep.LAUNCH: self._launch,
            RunStep.START_TASKS: self._start_tasks,
            RunStep.SIGNAL: self._signal,
            RunStep.KILL: self._kill,
            RunStep.REMOVE_SANDBOX: self._remove_sandbox,
            RunStep.DETACH_VOLUME: self._detach_volume,
            RunStep.RELEASE: self._release,
        }

    async def observe(self, key: WorkspaceId) -> NodeView:
        entry = self._table.entry(key)
        if entry.state is RunState.ENDED:
            return NodeView(VolumeState.DETACHED, entry.content_ready, None)
        volume = await self._parts.volumes.find(key)
        content_ready = entry.content_ready
        if volume.root is not None and not content_ready:
            content_ready = self._parts.content.brought(volume.root) is not None
        sandbox = self._table.sandboxes.get(key)
        state = sandbox.state if sandbox else None
        if entry.wish is Wish.RUNNING and (state is SandboxState.DEAD or (entry.launched and sandbox is None)):
            reason = "its first process was killed" if sandbox else "its node was restarted"
            self._table.update(self._clock.now(), entry, wish=Wish.STOPPED, state=RunState.STOPPING, reason=reason)
        signalled_at, quiet = self._table.live(key).signalled_at, False
        if signalled_at is not None and sandbox is not None and state is SandboxState.LAUNCHED:
            quiet = await self._parts.launcher.alive(sandbox) == 0
        up = state in {SandboxState.LAUNCHED, SandboxState.DEAD}
        configured = up or (entry.setup is not None and volume.root is not None)
        return NodeView(
            volume.state,
            content_ready,
            state,
            signalled_at,
            quiet,
            configured=configured,
            image_ready=up or not configured or await self._setup.image(entry) is not None,
            home_ready=up or volume.root is None or self._parts.content.home_ready(volume.root),
            tasks_started=entry.tasks_started_at is not None
            or (configured and not (entry.setup and entry.setup.tasks)),
        )

    def plan(self, key: WorkspaceId, facts: NodeView) -> Plan[RunStep]:
        entry = self._table.entry(key)
        if entry.state is RunState.ENDED:
            return Plan()
        return plan_run(entry.wish, facts, self._clock.now(), entry.since, self._grace_s)

    async def apply(self, key: WorkspaceId, step: RunStep) -> None:
        await self._steps[step](self._table.entry(key))

    async def rejected(self, key: WorkspaceId, step: RunStep, failure: Permanent) -> None:
        entry = self._table.entry(key)
        self._log.info("run_failed", workspace=key, run=entry.run, step=step.value, code=failure.code)
        if entry.wish is Wish.RUNNING:
            self._table.update(self._clock.now(),
                entry, wish=Wish.KILLED, state=RunState.STOPPING, reason=failure.message, failure=failure.message,
                code=failure.code,
            )  # fmt: skip
        else:
            raise failure  # a way down has no second way: the loop logs it and tries again

    async def delayed(self, key: WorkspaceId, failure: Temporary) -> None:
        entry = self._table.entry(key)
        if failure.code != "interrupted":
            self._log.info("run_delayed", workspace=key, run=entry.run, code=failure.code, reason=failure.message)
            live = self._table.live(key)
            live.hindrance, live.progress = failure.message, Progress(failure.message)
            self._table.change(replace(entry, reason=failure.message))

    async def _create_volume(self, entry: Entry) -> None:
        await self._parts.volumes.create(entry.workspace, entry.spec.limits.disk)

    async def _attach_volume(self, entry: Entry) -> None:
        await self._parts.volumes.attach(entry.workspace, entry.spec.limits.disk)

    async def _claim_sandbox(self, entry: Entry) -> None:
        image = await self._setup.present(entry)
        assert entry.setup is not None
        self._table.change(replace(entry, setup=with_user(entry.setup, image)))
        tenant = Tenant(entry.workspace, entry.run)
        self._table.sandboxes[entry.workspace] = await self._parts.sandboxes.claim(tenant, image)

    async def _admit(self, entry: Entry) -> None:
        admission = self._setup.admission(
            entry, await self._setup.present(entry), await self._parts.root(entry.workspace)
        )
        sandbox = self._table.sandboxes[entry.workspace]
        await self._parts.sandboxes.admit(sandbox, admission)
        self._table.sandboxes[entry.workspace] = replace(sandbox, state=SandboxState.ADMITTED)

    async def _launch(self, entry: Entry) -> None:
        if self._table.entry(entry.workspace).wish is not Wish.RUNNING:
            raise Temporary("stopped before its first process", code="interrupted", delay_s=0)
        sandbox = self._table.sandboxes[entry.workspace]
        image = await self._setup.present(entry)
        log = log_file(await self._parts.root(entry.workspace), entry.run)
        command = self._setup.first_command(entry, image)
        own = entry.spec.command is None  # the image's own first process, in the image's own folder
        try:
            await self._parts.launcher.launch(sandbox, command, log, cwd=image.working_directory if own else None)
        except Permanent as failure:
            if not own or command is None:
                raise
            entry = self._noticed(entry, failure, f"the image's own first process was not started: {failure.message}")
            await self._parts.launcher.launch(sandbox, None, log)
        self._table.sandboxes[entry.workspace] = replace(sandbox, state=SandboxState.LAUNCHED)
        entry = replace(self._table.entry(entry.workspace), launched=True, content_ready=True)
        if entry.wish is Wish.RUNNING:
            self._table.update(self._clock.now(), entry, state=RunState.RUNNING, reason="running")
        else:  # a stop came meanwhile
            self._table.change(entry)

    async def _start_tasks(self, entry: Entry) -> None:
        sandbox, root = self._table.sandboxes[entry.workspace], await self._parts.root(entry.workspace)
        for task in entry.setup.tasks if entry.setup else ():
            log, status = self._parts.tasks.files(root, entry.run, task.number)
            try:
                await self._parts.launcher.start_task(sandbox, task, log, status)
            except Permanent as failure:
                self._parts.tasks.refuse(root, entry.run, task.number, failure.message)
                entry = self._noticed(entry, failure, f"task '{task.name}' was not started: {failure.message}")
        self._table.change(replace(self._table.entry(entry.workspace), tasks_started_at=self._clock.now()))

    def _noticed(self, entry: Entry, failure: Permanent, message: str) -> Entry:
        """`entry` with a notice that a person is shown."""
        entry = self._table.entry(entry.workspace)
        if entry.setup is not None:
            notice = Notice(Level.ERROR, failure.code, message, entry.setup.file)
            entry = replace(entry, setup=replace(entry.setup, notices=(*entry.setup.notices, notice)))
            self._table.change(entry)
        return entry

    async def _signal(self, entry: Entry) -> None:
        await self._parts.launcher.terminate(self._table.sandboxes[entry.workspace])
        self._table.live(entry.workspace).signalled_at = self._clock.now()

    async def _kill(self, entry: Entry) -> None:
        """Removing a sandbox kills all in it; the step stands for itself in plans and logs."""

    async def _remove_sandbox(self, entry: Entry) -> None:
        sandbox = self._table.sandboxes.get(entry.workspace)
        if sandbox is not None:
            await self._parts.sandboxes.remove(sandbox)
            self._table.sandboxes.pop(entry.workspace, None)

    async def _detach_volume(self, entry: Entry) -> None:
        root = (await self._parts.volumes.find(entry.workspace)).root
        if root is not None:
            self._table.journal.keep_log(entry.workspace, log_file(root, entry.run))
            self._keep_tasks(entry, root)
        await self._parts.volumes.detach(entry.workspace)

    def _keep_tasks(self, entry: Entry, root: Path) -> None:
        """What is told of tasks once the volume is no longer attached."""
        tasks = entry.setup.tasks if entry.setup else ()
        facts = self._parts.tasks.facts(root, entry.run, tasks, entry.tasks_started_at, alive=False)
        for task in tasks:
            log, _ = self._parts.tasks.files(root, entry.run, task.number)
            self._table.journal.keep_log(entry.workspace, log, task.number)
        if facts:
            self._table.change(replace(self._table.entry(entry.workspace), tasks=facts))

    async def _release(self, entry: Entry) -> None:
        self._parts.secrets.forget(entry.workspace)
        reason = "stopped" if entry.reason == "stopping" else entry.reason
        self._table.update(self._clock.now(), entry, state=RunState.ENDED, reason=reason)
