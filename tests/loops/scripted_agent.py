"""`ports.agent.RunAgent` without a node: runs come up and go down as scripted, and the agent can be away meanwhile."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field, replace

from fairwater.domain.failure import Permanent, Temporary
from fairwater.domain.ids import RunNumber, WorkspaceId
from fairwater.domain.workspaces.run import Progress, RunFacts, RunState
from fairwater.ports.agent import API_VERSION, Hello, StartRequest
from fairwater.ports.clock import Clock


@dataclass
class Script:
    """How long each part of a run takes, in seconds; None: for ever. `failure`: why runs end before they are up."""

    start_s: float | None = 0.2
    init_s: float | None = 1.0
    stop_s: float | None = 0.5
    kill_s: float | None = 0.1
    failure: str | None = None
    progress: tuple[Progress, ...] = ()


@dataclass
class ScriptedAgent:
    """What it was told and did is in `begun`, `stops` and `deleted`. Runs go on while it is away."""

    clock: Clock
    script: Script = field(default_factory=Script)
    known: dict[WorkspaceId, RunFacts] = field(default_factory=dict)
    begun: list[tuple[WorkspaceId, RunNumber]] = field(default_factory=list)
    stops: list[tuple[WorkspaceId, RunNumber, bool]] = field(default_factory=list)
    deleted: list[WorkspaceId] = field(default_factory=list)
    asked: int = 0
    streams: int = 0
    """Streams of changes that are open."""
    refuse_start: Permanent | None = None
    lose_replies: int = 0
    """Of how many of the next starts and stops the reply gets lost."""
    _away: bool = False
    _listeners: set[asyncio.Queue[RunFacts | Exception | None]] = field(default_factory=set)
    _lives: dict[WorkspaceId, asyncio.Task[None]] = field(default_factory=dict)
    _killed: set[WorkspaceId] = field(default_factory=set)

    # --- the port ---------------------------------------------------------------------------------------------------

    async def hello(self) -> Hello:
        self._answer()
        return Hello(API_VERSION, "0.1.0", "node", "boot", "scripted")

    async def runs(self) -> tuple[RunFacts, ...]:
        self.asked += 1
        self._answer()
        return tuple(self.known.values())

    async def start_run(self, workspace: WorkspaceId, request: StartRequest) -> RunFacts:
        self._answer()
        self._fence(workspace, request.run)
        if self.refuse_start:
            raise self.refuse_start
        before = self.known.get(workspace)
        if before is None or before.run < request.run:
            if before is not None and before.state is not RunState.ENDED:
                raise Temporary(f"run {before.run} is still being released", code="run_alive", delay_s=0.25)
            self.begun.append((workspace, request.run))
            self._killed.discard(workspace)
            self._tell(RunFacts(workspace, request.run, RunState.STARTING, "starting", self.clock.now()))
            self._live(workspace, self._go_up)
        self._reply()
        return self.known[workspace]

    async def stop_run(self, workspace: WorkspaceId, run: RunNumber, *, force: bool = False) -> RunFacts | None:
        self._answer()
        self._fence(workspace, run)
        self.stops.append((workspace, run, force))
        facts = self.known.get(workspace)
        if facts is None or facts.run < run:
            return None
        if facts.state not in {RunState.STOPPING, RunState.ENDED}:
            self._change(workspace, RunState.STOPPING, "stopping")
            self._live(workspace, self._go_down)
        if force and self.known[workspace].state is not RunState.ENDED and workspace not in self._killed:
            self._killed.add(workspace)
            self._live(workspace, self._be_killed)
        self._reply()
        return self.known[workspace]

    async def delete_volume(self, workspace: WorkspaceId, run: RunNumber) -> None:
        self._answer()
        self._fence(workspace, run)
        facts = self.known.get(workspace)
        if facts is not None and facts.state is not RunState.ENDED:
            raise Permanent(f"run {facts.run} still holds the volume", code="run_alive")
        self.known.pop(workspace, None)
        self.deleted.append(workspace)

    async def changes(self) -> AsyncIterator[RunFacts]:
        self._answer()
        queue: asyncio.Queue[RunFacts | Exception | None] = asyncio.Queue()
        self._listeners.add(queue)
        self.streams += 1
        try:
            while (item := await queue.get()) is not None:
                if isinstance(item, Exception):
                    raise item
                yield item
        finally:
            self._listeners.discard(queue)
            self.streams -= 1

    # --- the script -------------------------------------------------------------------------------------------------

    def leave(self) -> None:
        """Nobody is answered any more; streams break."""
        self._away = True
        self.break_streams(_no_answer())

    def come_back(self) -> None:
        self._away = False

    def break_streams(self, failure: Exception | None = None) -> None:
        """Ends every open stream, by `failure` where one is given."""
        for queue in tuple(self._listeners):
            queue.put_nowait(failure)

    def hold(self, facts: RunFacts) -> None:
        """The node knows of this run, whoever asked for it."""
        self._tell(facts)

    def forget(self, workspace: WorkspaceId) -> None:
        """The node loses what it knew of the workspace, without a word."""
        self.known.pop(workspace)

    async def close(self) -> None:
        for task in self._lives.values():
            task.cancel()
        await asyncio.gather(*self._lives.values(), return_exceptions=True)

    async def _go_up(self, workspace: WorkspaceId) -> None:
        script = self.script
        await _pass(script.start_s)
        self._change(workspace, RunState.INITIALIZING, "cloning")
        for progress in script.progress:
            self._tell(replace(self.known[workspace], progress=progress))
        await _pass(script.init_s)
        if script.failure:
            self._change(workspace, RunState.STOPPING, script.failure, script.failure)
            await self._go_down(workspace)
        else:
            self._change(workspace, RunState.RUNNING, "running")

    async def _go_down(self, workspace: WorkspaceId) -> None:
        await _pass(self.script.stop_s)
        facts = self.known[workspace]
        self._change(workspace, RunState.ENDED, facts.failure or "stopped", facts.failure)

    async def _be_killed(self, workspace: WorkspaceId) -> None:
        await _pass(self.script.kill_s)
        facts = self.known[workspace]
        self._change(workspace, RunState.ENDED, facts.failure or "killed", facts.failure)

    def _live(self, workspace: WorkspaceId, how: Callable[[WorkspaceId], Awaitable[None]]) -> None:
        """The run's life goes on this way, and no other."""

        async def life() -> None:
            await how(workspace)

        if (former := self._lives.get(workspace)) is not None:
            former.cancel()
        self._lives[workspace] = asyncio.create_task(life())

    def _change(self, workspace: WorkspaceId, state: RunState, reason: str, failure: str | None = None) -> None:
        facts = self.known[workspace]
        now = self.clock.now()
        self._tell(replace(facts, state=state, reason=reason, since=now, failure=failure, progress=None))

    def _tell(self, facts: RunFacts) -> None:
        before = self.known.get(facts.workspace)
        revision = before.revision + 1 if before is not None and before.run == facts.run else 1
        self.known[facts.workspace] = replace(facts, revision=revision)
        if not self._away:
            for queue in tuple(self._listeners):
                queue.put_nowait(self.known[facts.workspace])

    def _answer(self) -> None:
        if self._away:
            raise _no_answer()

    def _reply(self) -> None:
        if self.lose_replies:
            self.lose_replies -= 1
            raise Temporary("the node agent's answer was lost", code="agent_away", delay_s=0.5)

    def _fence(self, workspace: WorkspaceId, run: RunNumber) -> None:
        facts = self.known.get(workspace)
        if facts is not None and run < facts.run:
            raise Permanent(f"run {run} is over: this node has seen run {facts.run}", code="stale_run")


def _no_answer() -> Temporary:
    return Temporary("the node agent does not answer", code="agent_away", delay_s=0.5)


async def _pass(seconds: float | None) -> None:
    if seconds is None:
        await asyncio.Event().wait()
    else:
        await asyncio.sleep(seconds)
