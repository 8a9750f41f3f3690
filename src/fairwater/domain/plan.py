"""What a planner hands to an executor: steps that leave no choice, or what is being waited for."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Generic, TypeVar

S = TypeVar("S")


@dataclass(frozen=True, slots=True)
class Waiting:
    """A plan without steps says what it waits for, since when, and when to look again at the latest."""

    what: str
    since: datetime
    until: datetime | None = None


@dataclass(frozen=True, slots=True)
class Plan(Generic[S]):
    """`steps` in order, each idempotent; `cause` is the id of what led to them."""

    steps: tuple[S, ...] = ()
    waiting: Waiting | None = None
    cause: str = ""
