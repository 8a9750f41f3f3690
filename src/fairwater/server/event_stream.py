"""A workspace's history as server-sent events: from rows, so that it can be taken up where it broke off.

A frame with a sequence number is a line of the history; progress has none, for it is not kept.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Sequence
from typing import Any

from fairwater.domain.failure import Permanent
from fairwater.domain.ids import UserId, WorkspaceId
from fairwater.ports.catalogue import HistoryLine
from fairwater.server.bus import Subscription
from fairwater.server.documents import history_document, progress_document
from fairwater.server.services import Services

_LINES = 200
_KNOWN_MAX = 4096


class EventStream:
    """Of one workspace, of one owner's workspaces, or of all. `after` is the last sequence that the reader has."""

    def __init__(
        self, services: Services, after: int, owner: UserId | None, workspace: WorkspaceId | None, *ends: asyncio.Event
    ) -> None:
        self._services = services
        self._after = after
        self._owner = owner
        self._workspace = workspace
        self._ends = ends
        self._mine: dict[WorkspaceId, bool] = {}

    async def frames(self) -> AsyncGenerator[bytes]:
        ends = [asyncio.ensure_future(end.wait()) for end in self._ends]
        try:
            with self._services.bus.subscribe() as subscription:
                yield b"retry: 1000\n\n"
                while not any(end.done() for end in ends):
                    progress = subscription.take_progress()
                    lines = await self._read()
                    for line in lines:
                        yield _frame("workspace", history_document(line), line.sequence)
                    for workspace, step in progress.items():
                        if await self._shown(workspace):
                            document = {"workspace": workspace, "progress": progress_document(step)}
                            yield _frame("progress", document)
                    if len(lines) < _LINES and not await self._news(subscription, ends):
                        yield b": keep-alive\n\n"
        finally:
            for end in ends:
                end.cancel()

    async def _read(self) -> tuple[HistoryLine, ...]:
        async with self._services.database.read() as transaction:
            lines = await transaction.history.after(self._after, _LINES, self._owner, self._workspace)
        if lines:
            self._after = lines[-1].sequence
        return lines

    async def _news(self, subscription: Subscription, ends: Sequence[asyncio.Future[Any]]) -> bool:
        """Waits for something to be told; False after a while without."""
        waiting = asyncio.ensure_future(subscription.wait())
        try:
            done, _ = await asyncio.wait(
                {waiting, *ends},
                timeout=self._services.options.keep_alive_s,
                return_when=asyncio.FIRST_COMPLETED,
            )
        finally:
            waiting.cancel()
        return bool(done)

    async def _shown(self, workspace: WorkspaceId) -> bool:
        """Whether the reader may see what is told of `workspace`."""
        if self._workspace is not None or self._owner is None:
            return self._workspace in {None, workspace}
        if workspace not in self._mine:
            if len(self._mine) >= _KNOWN_MAX:
                self._mine.clear()
            self._mine[workspace] = await self._owned(workspace, self._owner)
        return self._mine[workspace]

    async def _owned(self, workspace: WorkspaceId, owner: UserId) -> bool:
        async with self._services.database.read() as transaction:
            try:
                entry = await transaction.workspaces.find(workspace, owner, owner)
            except Permanent:
                return False
        return entry.workspace.id == workspace


def _frame(kind: str, document: dict[str, Any], sequence: int | None = None) -> bytes:
    number = f"id: {sequence}\n" if sequence is not None else ""
    data = json.dumps(document, ensure_ascii=False, separators=(",", ":"))
    return f"{number}event: {kind}\ndata: {data}\n\n".encode()
