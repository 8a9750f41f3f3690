"""A fact about the world, or the honest absence of one.

A fact that could not be read is never 0 and never "fine": it is `Missing`, or `Stale` with the last value known.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Generic, TypeVar

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Known(Generic[T]):
    """`value` was read at `at`."""

    value: T
    at: datetime


@dataclass(frozen=True, slots=True)
class Stale(Generic[T]):
    """Reading failed for `reason`; `value` is what was read last, at `at`."""

    value: T
    at: datetime
    reason: str


@dataclass(frozen=True, slots=True)
class Missing:
    """Nothing is known, for `reason`."""

    reason: str


Reading = Known[T] | Stale[T] | Missing
