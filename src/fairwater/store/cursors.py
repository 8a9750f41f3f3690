"""Cursors of paged lists: where the page before ended, in a form that nobody is meant to take apart."""

from __future__ import annotations

import base64
import binascii
import json
from datetime import datetime

from fairwater.domain.failure import Permanent


def write_cursor(*values: str) -> str:
    return base64.urlsafe_b64encode(json.dumps(values).encode()).decode().rstrip("=")


def read_cursor(cursor: str, length: int) -> tuple[str, ...]:
    """The `length` values of a cursor.

    Raises:
        Permanent: `bad_cursor`, for anything this module has not written.
    """
    try:
        values = json.loads(base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)))
    except (binascii.Error, ValueError, RecursionError):
        raise bad_cursor() from None
    if not isinstance(values, list) or len(values) != length or not all(isinstance(value, str) for value in values):
        raise bad_cursor()
    return tuple(values)


def read_moment(text: str) -> datetime:
    """Raises Permanent: `bad_cursor`."""
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise bad_cursor() from None
    if moment.tzinfo is None:
        raise bad_cursor()
    return moment


def bad_cursor() -> Permanent:
    return Permanent("the cursor is not one that a list gave out: begin again without it", code="bad_cursor")
