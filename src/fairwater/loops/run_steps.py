"""The node agent's loop over one run: what `domain.workspaces.run.plan_run` plans, done through the ports.

Makes no choices of order. Each step may be interrupted and repeated.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path

import structlog

from fairwater.domain.failure import Permanent, Temporary
from fairwater.domain.ids import RunNumber, WorkspaceId
from fairwater.domain.plan import Plan
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
from fairwater.loops.run_table import RunTable
from fairwater.ports.clock import Clock
from fairwater.ports.content import Content
from fairwater.ports.sandboxes import Admission, Launcher, Sandboxes, Tenant
from fairwater.ports.volumes import Volumes


def log_file(root: Path, run: RunNumber) -> Path:
    """Where on a volume the log of a run is kept: within the workspace's own quota, out of the workspace's sight."""
    return root / "state" / f"run-{run}.log"


class RunReconciler:
    name = "runs"

    def __init__(
        self,
        table: RunTable,
        volumes: Volumes,
        sandboxes: Sandboxes,
        launcher: Launcher,
        content: Content,
        clock: Clock,
        grace_s: float,
    ) -> None:
        self._table = table
        self._volumes = volumes
        self._sandboxes = sandboxes
        self._launcher = launcher
        self._content = content
        self._clock = clock
        self._grace_s = grace_s
        self._log = structlog.get_logger().bind(loop=self.name)
        self._steps: dict[RunStep, Callable[[Entry], Awaitable[None]]] = {
            RunStep.CREATE_VOLUME: self._create_volume,
            RunStep.ATTACH_VOLUME: self._attach_volume,
            RunStep.BRING_CONTENT: self._bring_content,
            RunStep.CLAIM_SANDBOX: self._claim_sandbox,
            RunStep.ADMIT: self._admit,
            RunStep.LAUNCH: self._launch,
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
        volume = await self._volumes.find(key)
        content_ready = entry.content_ready
        if volume.root is not None and not content_ready:
            content_ready = self._content.ready(volume.root)
        sandbox = self._table.sandboxes.get(key)
        state = sandbox.state if sandbox else None
        if entry.wish is Wish.RUNNING and (state is SandboxState.DEAD or (entry.launched and sandbox is None)):
            reason = "its first process was killed" if sandbox else "its node was restarted"
            self._update(entry, wish=Wish.STOPPED, state=RunState.STOPPING, reason=reason)
        signalled_at, quiet = self._table.live(key).signalled_at, False
        if signalled_at is not None and sandbox is not None and state is SandboxState.LAUNCHED:
            quiet = await self._launcher.alive(sandbox) == 0
        return NodeView(volume.state, content_ready, state, signalled_at, quiet)

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
        volume = await self._volumes.find(entry.workspace)
        if volume.root is None:
            raise Temporary(f"the volume of {entry.workspace} is not attached", code="volume_detached", delay_s=0.1)
        return volume.root

    async def _create_volume(self, entry: Entry) -> None:
        await self._volumes.create(entry.workspace, entry.spec.limits.disk)

    async def _attach_volume(self, entry: Entry) -> None:
        await self._volumes.attach(entry.workspace, entry.spec.limits.disk)

    async def _bring_content(self, entry: Entry) -> None:
        live = self._table.live(entry.workspace)
        source = entry.spec.source

        def report(progress: Progress) -> None:
            live.progress = progress
            self._table.publish(self._table.entry(entry.workspace))

        reason = f"cloning {source.clone_url}" if source else "preparing the volume"
        self._update(entry, state=RunState.INITIALIZING, reason=reason)
        root = await self._root(entry)
        live.bringing = asyncio.ensure_future(
            self._content.bring(entry.workspace, entry.run, source, root, log_file(root, entry.run), report)
        )
        try:
            await asyncio.wait({live.bringing})
            if live.bringing.cancelled():
                raise Temporary("stopped while its content was brought in", code="interrupted", delay_s=0)
            live.bringing.result()
        finally:
            # Interrupted from outside, the helper must not go on by itself.
            live.bringing.cancel()
            live.bringing = live.progress = None

    async def _claim_sandbox(self, entry: Entry) -> None:
        tenant = Tenant(entry.workspace, entry.run)
        self._table.sandboxes[entry.workspace] = await self._sandboxes.claim(tenant, entry.spec.image)

    async def _admit(self, entry: Entry) -> None:
        source = entry.spec.source
        admission = Admission(
            limits=entry.spec.limits,
            volume=await self._root(entry),
            environment=dict(entry.spec.environment),
            cwd=f"/workspace/{source.name}" if source else "/workspace",
        )
        sandbox = self._table.sandboxes[entry.workspace]
        await self._sandboxes.admit(sandbox, admission)
        self._table.sandboxes[entry.workspace] = replace(sandbox, state=SandboxState.ADMITTED)

    async def _launch(self, entry: Entry) -> None:
        if self._table.entry(entry.workspace).wish is not Wish.RUNNING:
            raise Temporary("stopped before its first process", code="interrupted", delay_s=0)
        sandbox = self._table.sandboxes[entry.workspace]
        await self._launcher.launch(sandbox, entry.spec.command, log_file(await self._root(entry), entry.run))
        self._table.sandboxes[entry.workspace] = replace(sandbox, state=SandboxState.LAUNCHED)
        entry = replace(self._table.entry(entry.workspace), launched=True, content_ready=True)
        if entry.wish is Wish.RUNNING:
            self._update(entry, state=RunState.RUNNING, reason="running")
        else:  # a stop came meanwhile
            self._table.change(entry)

    async def _signal(self, entry: Entry) -> None:
        await self._launcher.terminate(self._table.sandboxes[entry.workspace])
        self._table.live(entry.workspace).signalled_at = self._clock.now()

    async def _kill(self, entry: Entry) -> None:
        """Removing a sandbox kills all in it; the step stands for itself in plans and logs."""

    async def _remove_sandbox(self, entry: Entry) -> None:
        sandbox = self._table.sandboxes.get(entry.workspace)
        if sandbox is not None:
            await self._sandboxes.remove(sandbox)
            self._table.sandboxes.pop(entry.workspace, None)

    async def _detach_volume(self, entry: Entry) -> None:
        root = (await self._volumes.find(entry.workspace)).root
        if root is not None:
            self._table.journal.keep_log(entry.workspace, log_file(root, entry.run))
        await self._volumes.detach(entry.workspace)

    async def _release(self, entry: Entry) -> None:
        reason = "stopped" if entry.reason == "stopping" else entry.reason
        self._update(entry, state=RunState.ENDED, reason=reason)
