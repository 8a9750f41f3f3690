"""Workspaces as the API reads and writes them; the protocol belongs to one transaction (`ports/database.py`)."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from fairwater.domain.ids import OrganisationId, RunNumber, UserId, WorkspaceId
from fairwater.domain.workspaces.deadlines import Deadline
from fairwater.domain.workspaces.run import Progress
from fairwater.domain.workspaces.setup import Setup
from fairwater.domain.workspaces.workspace import Event, Phase, Workspace
from fairwater.ports.accounts import Page


@dataclass(frozen=True, slots=True)
class Order:
    """What a person asks for when creating a workspace.

    `image` is `image_asked`, else the default, which gives way to what the repository's configuration asks for.
    `local_allowed`: the repository may be a `file://` one, the image a folder or archive of the machine.
    """

    name: str
    context_url: str
    workspace_class: str
    image: str
    command: tuple[str, ...] | None
    environment: tuple[tuple[str, str], ...]
    local_allowed: bool
    image_asked: str | None = None


@dataclass(frozen=True, slots=True)
class Entry:
    """A workspace with all that people see of it; its environment is left out, for it may hold secrets.

    `organisation` is its name. `setup` is what the current or last run was set up with, None until that is decided.
    """

    workspace: Workspace
    name: str
    owner: UserId
    owner_name: str
    organisation: str
    context_url: str
    workspace_class: str
    image: str
    command: tuple[str, ...] | None
    created_at: datetime
    deadline: Deadline | None
    progress: Progress | None = None
    image_asked: str | None = None
    setup: Setup | None = None


@dataclass(frozen=True, slots=True)
class HistoryLine:
    """One line of a workspace's history. `sequence` grows over all workspaces and is never used twice."""

    sequence: int
    workspace: WorkspaceId
    owner: UserId
    event: Event
    phase: Phase
    reason: str
    run: RunNumber
    at: datetime


@dataclass(frozen=True, slots=True)
class Committed:
    """A change that is in the database now. `asked_at` is when the workspace's current run was asked for.

    `elsewhere`: another server on the same database has made it, and counts it.
    """

    before: Phase
    after: Workspace
    event: Event
    reason: str
    workspace_class: str
    asked_at: datetime | None
    at: datetime
    elsewhere: bool = False


class Catalogue(Protocol):
    """Only `owner`'s workspaces are found or listed, everybody's where `owner` is None."""

    async def find(self, reference: str, owner: UserId | None, asking: UserId) -> Entry:
        """By id, by name (`asking`'s own first), or by the beginning of an id; held until the transaction ends.

        Raises:
            Permanent: `no_such_workspace`, `ambiguous`.
        """
        ...

    async def page(self, owner: UserId | None, phase: Phase | None, limit: int, cursor: str | None) -> Page[Entry]:
        """The newest first; deleted ones only when asked for by phase. Raises Permanent: `bad_cursor`."""
        ...

    async def names_like(self, owner: UserId, beginning: str) -> frozenset[str]:
        """The names in use by `owner` that begin so."""
        ...

    async def add(
        self, workspace: WorkspaceId, owner: UserId, organisation: OrganisationId, order: Order, now: datetime
    ) -> Entry:
        """A stopped workspace without a run. Raises Permanent: `name_taken`."""
        ...

    async def apply(self, entry: Entry, event: Event, reason: str, now: datetime, *, force: bool = False) -> Entry:
        """Applies the life cycle's table, with deadline and history. `force` ends the grace of stopping at `now`.

        Raises:
            TransitionRejected: the table rejects it.
        """
        ...


class History(Protocol):
    async def after(
        self, sequence: int, limit: int, owner: UserId | None, workspace: WorkspaceId | None
    ) -> tuple[HistoryLine, ...]:
        """The lines that follow `sequence`, the oldest first."""
        ...

    async def newest(self) -> int:
        """The last sequence given out, 0 where there is none."""
        ...
