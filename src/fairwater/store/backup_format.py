"""A backup's form: lines of JSON, compressed; the same from every kind of database. Knows no connection.

The first line says what it is and which revision of the tables it has. For each table follow its columns and then its
rows, in an order in which they can be inserted; the last line has the number of rows of each table and the SHA-256 of
all lines before it. What is not whole, or was changed, is told before any of it is used.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import IO, Any, NoReturn

from sqlalchemy import Column, LargeBinary, Table

from fairwater.domain.failure import Permanent
from fairwater.store.columns import UtcDateTime
from fairwater.store.schema import Row

FORMAT = "fairwater-backup"
_VERSION = 1
_LINE_BYTES_MAX = 16 * 1024 * 1024
_LEFT_OUT = frozenset({"leases", "schema_compatibility", "login_codes"})
"""What belongs to the servers that run, to the tables themselves, or ends within minutes."""
TABLES: tuple[Table, ...] = tuple(table for table in Row.metadata.sorted_tables if table.name not in _LEFT_OUT)
_OF_NAME = {table.name: table for table in TABLES}


class BackupWriter:
    """Writes to `file`, which is left open."""

    def __init__(self, file: IO[bytes], revision: str, now: datetime) -> None:
        self._zip = gzip.GzipFile(fileobj=file, mode="wb", compresslevel=6, mtime=0)
        self._digest = hashlib.sha256()
        self._counts: dict[str, int] = {}
        self._line({"format": FORMAT, "version": _VERSION, "revision": revision, "made_at": now.isoformat()})

    def table(self, table: Table) -> None:
        self._counts[table.name] = 0
        self._line({"table": table.name, "columns": [column.name for column in table.columns]})

    def rows(self, table: Table, rows: Sequence[Sequence[Any]]) -> None:
        columns = tuple(table.columns)
        for row in rows:
            self._line([_written(column, value) for column, value in zip(columns, row, strict=True)])
        self._counts[table.name] += len(rows)

    def close(self) -> None:
        self._line({"counts": self._counts, "sha256": self._digest.hexdigest()})
        self._zip.close()

    def _line(self, content: Any) -> None:
        line = json.dumps(content, separators=(",", ":")).encode() + b"\n"
        self._digest.update(line)
        self._zip.write(line)


@dataclass(frozen=True, slots=True)
class Batch:
    """Rows of one table, ready to be inserted: columns that the backup does not have are left to be empty."""

    table: Table
    rows: tuple[dict[str, Any], ...]


def check(file: IO[bytes], head: str) -> dict[str, int]:
    """Reads all of a backup from `file`, and returns the number of rows of each table. `head` is our newest revision.

    Raises:
        Permanent: `bad_backup`, `newer_backup`.
    """
    counts: dict[str, int] = {}
    for batch in read(file, head):
        counts[batch.table.name] = counts.get(batch.table.name, 0) + len(batch.rows)
    return counts


def read(file: IO[bytes], head: str, size: int = 500) -> Iterator[Batch]:
    """The rows, in batches of up to `size`. What is wrong may be found as late as at the end: `check` first."""
    file.seek(0)
    digest, counts, rows = hashlib.sha256(), dict[str, int](), list[dict[str, Any]]()
    table: Table | None = None
    columns: tuple[Column[Any], ...] = ()
    ended = False
    for number, line in enumerate(_lines(file), start=1):
        if ended:
            _refuse(number, "there is more after its end")
        content = _parsed(number, line)
        if number == 1:
            _check_header(content, head)
        elif isinstance(content, list):
            if table is None or len(content) != len(columns):
                _refuse(number, "a row does not fit its table")
            rows.append({c.name: _read(number, c, value) for c, value in zip(columns, content, strict=True)})
            counts[table.name] += 1
            if len(rows) >= size:
                yield Batch(table, tuple(rows))
                rows.clear()
        else:
            if table is not None and rows:
                yield Batch(table, tuple(rows))
                rows.clear()
            if isinstance(content, dict) and "table" in content:
                table, columns = _table(number, content, counts)
                counts[table.name] = 0
            elif content == {"counts": counts, "sha256": digest.hexdigest()}:
                ended = True
            else:
                _refuse(number, "its end does not match its content: it was changed, or damaged")
        digest.update(line)
    if not ended:
        raise Permanent("the backup ends before its end: take the whole file", code="bad_backup")


def _lines(file: IO[bytes]) -> Iterator[bytes]:
    number = 0
    try:
        with gzip.GzipFile(fileobj=file, mode="rb") as content:
            while line := content.readline(_LINE_BYTES_MAX):
                number += 1
                if not line.endswith(b"\n"):
                    _refuse(number, "a line is cut off, or longer than any that is written")
                yield line
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        _refuse(number + 1, f"it is damaged or cut off ({error})")


def _parsed(number: int, line: bytes) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        _refuse(number, "it is not JSON")


def _check_header(content: Any, head: str) -> None:
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise Permanent("this is not a backup of Fairwater: name a file of `fairwater admin backup`", code="bad_backup")
    revision = content.get("revision")
    # Revisions are numbers of four digits: they compare as text.
    if content.get("version") != _VERSION or not isinstance(revision, str) or revision > head:
        raise Permanent(
            f"the backup is of revision {revision!s:.20}, and this version knows {head} at most: a newer Fairwater has "
            "made it; restore it with that version",
            code="newer_backup",
        )


def _table(number: int, content: dict[str, Any], counts: dict[str, int]) -> tuple[Table, tuple[Column[Any], ...]]:
    name, names = content.get("table"), content.get("columns")
    table = _OF_NAME.get(name) if isinstance(name, str) else None
    if table is None or table.name in counts or not isinstance(names, list):
        _refuse(number, f"there is no table {name!s:.40}, or it comes twice")
    unknown = [column for column in names if not isinstance(column, str) or column not in table.columns]
    missing = [c.name for c in table.columns if c.name not in names and not c.nullable]
    if unknown or missing or len(set(names)) != len(names):
        _refuse(number, f"the columns of {name} are not those of this version ({[*unknown, *missing]!s:.80})")
    return table, tuple(table.columns[column] for column in names)


def _written(column: Column[Any], value: Any) -> Any:
    if value is None:
        return None
    if isinstance(column.type, LargeBinary):
        return base64.b64encode(value).decode()
    if isinstance(column.type, UtcDateTime):
        return value.isoformat()
    return value


def _read(number: int, column: Column[Any], value: Any) -> Any:
    try:
        if value is None:
            if not column.nullable:
                raise ValueError
            return None
        if isinstance(column.type, LargeBinary):
            return base64.b64decode(value, validate=True)
        if isinstance(column.type, UtcDateTime):
            moment = datetime.fromisoformat(value)
            if moment.tzinfo is None:
                raise ValueError
            return moment
        expected = column.type.python_type
        if expected in {str, int, bool} and type(value) is not expected:
            raise ValueError
    except (ValueError, TypeError):
        _refuse(number, f"{column.table.name}.{column.name} cannot be {value!s:.40}")
    return value


def _refuse(number: int, what: str) -> NoReturn:
    raise Permanent(f"the backup's line {number}: {what}. Nothing was changed", code="bad_backup")
