"""The control plane's loop over workspaces: asks nodes for runs, and writes down what nodes say.

Decides nothing (that is `domain.workspaces.control.plan_workspace`). What nodes say is kept by `NodeWatch`, which
knows when its knowledge is stale.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any

import structlog

from fairwater.domain.failure import Permanent, Temporary
from fairwater.domain.ids import WorkspaceId
from fairwater.domain.plan import Plan
from fairwater.domain.reading import Known, Missing, Reading, Stale
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
from fairwater.loops.runner import LoopRunner
from fairwater.ports.agent import RunAgent
from fairwater.ports.clock import Clock
from fairwater.ports.records import WorkspaceRecord, WorkspaceRecords

_RECONNECT_S = 0.5
_SWEEP_S = 30.0
"""How often every unfinished workspace is looked at, whatever was or was not told meanwhile."""


class NodeWatch:
    """What one node says of its runs, kept up to date by its stream of changes."""

    def __init__(
        self,
        agent: RunAgent,
        clock: Clock,
        changed: Callable[[RunFacts], None],
        answered: Callable[[], None] = lambda: None,
    ) -> None:
        self._answered = answered
        self._agent = agent
        self._clock = clock
        self._changed = changed
        self._facts: dict[WorkspaceId, RunFacts] = {}
        self._broken: str | None = "the node has not been asked yet"
        self._complete = False
        self._asked = clock.now()

    def reading(self, workspace: WorkspaceId) -> Reading[RunFacts | None]:
        if not self._complete:
            return Missing(self._broken or "the node has not been asked yet")
        facts = self._facts.get(workspace)
        if self._broken:
            return Stale(facts, self._asked, self._broken)
        # What the node has said holds until it says otherwise; that it has said nothing held when it was asked.
        return Known(facts, self._asked if facts is None else self._clock.now())

    @property
    def broken(self) -> str | None:
        """Why what is known is stale, None while it is not."""
        return self._broken

    def learn(self, facts: RunFacts) -> None:
        """Keeps `facts`, unless something of a later run is known."""
        known = self._facts.get(facts.workspace)
        if known is None or (known.run, known.revision) <= (facts.run, facts.revision):
            self._facts[facts.workspace] = facts

    def forget(self, workspace: WorkspaceId) -> None:
        self._facts.pop(workspace, None)

    async def ask(self) -> None:
        """Reads everything anew. Raises Temporary where the node does not answer."""
        asked = self._clock.now()
        answer = {facts.workspace: facts for facts in await self._agent.runs()}
        for workspace in set(self._facts) - set(answer):
            del self._facts[workspace]
        for facts in answer.values():
            self.learn(facts)
        self._asked = asked

    async def follow(self) -> None:
        """Reads everything, then every change; after a break, again. Runs until cancelled."""
        log = structlog.get_logger().bind(loop="node_watch")
        while True:
            try:
                await self._follow_once()
                reason = "the node ended its stream of changes"
            except (Temporary, Permanent) as failure:
                reason = failure.message
            except Exception as bug:
                reason = f"what the node said was not understood: {bug}"
                log.exception("node_watch_failed")
            if self._broken != reason:
                log.warning("node_watch_broken", reason=reason)
            self._broken = reason
            await asyncio.sleep(_RECONNECT_S)

    async def _follow_once(self) -> None:
        """Until the stream ends."""
        changes = self._agent.changes()
        first = asyncio.ensure_future(anext(changes, None))
        try:
            # The stream is open before everything is read, so that no change falls between the two.
            await asyncio.sleep(0)
            await self.ask()
            self._broken, self._complete = None, True
            self._answered()
            for facts in tuple(self._facts.values()):
                self._changed(facts)
            change = await first
            while change is not None:
                self.learn(change)
                self._changed(change)
                change = await anext(changes, None)
        finally:
            first.cancel()
            await asyncio.gather(first, return_exceptions=True)
            await changes.aclose()  # type: ignore[attr-defined]


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

    def plan(self, key: WorkspaceId, facts: WorkspaceRecord | None) -> Plan[tuple[Step, WorkspaceRecord]]:
        if facts is None:
            return Plan()
        plan = plan_workspace(facts.workspace, facts.deadline, self._watch.reading(key), self._clock.now())
        return Plan(tuple((step, facts) for step in plan.steps), plan.waiting, plan.cause)

    async def apply(self, key: WorkspaceId, step: tuple[Step, WorkspaceRecord]) -> None:
        todo, record = step
        match todo:
            case AskFacts():
                await self._watch.ask()
            case AskStart():
                self._watch.learn(await self._agent.start_run(key, record.request))
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

    async def rejected(self, key: WorkspaceId, step: tuple[Step, WorkspaceRecord], failure: Permanent) -> None:
        todo, record = step
        if isinstance(todo, AskStart) and record.workspace.phase in STARTING:
            await self._records.record(key, record.workspace.run, Event.FAIL, failure.message, self._clock.now())
            return
        # Nothing else may fail for good: a workspace must not be given up on its way down.
        raise Temporary(failure.message, code=failure.code, delay_s=2.0)

    async def delayed(self, key: WorkspaceId, failure: Temporary) -> None:
        self._log.info("workspace_delayed", workspace=key, code=failure.code, reason=failure.message)


class WorkspacesLoop:
    """Looks after every unfinished workspace: when poked, when its node says something, and every 30 s."""

    def __init__(self, records: WorkspaceRecords, agent: RunAgent, clock: Clock) -> None:
        self._records = records
        self._log = structlog.get_logger().bind(loop="workspaces")
        self._progress: dict[WorkspaceId, Progress | None] = {}
        self.watch = NodeWatch(agent, clock, self._changed, self._node_answered)
        self._sweep = asyncio.Event()
        reconciler = WorkspaceReconciler(records, agent, self.watch, clock)
        self._runner: LoopRunner[WorkspaceId, WorkspaceRecord | None, tuple[Step, WorkspaceRecord]] = LoopRunner(
            reconciler, clock
        )
        self._tasks: set[asyncio.Task[None]] = set()

    def wake(self, workspace: WorkspaceId) -> None:
        self._runner.poke(workspace)

    async def run(self) -> None:
        """Until cancelled."""
        self._spawn(self.watch.follow())
        try:
            while True:
                delay_s = _SWEEP_S
                try:
                    for workspace in await self._records.unfinished():
                        self._runner.poke(workspace)
                except Exception:  # noqa: BLE001 - the loop's edge: the database may be away for a while
                    self._log.exception("sweep_failed", retry_in_s=_RECONNECT_S)
                    delay_s = _RECONNECT_S
                with suppress(TimeoutError):
                    async with asyncio.timeout(delay_s):
                        await self._sweep.wait()
                self._sweep.clear()
        finally:
            for task in tuple(self._tasks):
                task.cancel()
            with suppress(asyncio.CancelledError):
                await self._runner.close()

    def _node_answered(self) -> None:
        """Those it knows nothing of have waited for this too."""
        self._sweep.set()

    def _changed(self, facts: RunFacts) -> None:
        known = self._progress.get(facts.workspace)
        if facts.progress != known:
            if facts.progress is None:
                self._progress.pop(facts.workspace, None)
            else:
                self._progress[facts.workspace] = facts.progress
            self._spawn(self._records.note_progress(facts.workspace, facts.progress))
            if facts.progress is not None and known is not None:
                return  # only the figures moved
        self._runner.poke(facts.workspace)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
