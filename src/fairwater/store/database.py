"""The database behind `ports/database.py`: one transaction a block, and what it changed told to others after it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from secrets import token_hex

from sqlalchemy import Engine, text

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
            yield SqlTransaction(connection, self.deadlines, self.seen, self.vault, writing=False)

    @asynccontextmanager
    async def write(self) -> AsyncIterator[SqlTransaction]:
        async with self.connections.write() as connection:
            transaction = SqlTransaction(connection, self.deadlines, self.seen, self.vault, writing=True)
            yield transaction
        for change in transaction.changes:
            self._tell(change)

    async def ping(self) -> None:
        """Raises Temporary: `database_away`, `database_busy`."""
        async with self.connections.read() as connection:
            await connection.execute(text("SELECT 1"))

    async def follow(self) -> None:
        """Tells of what other servers commit, `elsewhere`, until cancelled."""
        if self._listener is None:
            await asyncio.Event().wait()
        else:
            await self._listener.run()

    async def close(self) -> None:
        await self.connections.close()

    def _tell(self, change: Committed) -> None:
        self.seen.changed(change)
        self._told(change)
