"""The control plane's loop over workspaces: asks nodes for runs, and writes down what nodes say.

Decides nothing (that is `domain.workspaces.control.plan_workspace`), nor which of several servers acts (`lease`). What
nodes say is kept by `node_watch`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from contextlib import suppress
from typing import Any

import structlog

from fairwater.domain.failure import Permanent, Temporary
from fairwater.domain.ids import WorkspaceId
from fairwater.domain.plan import Plan
from fairwater.domain.workspaces.control import (
    AskFacts,
    AskStart,
    AskStop,
    DeleteVolume,
    Record,
    Step,
    plan_workspace,
)
from fairwater.domain.workspaces.run import Progress, RunFacts, RunState
from fairwater.domain.workspaces.workspace import STARTING, Event
from fairwater.loops.lease import Holding
from fairwater.loops.node_watch import NodeWatch
from fairwater.loops.runner import LoopRunner
from fairwater.ports.agent import RunAgent
from fairwater.ports.clock import Clock
from fairwater.ports.records import WorkspaceRecord, WorkspaceRecords

_RECONNECT_S = 0.5
_SWEEP_S = 30.0
"""How often every unfinished workspace is looked at, whatever was or was not told meanwhile."""

Todo = Step | tuple[Record, ...]
"""Several records are written down as a whole: what one word of the node changes."""


class WorkspaceReconciler:
    name = "workspaces"

    def __init__(self, records: WorkspaceRecords, agent: RunAgent, watch: NodeWatch, clock: Clock) -> None:
        self._records = records
        self._agent = agent
        self._watch = watch
        self._clock = clock
        self._log = structlog.get_logger().bind(loop=self.name)

    async def observe(self, key: WorkspaceId) -> WorkspaceRecord | None:
        return await self._records.load(key)

    def plan(self, key: WorkspaceId, facts: WorkspaceRecord | None) -> Plan[tuple[Todo, WorkspaceRecord]]:
        if facts is None:
            return Plan()
        plan = plan_workspace(facts.workspace, facts.deadline, self._watch.reading(key), self._clock.now())
        return Plan(tuple((step, facts) for step in _as_a_whole(plan.steps)), plan.waiting, plan.cause)

    async def apply(self, key: WorkspaceId, step: tuple[Todo, WorkspaceRecord]) -> None:
        todo, record = step
        match todo:
            case AskFacts():
                await self._watch.ask()
            case AskStart():
                request = await self._records.request(key, record.workspace.run)
                if request is not None:  # else the workspace is at another run already
                    self._watch.learn(await self._agent.start_run(key, request))
            case AskStop(run, force):
                facts = await self._agent.stop_run(key, run, force=force)
                if facts is None:
                    self._watch.forget(key)
                    return
                self._watch.learn(facts)
                if force and facts.state is RunState.STOPPING:
                    raise Temporary(f"run {run} of {key} is still being released", code="stopping", delay_s=5.0)
            case DeleteVolume(run):
                await self._agent.delete_volume(key, run)
                await self._records.cleared(key)
                self._watch.forget(key)
            case Record(event, reason):
                await self._records.record(key, record.workspace.run, event, reason, self._clock.now())
            case (Record(event, reason), *rest):
                then = tuple((later.event, later.reason) for later in rest)
                await self._records.record(key, record.workspace.run, event, reason, self._clock.now(), then)

    async def rejected(self, key: WorkspaceId, step: tuple[Todo, WorkspaceRecord], failure: Permanent) -> None:
        todo, record = step
        if isinstance(todo, AskStart) and record.workspace.phase in STARTING:
            await self._records.record(key, record.workspace.run, Event.FAIL, failure.message, self._clock.now())
            return
        # Nothing else may fail for good: a workspace must not be given up on its way down.
        raise Temporary(failure.message, code=failure.code, delay_s=2.0)

    async def delayed(self, key: WorkspaceId, failure: Temporary) -> None:
        self._log.info("workspace_delayed", workspace=key, code=failure.code, reason=failure.message)


def _as_a_whole(steps: tuple[Step, ...]) -> tuple[Todo, ...]:
    records = tuple(step for step in steps if isinstance(step, Record))
    return (records,) if len(records) > 1 and len(records) == len(steps) else steps


class WorkspacesLoop:
    """Looks after every unfinished workspace: when poked, when its node says something, and every 30 s.

    Of several servers, the one that may act does; all of them follow the node, for their readers.
    """

    def __init__(
        self, records: WorkspaceRecords, agent: RunAgent, clock: Clock, holding: Holding | None = None
    ) -> None:
        self._records = records
        self._clock = clock
        self._holding = holding
        self._log = structlog.get_logger().bind(loop="workspaces")
        self._progress: dict[WorkspaceId, Progress | None] = {}
        # When the node answers at last, those it knows nothing of have waited for it too.
        self.watch = NodeWatch(agent, clock, self._changed, self.sweep)
        self._sweep = asyncio.Event()
        self._reconciler = WorkspaceReconciler(records, agent, self.watch, clock)
        self._runner: LoopRunner[WorkspaceId, WorkspaceRecord | None, tuple[Todo, WorkspaceRecord]] | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    def wake(self, workspace: WorkspaceId) -> None:
        if self._runner is not None and (self._holding is None or self._holding.may_act()):
            self._runner.poke(workspace)

    def sweep(self) -> None:
        """Looks at every unfinished workspace now: much may have changed at once."""
        self._sweep.set()

    async def run(self) -> None:
        """Until cancelled."""
        self._spawn(self.watch.follow())
        try:
            while True:
                if self._holding is not None:
                    await self._holding.gained()
                await self._act()
        finally:
            for task in tuple(self._tasks):
                task.cancel()

    async def _act(self) -> None:
        """Until this server may act no longer; what is under way then is interrupted, which every step stands."""
        self._runner = LoopRunner(self._reconciler, self._clock)
        acting = [asyncio.ensure_future(self._sweep_again())]
        if self._holding is not None:
            acting.append(asyncio.ensure_future(self._holding.lost()))
        try:
            await asyncio.wait(acting, return_when=asyncio.FIRST_COMPLETED)
        finally:
            runner, self._runner = self._runner, None
            for task in acting:
                task.cancel()
            with suppress(asyncio.CancelledError):
                await asyncio.gather(*acting, return_exceptions=True)
                await runner.close()

    async def _sweep_again(self) -> None:
        while True:
            delay_s = _SWEEP_S
            try:
                for workspace in await self._records.unfinished():
                    self.wake(workspace)
            except Temporary as failure:
                self._log.info("sweep_delayed", code=failure.code, reason=failure.message)
                delay_s = failure.delay_s
            except Exception:  # noqa: BLE001 - the loop's edge
                self._log.exception("sweep_failed", retry_in_s=_RECONNECT_S)
                delay_s = _RECONNECT_S
            with suppress(TimeoutError):
                async with asyncio.timeout(delay_s):
                    await self._sweep.wait()
            self._sweep.clear()

    def _changed(self, facts: RunFacts) -> None:
        if facts.setup is not None:
            self._spawn(self._records.note_setup(facts.workspace, facts.setup))
        known = self._progress.get(facts.workspace)
        if facts.progress != known:
            if facts.progress is None:
                self._progress.pop(facts.workspace, None)
            else:
                self._progress[facts.workspace] = facts.progress
            self._spawn(self._records.note_progress(facts.workspace, facts.progress))
            if facts.progress is not None and known is not None:
                return  # only the figures moved
        self.wake(facts.workspace)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
