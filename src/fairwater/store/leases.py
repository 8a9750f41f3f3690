"""Leases in the database: see `ports/leases.py`. Decides who holds one by the database's clock, and by nothing else.

SQLite is for one server alone: there, the lease goes with a lock on a file beside the database, which ends with the
process that holds it, so that nobody has to wait for the time of a server that was killed.
"""

from __future__ import annotations

import fcntl
import os
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from sqlalchemy import bindparam, func, or_, select, update
from sqlalchemy.dialects.postgresql import insert

from fairwater.ports.clock import Clock
from fairwater.ports.leases import Lease
from fairwater.store.database import SqlDatabase
from fairwater.store.engine import Statements
from fairwater.store.schema import LEASES

_HOLDS = (
    select(LEASES.c.epoch)
    .where(LEASES.c.name == bindparam("key"), LEASES.c.holder == bindparam("by"))
    .with_for_update(read=True, key_share=True)
)
"""The weakest of locks: it keeps out who takes the lease over, and never the holder's own renewal, which would find no
gap between many writers (https://www.postgresql.org/docs/15/explicit-locking.html#LOCKING-ROWS)."""
_NOBODY = ""


async def holds(connection: Statements, lease: Lease) -> bool:
    """Whether nobody has taken the lease since; nobody can before the transaction ends."""
    row = (await connection.execute(_HOLDS, {"key": lease.name, "by": lease.holder})).first()
    return row is not None and row.epoch == lease.epoch


class SqlLeases:
    """Implements `ports.leases.Leases`. `clock` counts on SQLite only, where there is but one machine."""

    def __init__(self, database: SqlDatabase, clock: Clock) -> None:
        self._database = database
        self._clock = clock
        self._files: dict[str, int] = {}

    async def acquire(self, name: str, holder: str, for_s: float) -> Lease | None:
        if not self._lock(name):
            return None
        async with self._database.write() as transaction:
            now = await self._now(transaction.connection)
            await transaction.connection.execute(
                insert(LEASES).values(name=name, holder=_NOBODY, epoch=0, expires_at=now).on_conflict_do_nothing()
            )
            free = or_(LEASES.c.expires_at <= now, LEASES.c.holder.in_((holder, _NOBODY)))
            of_name = select(LEASES.c.name).where(LEASES.c.name == name, *(() if self._alone else (free,)))
            # Waits for those who write under it still; a lease that is not free is not touched.
            if (await transaction.connection.execute(of_name.with_for_update())).first() is None:
                return None
            row = (
                await transaction.connection.execute(
                    update(LEASES)
                    .where(LEASES.c.name == name)
                    .values(holder=holder, epoch=LEASES.c.epoch + 1, expires_at=now + timedelta(seconds=for_s))
                    .returning(LEASES)
                )
            ).one()
        return _lease(row)

    async def renew(self, lease: Lease, for_s: float) -> Lease | None:
        async with self._database.write() as transaction:
            now = await self._now(transaction.connection)
            row = (
                await transaction.connection.execute(
                    update(LEASES)
                    .where(LEASES.c.name == lease.name, LEASES.c.holder == lease.holder, LEASES.c.epoch == lease.epoch)
                    .values(expires_at=now + timedelta(seconds=for_s))
                    .returning(LEASES)
                )
            ).first()
        return None if row is None else _lease(row)

    async def release(self, lease: Lease) -> None:
        """The epoch stays, so that nothing of this holder's passes for the next one's."""
        async with self._database.write() as transaction:
            await transaction.connection.execute(
                update(LEASES)
                .where(LEASES.c.name == lease.name, LEASES.c.holder == lease.holder, LEASES.c.epoch == lease.epoch)
                .values(holder=_NOBODY)
            )
        self._unlock(lease.name)

    async def held(self, name: str) -> Lease | None:
        async with self._database.read() as transaction:
            now = await self._now(transaction.connection)
            row = (await transaction.connection.execute(select(LEASES).where(LEASES.c.name == name))).first()
        if row is None or row.holder == _NOBODY or row.expires_at <= now:
            return None
        return _lease(row)

    @property
    def _alone(self) -> bool:
        return not self._database.shared

    async def _now(self, connection: Statements) -> datetime:
        if self._alone:
            return self._clock.now()
        moment: datetime = (await connection.execute(select(func.clock_timestamp()))).scalar_one()
        return moment

    def _lock(self, name: str) -> bool:
        """On SQLite, whether this process has the file's lock; always, elsewhere."""
        if not self._alone or name in self._files:
            return True
        path = Path(f"{self._database.engine.url.database}.{name}.lock")
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            return False
        self._files[name] = descriptor
        return True

    def _unlock(self, name: str) -> None:
        descriptor = self._files.pop(name, None)
        if descriptor is not None:
            os.close(descriptor)


def _lease(row: Any) -> Lease:
    return Lease(row.name, row.holder, row.epoch, row.expires_at)
