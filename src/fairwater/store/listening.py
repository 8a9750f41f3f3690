"""Hears of what other servers commit to the same PostgreSQL, and tells it here.

A notification only says that there is something: what it is, is read from the history, after the last line heard of.
Lines become visible in their order (`postgres_session.Threaded.append`), so that after any break nothing is missed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import psycopg
import structlog
from sqlalchemy import Engine, bindparam, func, select

from fairwater.domain.failure import Permanent, Temporary
from fairwater.domain.ids import RunNumber, WorkspaceId
from fairwater.domain.workspaces.workspace import Event, Phase, Workspace
from fairwater.ports.catalogue import Committed
from fairwater.store.postgres import PostgresConnections
from fairwater.store.postgres_engine import ANSWER_S, connection_options
from fairwater.store.postgres_session import CHANNEL
from fairwater.store.schema import HISTORY, WORKSPACES

_AGAIN_S = 1.0
_QUIET_S = 2.0
"""How long to listen before asking whether the connection still is one."""
_PAUSE_S = 0.025
_LINES = 500
_OWN_MAX = 256
_EARLIER = HISTORY.alias("earlier")
_NEWEST = select(func.max(HISTORY.c.sequence))
_HEARD = (
    select(
        HISTORY,
        WORKSPACES.c.workspace_class,
        WORKSPACES.c.failure,
        WORKSPACES.c.doomed,
        WORKSPACES.c.asked_at,
        WORKSPACES.c.run.label("current_run"),
        select(_EARLIER.c.phase)
        .where(_EARLIER.c.workspace_id == HISTORY.c.workspace_id, _EARLIER.c.sequence < HISTORY.c.sequence)
        .order_by(_EARLIER.c.sequence.desc())
        .limit(1)
        .scalar_subquery()
        .label("before"),
    )
    .join(WORKSPACES, WORKSPACES.c.id == HISTORY.c.workspace_id)
    .where(HISTORY.c.sequence > bindparam("heard"))
    .order_by(HISTORY.c.sequence)
    .limit(_LINES)
)
_log = structlog.get_logger("fairwater.store")


class Listener:
    """`tell` hears of every change that another server has committed, or this one without learning of it."""

    def __init__(
        self, engine: Engine, connections: PostgresConnections, server: str, tell: Callable[[Committed], None]
    ) -> None:
        self._engine = engine
        self._connections = connections
        self._server = server
        self._tell = tell
        self._heard: int | None = None
        self.listening = asyncio.Event()
        """Set while it listens."""

    async def run(self) -> None:
        """Until cancelled; after a break of the connection, it begins where it was."""
        while True:
            reason = "the connection has ended"
            try:
                await self._listen()
            except (psycopg.Error, OSError) as error:
                reason = str(error).partition("\n")[0][:200] or f"no answer for {ANSWER_S:g} s"
            except (Temporary, Permanent) as failure:
                reason = failure.message
            if self.listening.is_set():
                self.listening.clear()
                _log.warning("database_listener_broken", reason=reason)
            await asyncio.sleep(_AGAIN_S)

    async def _listen(self) -> None:
        _, options = self._engine.dialect.create_connect_args(self._engine.url)
        connection = await psycopg.AsyncConnection.connect(**options, **connection_options(), autocommit=True)
        try:
            async with asyncio.timeout(ANSWER_S):
                await connection.execute(f"LISTEN {CHANNEL}")
            await self._look()
            self.listening.set()
            while True:
                await self._wait(connection)
                # What is told meanwhile is heard of at once: most is what this server has done itself.
                await asyncio.sleep(_PAUSE_S)
        finally:
            # Closing says goodbye without waiting for an answer.
            with suppress(psycopg.Error):
                await connection.close()

    async def _wait(self, connection: psycopg.AsyncConnection[Any]) -> None:
        """For a notification; without one, asks whether the database is still there."""
        quiet, wanted = True, self._connections.doubt.is_set()
        async for notice in connection.notifies(timeout=_QUIET_S, stop_after=1):
            quiet = False
            wanted = wanted or notice.payload != self._server
        if quiet:
            async with asyncio.timeout(ANSWER_S):
                await connection.execute("SELECT 1")
        if wanted or self._connections.doubt.is_set() or len(self._connections.own) > _OWN_MAX:
            self._connections.doubt.clear()
            await self._look()

    async def _look(self) -> None:
        """Tells what is new in the history."""
        while True:
            async with self._connections.read() as reading:
                if self._heard is None:
                    self._heard = (await reading.execute(_NEWEST)).scalar() or 0
                    return
                rows = (await reading.execute(_HEARD, {"heard": self._heard})).all()
            for row in rows:
                self._heard = row.sequence
                if row.sequence in self._connections.own:
                    self._connections.own.discard(row.sequence)
                else:
                    self._tell(_committed(row))
            if len(rows) < _LINES:
                return


def _committed(row: Any) -> Committed:
    """The change behind a row of `_HEARD`, with the workspace as it was after it as far as that is known."""
    workspace = Workspace(
        id=WorkspaceId(row.workspace_id),
        phase=Phase(row.phase),
        reason=row.reason,
        since=row.at,
        run=RunNumber(row.run),
        failure=row.failure,
        doomed=row.doomed,
    )
    return Committed(
        before=Phase(row.before) if row.before else Phase.STOPPED,
        after=workspace,
        event=Event(row.event),
        reason=row.reason,
        workspace_class=row.workspace_class,
        asked_at=row.asked_at if row.run == row.current_run else None,
        at=row.at,
        elsewhere=True,
    )
