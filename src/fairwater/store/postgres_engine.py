"""How a connection to PostgreSQL is set up, and what its errors mean. Decides nothing about tables or transactions.

Every wait has an end, on both sides: the server ends what takes too long, and where the server itself does not answer,
the client gives up (`postgres.py`). A password is never part of a message: libpq leaves it out, and statements are told
without their parameters.
"""

from __future__ import annotations

import os
import re
import socket
import threading
from contextlib import suppress
from typing import Any

from sqlalchemy import Engine, create_engine, event
from sqlalchemy.engine import URL
from sqlalchemy.exc import DataError, DBAPIError, InterfaceError, OperationalError

from fairwater.domain.failure import Permanent, Temporary

CONNECTIONS = 10
"""Per server. PostgreSQL allows 100 unless told otherwise, so that several servers and an operator find room."""
CONNECT_S = 3
STATEMENT_S = 5.0
ANSWER_S = STATEMENT_S + 1
"""How long an answer may take: the server has ended the statement before, unless it is stopped or out of reach."""
_ADDRESS = re.compile(
    r"(?:connection (?:failed|is bad): )?connection to server (?:at|on socket) \"[^\"]*\"(?:, port \d+)? failed: "
)
_LOCK_S = 3.0
_IDLE_IN_TRANSACTION_S = 30.0
_WAITS_LOCK_S = 10.0
_LINE = "fairwater_line"
_NO_RIGHT = "42501"
_REFUSED = {"28000", "28P01", "3D000", _NO_RIGHT}
"""invalid authorisation, invalid password, no such database, insufficient privilege
(https://www.postgresql.org/docs/15/errcodes-appendix.html)"""
_REFUSALS = (
    "authentication failed", "does not exist", "no pg_hba.conf entry", "no password supplied",
    "is not permitted to log in", "permission denied for database",
    "invalid connection option", "invalid sslmode value", "does not support SSL", "certificate verify failed",
)  # fmt: skip
_BUSY = {"40001", "40P01", "55P03", "57014"}
"""serialization failure, deadlock, lock not available, query cancelled"""
_AWAY_CLASSES = {"08", "53", "57", "58"}
"""connection exception, insufficient resources, operator intervention, system error"""


def connection_options() -> dict[str, Any]:
    """For a connection that notices within 20 s that the other machine is gone."""
    return {
        "application_name": "fairwater",
        "connect_timeout": CONNECT_S,
        "keepalives_idle": 10,
        "keepalives_interval": 3,
        "keepalives_count": 3,
        "tcp_user_timeout": 15_000,
    }


def open_engine(url: URL, *, waits: bool) -> Engine:
    """Every transaction is begun and ended by its own statements: the driver begins none."""
    engine = create_engine(
        url,
        pool_size=CONNECTIONS,
        max_overflow=0,
        pool_reset_on_return=None,
        pool_use_lifo=True,  # the one used last has its statements prepared
        hide_parameters=True,
        isolation_level="READ COMMITTED" if waits else "AUTOCOMMIT",
        connect_args=connection_options(),
    )
    limits_s = (0.0, _WAITS_LOCK_S, 0.0) if waits else (STATEMENT_S, _LOCK_S, _IDLE_IN_TRANSACTION_S)

    def prepare(connection: Any, record: Any) -> None:
        # A second descriptor of the connection stays its own until it is closed here, whatever the driver does.
        line = socket.socket(fileno=os.dup(connection.pgconn.socket))
        # Nobody can `cut` it yet, and a server that stops right now would keep the thread for as long as it is stopped.
        overdue = threading.Timer(CONNECT_S, _shut, [line])
        overdue.start()
        try:
            _limit(connection, limits_s)
        except BaseException:
            line.close()
            connection.close()
            raise
        finally:
            overdue.cancel()
        record.info[_LINE] = line

    def closed(_connection: Any, record: Any) -> None:
        line = record.info.pop(_LINE, None)
        if line is not None:
            line.close()

    event.listen(engine, "connect", prepare)
    event.listen(engine, "close", closed)
    return engine


def cut(info: dict[Any, Any]) -> None:
    """Ends the connection under whoever waits for its answer, in whichever thread. `info` is the connection's."""
    line: socket.socket | None = info.get(_LINE)
    if line is not None:
        _shut(line)


def _shut(line: socket.socket) -> None:
    with suppress(OSError):  # it has ended by itself
        line.shutdown(socket.SHUT_RDWR)


def _limit(connection: Any, limits_s: tuple[float, float, float]) -> None:
    names = ("statement_timeout", "lock_timeout", "idle_in_transaction_session_timeout")
    settings = (f"SET {name} = {int(limit_s * 1000)}" for name, limit_s in zip(names, limits_s, strict=True))
    with connection.cursor() as cursor:
        cursor.execute("; ".join(settings))
    if not connection.autocommit:
        connection.commit()


def failure_of(error: DBAPIError) -> Temporary | Permanent | None:
    """What `error` means for who asked; None for a bug."""
    state = getattr(error.orig, "sqlstate", None)
    if state in _REFUSED:
        return Permanent(f"the database refuses this server: {reason_of(error)}", code="database_refused")
    if state in _BUSY:
        return Temporary(f"the database is busy ({reason_of(error)}): try again in a moment", code="database_busy")
    if isinstance(error, DataError):
        return Permanent(f"the database cannot hold this: {reason_of(error)}", code="bad_value")
    if error.connection_invalidated or (state is not None and state[:2] in _AWAY_CLASSES):
        return away(reason_of(error))
    if state is None and isinstance(error, (OperationalError, InterfaceError)):
        return away(reason_of(error))
    return None


def refusal_of(error: DBAPIError) -> Permanent | None:
    """While connecting there is no code of an error to go by, only what it says."""
    reason = reason_of(error)
    if getattr(error.orig, "sqlstate", None) == _NO_RIGHT:
        return Permanent(
            f"the database refuses this server: {reason}; let the role in server.database_url own the database",
            code="database_refused",
        )
    if any(word in reason for word in _REFUSALS):
        return Permanent(
            f"the database refuses this server: {reason}; see server.database_url", code="database_refused"
        )
    return None


def away(reason: str) -> Temporary:
    return Temporary(
        f"the database is away ({reason}): nothing was lost, try again in a moment", code="database_away", delay_s=1.0
    )


def reason_of(error: DBAPIError) -> str:
    """The first line of what the driver says, without the statement and the server's address: callers see it."""
    lines = _ADDRESS.sub("", str(error.orig)).strip().splitlines()
    return lines[0][:200] if lines else type(error.orig).__name__
