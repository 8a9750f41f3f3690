"""The node agent's loop over one run: what `domain.workspaces.run.plan_run` plans, done through the ports.

Makes no choices of order. Each step may be interrupted and repeated.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import structlog

from fairwater.domain.failure import Permanent, Temporary
from fairwater.domain.ids import RunNumber, WorkspaceId
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
from fairwater.loops.run_setup import RunSetup, find_user, with_user
from fairwater.loops.run_table import RunTable
from fairwater.ports.clock import Clock
from fairwater.ports.content import Content
from fairwater.ports.images import Images
from fairwater.ports.sandboxes import Launcher, Sandboxes, Tenant
from fairwater.ports.secrets import SecretKeeper
from fairwater.ports.tasks import TaskRecords
from fairwater.ports.volumes import Volumes

T = TypeVar("T")


def log_file(root: Path, run: RunNumber) -> Path:
    """Where on a volume the log of a run is kept: within the workspace's own quota, out of the workspace's sight."""
    return root / "state" / f"run-{run}.log"


@dataclass(frozen=True, slots=True)
class RunParts:
    """The ports through which a node brings runs up and down."""

    volumes: Volumes
    sandboxes: Sandboxes
    launcher: Launcher
    content: Content
    images: Images
    secrets: SecretKeeper
    tasks: TaskRecords
    clock: Clock


class RunReconciler:
    name = "runs"

    def __init__(self, table: RunTable, parts: RunParts, grace_s: float) -> None:
        self._table = table
        self._parts = parts
        self._clock = parts.clock
        self._setup = RunSetup(parts.images, parts.content, parts.secrets)
        self._grace_s = grace_s
        self._log = structlog.get_logger().bind(loop=self.name)
        self._steps: dict[RunStep, Callable[[Entry], Awaitable[None]]] = {
            RunStep.CREATE_VOLUME: self._create_volume,
            RunStep.ATTACH_VOLUME: self._attach_volume,
            RunStep.BRING_CONTENT: self._bring_content,
            RunStep.CONFIGURE: self._configure,
            RunStep.PREPARE_IMAGE: self._prepare_image,
            RunStep.FILL_HOME: self._fill_home,
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
            self._update(entry, wish=Wish.STOPPED, state=RunState.STOPPING, reason=reason)
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
            tasks_started=entry.tasks_started_at is not None or (up and not (entry.setup and entry.setup.tasks)),
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
            self._update(
                entry, wish=Wish.KILLED, state=RunState.STOPPING, reason=failure.message, failure=failure.message,
                code=failure.code,
            )  # fmt: skip
        else:
            raise failure  # a way down has no second way: the loop logs it and tries again

    async def delayed(self, key: WorkspaceId, failure: Temporary) -> None:
        entry = self._table.entry(key)
        if failure.code != "interrupted":
            self._log.info("run_delayed", workspace=key, run=entry.run, code=failure.code, reason=failure.message)
            self._table.change(replace(entry, reason=failure.message))

    def _update(self, entry: Entry, **changes: object) -> None:
        self._table.change(replace(entry, since=self._clock.now(), **changes))  # type: ignore[arg-type]

    async def _root(self, entry: Entry) -> Path:
        volume = await self._parts.volumes.find(entry.workspace)
        if volume.root is None:
            raise Temporary(f"the volume of {entry.workspace} is not attached", code="volume_detached", delay_s=0.1)
        return volume.root

    async def _create_volume(self, entry: Entry) -> None:
        await self._parts.volumes.create(entry.workspace, entry.spec.limits.disk)

    async def _attach_volume(self, entry: Entry) -> None:
        await self._parts.volumes.attach(entry.workspace, entry.spec.limits.disk)

    async def _bring_content(self, entry: Entry) -> None:
        source = entry.spec.source
        self._update(
            entry,
            state=RunState.INITIALIZING,
            reason=f"cloning {source.clone_url}" if source else "preparing the volume",
        )
        root = await self._root(entry)
        await self._unhurried(
            entry,
            self._parts.content.bring(
                entry.workspace, entry.run, source, entry.spec.dotfiles, root, log_file(root, entry.run),
                self._reporter(entry), self._setup.configure(entry),
            ),
            "stopped while its content was brought in",
        )  # fmt: skip

    async def _configure(self, entry: Entry) -> None:
        setup = await self._setup.decide(entry, await self._root(entry))
        self._table.change(replace(self._table.entry(entry.workspace), setup=setup))

    async def _prepare_image(self, entry: Entry) -> None:
        assert entry.setup is not None
        self._update(entry, state=RunState.INITIALIZING, reason=f"bringing in the image {entry.setup.image}")
        setup = await self._unhurried(
            entry, self._setup.prepare(entry, self._reporter(entry)), "stopped while its image was brought in"
        )
        self._table.change(replace(self._table.entry(entry.workspace), setup=setup))

    async def _unhurried(self, entry: Entry, work: Coroutine[Any, Any, T], stopped: str) -> T:
        """The outcome of something long, which a stop interrupts. Raises Temporary then: `interrupted`."""
        live = self._table.live(entry.workspace)
        task: asyncio.Future[T] = asyncio.ensure_future(work)
        live.bringing = task
        try:
            await asyncio.wait({task})
            if task.cancelled():
                raise Temporary(stopped, code="interrupted", delay_s=0)
            return task.result()
        finally:
            # Interrupted from outside, the helper must not go on by itself.
            task.cancel()
            live.bringing = live.progress = None

    def _reporter(self, entry: Entry) -> Callable[[Progress], None]:
        live = self._table.live(entry.workspace)

        def report(progress: Progress) -> None:
            live.progress = progress
            self._table.publish(self._table.entry(entry.workspace))

        return report

    async def _fill_home(self, entry: Entry) -> None:
        image = await self._setup.present(entry)
        volume = await self._root(entry)
        user = find_user(image, entry.setup.user if entry.setup else None) or image.user
        await self._parts.content.fill_home(entry.workspace, entry.run, volume, image, user)

    async def _claim_sandbox(self, entry: Entry) -> None:
        image = await self._setup.present(entry)
        assert entry.setup is not None
        self._table.change(replace(entry, setup=with_user(entry.setup, image)))
        tenant = Tenant(entry.workspace, entry.run)
        self._table.sandboxes[entry.workspace] = await self._parts.sandboxes.claim(tenant, image)

    async def _admit(self, entry: Entry) -> None:
        admission = self._setup.admission(entry, await self._setup.present(entry), await self._root(entry))
        sandbox = self._table.sandboxes[entry.workspace]
        await self._parts.sandboxes.admit(sandbox, admission)
        self._table.sandboxes[entry.workspace] = replace(sandbox, state=SandboxState.ADMITTED)

    async def _launch(self, entry: Entry) -> None:
        if self._table.entry(entry.workspace).wish is not Wish.RUNNING:
            raise Temporary("stopped before its first process", code="interrupted", delay_s=0)
        sandbox = self._table.sandboxes[entry.workspace]
        image = await self._setup.present(entry)
        log = log_file(await self._root(entry), entry.run)
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
            self._update(entry, state=RunState.RUNNING, reason="running")
        else:  # a stop came meanwhile
            self._table.change(entry)

    async def _start_tasks(self, entry: Entry) -> None:
        sandbox, root = self._table.sandboxes[entry.workspace], await self._root(entry)
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
        self._update(entry, state=RunState.ENDED, reason=reason)
