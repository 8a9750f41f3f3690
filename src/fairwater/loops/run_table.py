"""What the node agent knows of its runs at this moment: the journal, the claimed sandboxes, the progress under way.

Decides nothing; tells every change of a run to whoever listens.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any

from fairwater.domain.failure import Permanent
from fairwater.domain.ids import RunNumber, WorkspaceId
from fairwater.domain.workspaces.run import Progress, RunFacts, RunState
from fairwater.loops.journal import Entry, Journal
from fairwater.ports.sandboxes import Sandbox

_QUEUE_MAX = 4096


@dataclass(slots=True)
class Live:
    """What is known of a run beyond its journal entry; lost at a restart, and found again or not needed."""

    progress: Progress | None = None
    hindrance: str | None = None
    """Why the last try did not succeed, while it is tried again."""
    signalled_at: datetime | None = None
    bringing: asyncio.Future[Any] | None = None
    settled: asyncio.Event = field(default_factory=asyncio.Event)
    """Set once the run is up, failed, ended, or busy with something long."""


class RunTable:
    def __init__(self, journal: Journal) -> None:
        self.journal = journal
        self.sandboxes: dict[WorkspaceId, Sandbox] = {}
        self._live: dict[WorkspaceId, Live] = {}
        self._listeners: set[asyncio.Queue[RunFacts | None]] = set()

    def entry(self, workspace: WorkspaceId) -> Entry:
        entry = self.journal.get(workspace)
        if entry is None or entry.deleted:
            raise Permanent(f"workspace {workspace} is not on this node", code="not_running")
        return entry

    def live(self, workspace: WorkspaceId) -> Live:
        return self._live.setdefault(workspace, Live())

    def begin(self, entry: Entry) -> None:
        """A new run: nothing of the one before counts."""
        self._live[entry.workspace] = Live()
        self.change(entry)

    def forget(self, workspace: WorkspaceId) -> None:
        entry = self.journal.get(workspace)
        if entry is not None:
            self.journal.bury(entry)
        self._live.pop(workspace, None)

    def change(self, entry: Entry) -> None:
        """Writes `entry` into the journal and tells it."""
        entry = replace(entry, revision=entry.revision + 1)
        self.journal.put(entry)
        if entry.state not in {RunState.STARTING, RunState.INITIALIZING}:
            self.live(entry.workspace).progress = None
        if entry.state is not RunState.STARTING:
            self.live(entry.workspace).settled.set()
        self.publish(entry)

    def update(self, now: datetime, entry: Entry, **changes: object) -> None:
        """`entry` with `changes`, which hold from `now` on."""
        self.change(replace(entry, since=now, **changes))  # type: ignore[arg-type]

    def fence(self, workspace: WorkspaceId, run: RunNumber) -> None:
        """Refuses a command of a run older than one seen, or of a deleted workspace. Raises Permanent: `stale_run`."""
        entry = self.journal.get(workspace)
        if entry is not None and entry.deleted:
            raise Permanent(
                f"workspace {workspace} was deleted on its node, and its content is gone: delete what is left of it",
                code="stale_run",
            )
        if entry is not None and run < entry.run:
            raise Permanent(
                f"run {run} of workspace {workspace} is over: this node has seen run {entry.run}", code="stale_run"
            )

    def facts(self, entry: Entry) -> RunFacts:
        live = self._live.get(entry.workspace)
        progress = live.progress if live else None
        return RunFacts(
            entry.workspace, entry.run, entry.state, entry.reason, entry.since, progress, entry.failure, entry.code,
            entry.revision, entry.setup,
        )  # fmt: skip

    def publish(self, entry: Entry) -> None:
        facts = self.facts(entry)
        for queue in tuple(self._listeners):
            if queue.full():
                # A listener that does not keep up is cut off; it reads everything anew when it comes back.
                self._listeners.discard(queue)
                queue.get_nowait()
                queue.put_nowait(None)
            else:
                queue.put_nowait(facts)

    async def changes(self) -> AsyncIterator[RunFacts]:
        queue: asyncio.Queue[RunFacts | None] = asyncio.Queue(_QUEUE_MAX)
        self._listeners.add(queue)
        try:
            while (facts := await queue.get()) is not None:
                yield facts
        finally:
            self._listeners.discard(queue)

    def close(self) -> None:
        for queue in tuple(self._listeners):
            if not queue.full():
                queue.put_nowait(None)
