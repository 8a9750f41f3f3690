"""The database behind `ports/database.py`: one transaction a block, and what it changed told to others after it."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import structlog
from sqlalchemy import Connection, Engine, RootTransaction
from sqlalchemy.exc import OperationalError

from fairwater.domain.failure import Temporary
from fairwater.domain.ids import WorkspaceId
from fairwater.domain.workspaces.deadlines import DeadlinePolicy
from fairwater.domain.workspaces.run import Progress
from fairwater.ports.catalogue import Committed
from fairwater.store.accounts import SqlAccounts, SqlOrganisations
from fairwater.store.catalogue import SqlCatalogue, SqlHistory
from fairwater.store.credentials import SqlIdempotencyKeys, SqlLoginCodes, SqlTokens
from fairwater.store.engine import READ_ONLY, InPlace, Statements, checkpoint, open_engine

_BUSY_S = 5.0
_ASK_AGAIN_S = 0.005
_CHECKPOINT_EVERY = 256
"""Commits; about 4 MiB of log."""
_log = structlog.get_logger("fairwater.store")


class SqlTransaction:
    """One transaction, and what is to be told once it is in the database."""

    def __init__(
        self,
        connection: Statements,
        deadlines: DeadlinePolicy,
        progress: dict[WorkspaceId, Progress],
        *,
        writing: bool,
    ) -> None:
        self.connection = connection
        self.changes: list[Committed] = []
        self.workspaces = SqlCatalogue(connection, deadlines, progress, self.changes.append, writing=writing)
        self.accounts = SqlAccounts(connection)
        self.allowances = self.accounts

    @property
    def history(self) -> SqlHistory:
        return SqlHistory(self.connection)

    @property
    def organisations(self) -> SqlOrganisations:
        return SqlOrganisations(self.connection)

    @property
    def tokens(self) -> SqlTokens:
        return SqlTokens(self.connection)

    @property
    def codes(self) -> SqlLoginCodes:
        return SqlLoginCodes(self.connection)

    @property
    def keys(self) -> SqlIdempotencyKeys:
        return SqlIdempotencyKeys(self.connection)


class SqlDatabase:
    """Opened on a database that `migration.upgrade` has brought up to date. `told` hears of every committed change."""

    def __init__(self, engine: Engine, deadlines: DeadlinePolicy, told: Callable[[Committed], None]) -> None:
        self.deadlines = deadlines
        self.progress: dict[WorkspaceId, Progress] = {}
        self._told = told
        self._engine = engine
        self._reading_engine = engine.execution_options(**{READ_ONLY: True})
        self._turn = asyncio.Lock()
        self._unmoved = 0
        self._checkpoint: asyncio.Task[None] | None = None

    @classmethod
    def open(cls, url: str, deadlines: DeadlinePolicy, told: Callable[[Committed], None]) -> SqlDatabase:
        """Raises Permanent: those of `open_engine`."""
        return cls(open_engine(url), deadlines, told)

    @asynccontextmanager
    async def read(self) -> AsyncIterator[SqlTransaction]:
        with self._reading_engine.connect() as connection, connection.begin():
            yield SqlTransaction(InPlace(connection), self.deadlines, self.progress, writing=False)

    @asynccontextmanager
    async def write(self) -> AsyncIterator[SqlTransaction]:
        async with self._turn:
            with self._engine.connect() as connection, await _begin(connection):
                transaction = SqlTransaction(InPlace(connection), self.deadlines, self.progress, writing=True)
                yield transaction
        for change in transaction.changes:
            if change.after.phase is not change.before:
                self.progress.pop(change.after.id, None)
            self._told(change)
        self._count_commit()

    async def close(self) -> None:
        if self._checkpoint is not None:
            await self._checkpoint
        self._engine.dispose()

    def _count_commit(self) -> None:
        self._unmoved += 1
        if self._unmoved >= _CHECKPOINT_EVERY and (self._checkpoint is None or self._checkpoint.done()):
            self._unmoved = 0
            self._checkpoint = asyncio.create_task(self._move())

    async def _move(self) -> None:
        try:
            await asyncio.to_thread(checkpoint, self._engine)
        except sqlite3.Error as error:
            # Nothing is lost: the log stays as it is, and is tried again after as many commits.
            _log.warning("checkpoint_failed", reason=str(error))


async def _begin(connection: Connection) -> RootTransaction:
    """Begins to write once no other process does. Raises Temporary: `database_busy`, after a while."""
    loop = asyncio.get_running_loop()
    give_up = loop.time() + _BUSY_S
    while True:
        try:
            return connection.begin()
        except OperationalError as error:
            if "locked" not in str(error.orig):
                raise
            if loop.time() >= give_up:
                raise Temporary(
                    f"another process has been writing to the database for {_BUSY_S:g} s: try again in a moment",
                    code="database_busy",
                ) from None
        await asyncio.sleep(_ASK_AGAIN_S)
