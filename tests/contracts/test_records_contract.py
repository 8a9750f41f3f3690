"""The contract of `ports.records.WorkspaceRecords`: the database, and the fake that the loops are tested with."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import pytest
from tests.loops.memory_records import MemoryRecords
from tests.servers.databases import postgres as postgres
from tests.servers.databases import postgres_url as postgres_url
from tests.servers.databases import sqlite_url as sqlite_url

from fairwater.domain.ids import RunNumber, WorkspaceId
from fairwater.domain.workspaces.classes import STANDARD
from fairwater.domain.workspaces.deadlines import Deadline, DeadlineKind, DeadlinePolicy
from fairwater.domain.workspaces.run import Progress
from fairwater.domain.workspaces.setup import Setup
from fairwater.domain.workspaces.workspace import Event, Phase, TransitionRejected, Workspace
from fairwater.ports.accounts import Role
from fairwater.ports.catalogue import Order
from fairwater.ports.records import WorkspaceRecord, WorkspaceRecords
from fairwater.store.database import SqlDatabase
from fairwater.store.records import SqlWorkspaceRecords

NOW = datetime(2022, 4, 11, 8, 0, tzinfo=UTC)
LATER = NOW + timedelta(seconds=10)
POLICY = DeadlinePolicy(startup_s=120, init_s=900, stopping_s=60)
ID, OTHER, NOBODY = WorkspaceId("abcdefghjkmn"), WorkspaceId("bcdefghjkmnp"), WorkspaceId("cdefghjkmnpq")


class StillClock:
    def now(self) -> datetime:
        return NOW


@dataclass
class Archive:
    """Records, and the way a workspace comes into them: stopped, and without a run."""

    records: WorkspaceRecords
    add: Callable[[WorkspaceId], Awaitable[None]]

    async def happen(self, *events: Event, workspace: WorkspaceId = ID, now: datetime = NOW) -> Workspace:
        """Applies the events, each to the run that the workspace has then."""
        after: Workspace | None = None
        for event in events:
            after = await self.records.record(workspace, (await self.load(workspace)).workspace.run, event, event, now)
        assert after is not None
        return after

    async def load(self, workspace: WorkspaceId = ID) -> WorkspaceRecord:
        record = await self.records.load(workspace)
        assert record is not None
        return record


@asynccontextmanager
async def in_memory(_request: pytest.FixtureRequest) -> AsyncIterator[Archive]:
    records = MemoryRecords(StillClock(), POLICY)

    async def add(workspace: WorkspaceId) -> None:
        records.add(workspace, NOW)

    yield Archive(records, add)


def in_sqlite(request: pytest.FixtureRequest) -> AbstractAsyncContextManager[Archive]:
    return in_database(request.getfixturevalue("sqlite_url"))


def in_postgres(request: pytest.FixtureRequest) -> AbstractAsyncContextManager[Archive]:
    return in_database(request.getfixturevalue("postgres_url"))


@asynccontextmanager
async def in_database(url: str) -> AsyncIterator[Archive]:
    database = SqlDatabase.open(url, POLICY, lambda change: None)
    async with database.write() as transaction:
        owner = await transaction.accounts.add("ada", Role.MEMBER, "default", NOW)

    async def add(workspace: WorkspaceId) -> None:
        order = Order(workspace, "https://example.org/team/repo", STANDARD.name, "host", None, (), False)
        async with database.write() as transaction:
            await transaction.workspaces.add(workspace, owner.id, owner.organisations[0].id, order, NOW)

    yield Archive(
        SqlWorkspaceRecords(database, {STANDARD.name: STANDARD}, str, StillClock(), lambda workspace, step: None), add
    )
    await database.close()


@pytest.fixture(params=[in_memory, in_sqlite, in_postgres], ids=["memory", "sqlite", "postgresql"])
async def archive(request: pytest.FixtureRequest) -> AsyncIterator[Archive]:
    opened: AbstractAsyncContextManager[Archive] = request.param(request)
    async with opened as archive:
        await archive.add(ID)
        yield archive


async def test_a_workspace_that_was_never_there_is_none(archive: Archive) -> None:
    assert await archive.records.load(NOBODY) is None
    assert await archive.records.record(NOBODY, RunNumber(0), Event.START, "start", NOW) is None


async def test_a_new_workspace_is_stopped_and_has_no_run(archive: Archive) -> None:
    record = await archive.load()
    assert (record.workspace.phase, record.workspace.run, record.deadline) == (Phase.STOPPED, 0, None)
    assert await archive.records.unfinished() == ()


async def test_what_was_recorded_is_loaded(archive: Archive) -> None:
    after = await archive.happen(Event.START, now=LATER)
    assert (after.phase, after.run, after.since) == (Phase.PENDING, 1, LATER)
    assert (await archive.load()).workspace == after


async def test_the_request_is_for_the_current_run(archive: Archive) -> None:
    await archive.happen(Event.START)
    first = await archive.records.request(ID, RunNumber(1))
    assert first is not None
    assert first.run == 1
    await archive.happen(Event.STOP, Event.RELEASED, Event.START)
    request = await archive.records.request(ID, RunNumber(2))
    assert request is not None
    assert request.run == 2
    assert (request.spec.image, request.spec.limits) == ("host", STANDARD)
    assert await archive.records.request(ID, RunNumber(1)) is None, "it is no longer the current run"
    assert await archive.records.request(NOBODY, RunNumber(0)) is None


@pytest.mark.parametrize(
    ("events", "deadline"),
    [
        ((Event.START,), Deadline(DeadlineKind.STARTUP, NOW + timedelta(seconds=120))),
        ((Event.START, Event.PLACED), Deadline(DeadlineKind.STARTUP, NOW + timedelta(seconds=120))),
        ((Event.START, Event.PLACED, Event.CONTENT_BEGAN), Deadline(DeadlineKind.INIT, NOW + timedelta(seconds=900))),
        ((Event.START, Event.PLACED, Event.READY), None),
        ((Event.START, Event.STOP), Deadline(DeadlineKind.STOPPING, NOW + timedelta(seconds=60))),
        ((Event.START, Event.STOP, Event.RELEASED), None),
    ],
)
async def test_each_phase_has_its_deadline(
    archive: Archive, events: tuple[Event, ...], deadline: Deadline | None
) -> None:
    await archive.happen(*events)
    assert (await archive.load()).deadline == deadline


async def test_a_deadline_is_not_granted_anew_by_the_next_phase_of_its_kind(archive: Archive) -> None:
    await archive.happen(Event.START)
    await archive.happen(Event.PLACED, now=LATER)
    assert (await archive.load()).deadline == Deadline(DeadlineKind.STARTUP, NOW + timedelta(seconds=120))


@pytest.mark.parametrize("run", [0, 2])
async def test_the_word_of_another_run_changes_nothing(archive: Archive, run: int) -> None:
    await archive.happen(Event.START)
    before = await archive.load()
    assert await archive.records.record(ID, RunNumber(run), Event.STOP, "late", LATER) is None
    assert await archive.load() == before


async def test_an_event_that_already_holds_changes_nothing(archive: Archive) -> None:
    await archive.happen(Event.START, Event.PLACED)
    before = await archive.load()
    assert await archive.records.record(ID, RunNumber(1), Event.PLACED, "again", LATER) == before.workspace
    assert await archive.load() == before


async def test_an_event_that_the_table_rejects_changes_nothing_and_tells_the_history(archive: Archive) -> None:
    await archive.happen(Event.START)
    before = await archive.load()
    with pytest.raises(TransitionRejected, match="start → pending"):
        await archive.records.record(ID, RunNumber(1), Event.READY, "too early", LATER)
    assert await archive.load() == before


async def test_a_failure_is_kept_until_the_next_start(archive: Archive) -> None:
    await archive.happen(Event.START)
    await archive.records.record(ID, RunNumber(1), Event.FAIL, "no such branch", NOW)
    assert (await archive.load()).workspace.failure == "no such branch"
    failed = await archive.happen(Event.RELEASED)
    assert (failed.phase, failed.reason) == (Phase.FAILED, "no such branch")
    assert (await archive.happen(Event.START)).failure is None


@pytest.mark.parametrize(
    ("events", "unfinished"),
    [
        ((), False),
        ((Event.START,), True),
        ((Event.START, Event.PLACED, Event.READY), True),
        ((Event.START, Event.STOP), True),
        ((Event.START, Event.STOP, Event.RELEASED), False),
        ((Event.START, Event.FAIL, Event.RELEASED), False),
        ((Event.START, Event.PLACED, Event.NODE_LOST), True),
        ((Event.DELETE,), True),
        ((Event.START, Event.DELETE, Event.RELEASED), True),
    ],
)
async def test_what_is_not_at_rest_is_unfinished(archive: Archive, events: tuple[Event, ...], unfinished: bool) -> None:
    await archive.add(OTHER)
    for event in events:
        await archive.happen(event)
    assert await archive.records.unfinished() == ((ID,) if unfinished else ())


async def test_a_deletion_while_stopping_is_kept(archive: Archive) -> None:
    await archive.happen(Event.START, Event.STOP, Event.DELETE)
    assert (await archive.load()).workspace.doomed
    assert (await archive.happen(Event.RELEASED)).phase is Phase.DELETED


async def test_a_cleared_workspace_is_gone_for_the_loop(archive: Archive) -> None:
    await archive.happen(Event.START, Event.DELETE, Event.RELEASED)
    for _ in range(2):
        await archive.records.cleared(ID)
        assert await archive.records.load(ID) is None
        assert await archive.records.unfinished() == ()


async def test_one_that_is_not_deleted_cannot_be_cleared(archive: Archive) -> None:
    await archive.happen(Event.START)
    before = await archive.load()
    await archive.records.cleared(ID)
    assert await archive.load() == before


async def test_a_setup_is_taken_for_any_workspace_and_changes_nothing_else(archive: Archive) -> None:
    await archive.happen(Event.START)
    before = await archive.load()
    for workspace in (ID, NOBODY):
        await archive.records.note_setup(workspace, Setup("host", "the default"))
    assert await archive.load() == before


async def test_progress_is_taken_for_any_workspace_and_changes_nothing_else(archive: Archive) -> None:
    await archive.happen(Event.START)
    before = await archive.load()
    for progress in (Progress("receiving objects", 1, 10, "objects"), None):
        await archive.records.note_progress(ID, progress)
        await archive.records.note_progress(NOBODY, progress)
    assert await archive.load() == before
