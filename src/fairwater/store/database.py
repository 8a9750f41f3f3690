"""The database behind `ports/database.py`: one transaction a block, and what it changed told to others after it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from secrets import token_hex
from typing import Any, TypeVar

from sqlalchemy import Engine, Executable, text

from fairwater.domain.ids import WorkspaceId
from fairwater.domain.workspaces.deadlines import DeadlinePolicy
from fairwater.domain.workspaces.run import Progress
from fairwater.ports.catalogue import Committed
from fairwater.store.accounts import SqlAccounts, SqlOrganisations
from fairwater.store.catalogue import SqlCatalogue, SqlHistory
from fairwater.store.credentials import SqlIdempotencyKeys, SqlLoginCodes, SqlTokens
from fairwater.store.engine import Connections, Statements, open_engine
from fairwater.store.listening import Listener
from fairwater.store.postgres import PostgresConnections
from fairwater.store.secrets import SqlSecrets
from fairwater.store.seen import Seen
from fairwater.store.sqlite_engine import SqliteConnections
from fairwater.store.vault import Vault

T = TypeVar("T")


class SqlTransaction:
    """One transaction, and what is to be told once it is in the database."""

    def __init__(
        self, connection: Statements, deadlines: DeadlinePolicy, seen: Seen, vault: Vault | None, *, writing: bool
    ) -> None:
        self.connection = connection
        self.changes: list[Committed] = []
        self.workspaces = SqlCatalogue(connection, deadlines, seen, self.changes.append, writing=writing)
        self.accounts = SqlAccounts(connection)
        self.allowances = self.accounts
        self._vault = vault

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

    @property
    def secrets(self) -> SqlSecrets:
        assert self._vault is not None, "the database was opened without a vault"
        return SqlSecrets(self.connection, self._vault)


class SqlDatabase:
    """Opened on a database that `migration.upgrade` has brought up to date. `told` hears of every committed change.

    `seen` is what nodes have said last, of which nothing is kept in the database.
    """

    def __init__(
        self,
        engine: Engine,
        deadlines: DeadlinePolicy,
        told: Callable[[Committed], None],
        vault: Vault | None = None,
        server: str | None = None,
    ) -> None:
        self.deadlines = deadlines
        self.seen = Seen()
        self.server = server or token_hex(8)
        self.engine = engine
        self._told = told
        self.vault = vault
        self.connections: Connections
        self._listener: Listener | None = None
        if engine.dialect.name == "sqlite":
            self.connections = SqliteConnections(engine)
        else:
            connections = PostgresConnections(engine, self.server)
            self.connections = connections
            self._listener = Listener(engine, connections, self.server, self._tell)

    @classmethod
    def open(
        cls,
        url: str,
        deadlines: DeadlinePolicy,
        told: Callable[[Committed], None],
        vault: Vault | None = None,
        server: str | None = None,
    ) -> SqlDatabase:
        """`server` names this server among several on one database, in up to 64 characters.

        Raises:
            Permanent: those of `open_engine`.
        """
        return cls(open_engine(url), deadlines, told, vault, server)

    @property
    def progress(self) -> dict[WorkspaceId, Progress]:
        return self.seen.progress

    @property
    def shared(self) -> bool:
        """Whether several servers may use it at once."""
        return self._listener is not None

    @asynccontextmanager
    async def read(self) -> AsyncIterator[SqlTransaction]:
        async with self.connections.read() as connection:
            yield self._transaction(connection, writing=False)

    @asynccontextmanager
    async def write(self) -> AsyncIterator[SqlTransaction]:
        async with self.connections.write() as connection:
            transaction = self._transaction(connection, writing=True)
            yield transaction
        self._tell_all(transaction)

    async def reading(self, work: Callable[[SqlTransaction], Awaitable[T]]) -> T:
        return await self.connections.reading(lambda connection: work(self._transaction(connection, writing=False)))

    async def first(self, statement: Executable, parameters: Any = None) -> Any:
        """The first row of what `statement` reads, None where there is none: at less cost than in a transaction."""
        return await self.connections.first(statement, parameters)

    async def writing(self, work: Callable[[SqlTransaction], Awaitable[T]]) -> T:
        made: list[SqlTransaction] = []

        async def all_of_it(connection: Statements) -> T:
            transaction = self._transaction(connection, writing=True)
            made.append(transaction)
            return await work(transaction)

        result = await self.connections.writing(all_of_it)
        self._tell_all(made[0])
        return result

    async def ping(self) -> None:
        """Raises Temporary: `database_away`, `database_busy`."""
        await self.connections.first(text("SELECT 1"))

    async def follow(self) -> None:
        """Tells of what other servers commit, `elsewhere`, until cancelled."""
        if self._listener is None:
            await asyncio.Event().wait()
        else:
            await self._listener.run()

    async def close(self) -> None:
        await self.connections.close()

    def _transaction(self, connection: Statements, *, writing: bool) -> SqlTransaction:
        return SqlTransaction(connection, self.deadlines, self.seen, self.vault, writing=writing)

    def _tell_all(self, transaction: SqlTransaction) -> None:
        for change in transaction.changes:
            self._tell(change)

    def _tell(self, change: Committed) -> None:
        self.seen.changed(change)
        self._told(change)
