"""The database behind `ports/database.py`: one transaction a block, and what it changed told to others after it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from sqlalchemy.exc import OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from fairwater.domain.failure import Temporary
from fairwater.domain.ids import WorkspaceId
from fairwater.domain.workspaces.deadlines import DeadlinePolicy
from fairwater.domain.workspaces.run import Progress
from fairwater.ports.catalogue import Committed
from fairwater.store.accounts import SqlAccounts, SqlOrganisations
from fairwater.store.catalogue import SqlCatalogue, SqlHistory
from fairwater.store.credentials import SqlIdempotencyKeys, SqlLoginCodes, SqlTokens
from fairwater.store.engine import READ_ONLY, open_engine


class SqlTransaction:
    """One transaction, and what is to be told once it is in the database."""

    def __init__(
        self, connection: AsyncConnection, deadlines: DeadlinePolicy, progress: dict[WorkspaceId, Progress]
    ) -> None:
        self.connection = connection
        self.changes: list[Committed] = []
        self.workspaces = SqlCatalogue(connection, deadlines, progress, self.changes.append)
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

    def __init__(self, engine: AsyncEngine, deadlines: DeadlinePolicy, told: Callable[[Committed], None]) -> None:
        self.deadlines = deadlines
        self.progress: dict[WorkspaceId, Progress] = {}
        self._told = told
        self._writing_engine = engine
        self._reading_engine = engine.execution_options(**{READ_ONLY: True})
        # SQLite has one writer. Waiting here is in order and wakes at once; its own waiting sleeps in growing steps.
        self._turn = asyncio.Lock()

    @classmethod
    def open(cls, url: str, deadlines: DeadlinePolicy, told: Callable[[Committed], None]) -> SqlDatabase:
        """Raises Permanent: those of `open_engine`."""
        return cls(open_engine(url), deadlines, told)

    @asynccontextmanager
    async def read(self) -> AsyncIterator[SqlTransaction]:
        with _busy_is_temporary():
            async with self._reading_engine.connect() as connection:
                yield SqlTransaction(connection, self.deadlines, self.progress)

    @asynccontextmanager
    async def write(self) -> AsyncIterator[SqlTransaction]:
        with _busy_is_temporary():
            async with self._turn, self._writing_engine.begin() as connection:
                transaction = SqlTransaction(connection, self.deadlines, self.progress)
                yield transaction
        for change in transaction.changes:
            if change.after.phase is not change.before:
                self.progress.pop(change.after.id, None)
            self._told(change)

    async def close(self) -> None:
        await self._writing_engine.dispose()


class _busy_is_temporary:  # noqa: N801 - used like a function
    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, PoolTimeout) or (isinstance(error, OperationalError) and "locked" in str(error.orig)):
            raise Temporary(
                "the database is busy with other writers: try again in a moment", code="database_busy", delay_s=1.0
            ) from error
