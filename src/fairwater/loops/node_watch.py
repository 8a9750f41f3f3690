"""What a node says of its runs: read as a whole, then change by change. Knows when its knowledge is stale.

Refuses to know what follows from it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import structlog

from fairwater.domain.failure import Permanent, Temporary
from fairwater.domain.ids import WorkspaceId
from fairwater.domain.reading import Known, Missing, Reading, Stale
from fairwater.domain.workspaces.run import RunFacts
from fairwater.ports.agent import RunAgent
from fairwater.ports.clock import Clock

_RECONNECT_S = 0.5


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
