"""What the workspaces loop finds in the database, and leaves there."""

from __future__ import annotations

from datetime import timedelta

import pytest

from fairwater.domain.failure import Permanent
from fairwater.domain.ids import RunNumber
from fairwater.domain.workspaces.classes import STANDARD
from fairwater.domain.workspaces.deadlines import Deadline, DeadlineKind
from fairwater.domain.workspaces.run import Progress, Source
from fairwater.domain.workspaces.workspace import Event, Phase, TransitionRejected
from fairwater.ports.catalogue import Entry, HistoryLine
from fairwater.store.records import SqlWorkspaceRecords

from .conftest import NOW, StillClock, Store


async def started(store: Store, name: str = "repo") -> Entry:
    owner = await store.account(f"owner-of-{name}")
    entry = await store.workspace(owner, name)
    async with store.database.write() as transaction:
        return await transaction.workspaces.apply(entry, Event.START, "asked for", NOW)


async def history(store: Store, entry: Entry) -> tuple[HistoryLine, ...]:
    async with store.database.read() as transaction:
        return await transaction.history.after(0, 100, None, entry.workspace.id)


async def test_a_step_writes_row_deadline_and_history(store: Store) -> None:
    entry = await started(store)
    key, run = entry.workspace.id, entry.workspace.run
    after = await store.records.record(key, run, Event.PLACED, "accepted", NOW)
    assert after is not None
    assert (after.phase, after.reason, after.since) == (Phase.CREATING, "accepted", NOW)
    record = await store.records.load(key)
    assert record is not None
    assert record.workspace == after
    assert record.deadline == Deadline(DeadlineKind.STARTUP, NOW + timedelta(seconds=120))
    assert [(line.event, line.phase) for line in await history(store, entry)] == [
        (Event.START, Phase.PENDING),
        (Event.PLACED, Phase.CREATING),
    ]
    await store.records.record(key, run, Event.READY, "running", NOW)
    record = await store.records.load(key)
    assert record is not None
    assert record.deadline is None
    assert [(change.before, change.after.phase) for change in store.told] == [
        (Phase.STOPPED, Phase.PENDING),
        (Phase.PENDING, Phase.CREATING),
        (Phase.CREATING, Phase.RUNNING),
    ]


async def test_the_word_of_an_older_run_changes_nothing(store: Store) -> None:
    entry = await started(store)
    before = await store.records.load(entry.workspace.id)
    for run in (RunNumber(0), RunNumber(2)):
        assert await store.records.record(entry.workspace.id, run, Event.PLACED, "late", NOW) is None
    assert await store.records.load(entry.workspace.id) == before
    assert len(await history(store, entry)) == 1


async def test_a_rejected_event_writes_nothing_and_tells_the_history(store: Store) -> None:
    entry = await started(store)
    with pytest.raises(TransitionRejected, match="start → pending"):
        await store.records.record(entry.workspace.id, entry.workspace.run, Event.READY, "too early", NOW)
    assert len(await history(store, entry)) == 1
    assert len(store.told) == 1


async def test_an_event_that_already_holds_writes_nothing(store: Store) -> None:
    entry = await started(store)
    run = entry.workspace.run
    await store.records.record(entry.workspace.id, run, Event.PLACED, "accepted", NOW)
    again = await store.records.record(entry.workspace.id, run, Event.PLACED, "again", NOW)
    assert again is not None
    assert again.reason == "accepted"
    assert len(await history(store, entry)) == 2


async def test_a_deletion_reaches_a_workspace_that_is_stopping(store: Store) -> None:
    entry = await started(store)
    run = entry.workspace.run
    await store.records.record(entry.workspace.id, run, Event.STOP, "stop", NOW)
    await store.records.record(entry.workspace.id, run, Event.DELETE, "delete", NOW)
    assert [line.event for line in await history(store, entry)] == [Event.START, Event.STOP, Event.DELETE]
    after = await store.records.record(entry.workspace.id, run, Event.RELEASED, "released", NOW)
    assert after is not None
    assert after.phase is Phase.DELETED


async def test_the_loop_looks_after_what_is_not_at_rest(store: Store) -> None:
    pending, running, stopped, deleted = [await started(store, name) for name in ("one", "two", "three", "four")]
    for entry, events in (
        (running, (Event.PLACED, Event.READY)),
        (stopped, (Event.STOP, Event.RELEASED)),
        (deleted, (Event.DELETE, Event.RELEASED)),
    ):
        for event in events:
            await store.records.record(entry.workspace.id, entry.workspace.run, event, "", NOW)
    expected = {pending.workspace.id, running.workspace.id, deleted.workspace.id}
    assert set(await store.records.unfinished()) == expected
    await store.records.cleared(deleted.workspace.id)
    assert set(await store.records.unfinished()) == expected - {deleted.workspace.id}
    assert await store.records.load(deleted.workspace.id) is None


async def test_what_may_be_secret_goes_with_a_cleared_workspace(store: Store) -> None:
    entry = await started(store)
    await store.records.cleared(entry.workspace.id)
    record = await store.records.load(entry.workspace.id)
    assert record is not None, "one that is not deleted is not cleared"
    for event in (Event.DELETE, Event.RELEASED):
        await store.records.record(entry.workspace.id, entry.workspace.run, event, "", NOW)
    await store.records.cleared(entry.workspace.id)
    async with store.database.read() as transaction:
        left = await transaction.workspaces.find(entry.workspace.id, None, entry.owner)
    assert left.command is None


async def test_a_request_holds_all_that_a_node_needs(store: Store) -> None:
    owner = await store.account()
    entry = await store.workspace(owner, url="https://github.com/team/tool/tree/main")
    request = await store.records.request(entry.workspace.id, entry.workspace.run)
    assert request is not None
    spec, key = request.spec, entry.workspace.id
    assert spec.source == Source("https://github.com/team/tool", "tool", "main")
    assert (spec.image, spec.limits, spec.command) == ("host", STANDARD, ("sleep", "1"))
    assert dict(spec.environment) == {
        "A": "b",
        "FAIRWATER_WORKSPACE_ID": key,
        "FAIRWATER_WORKSPACE_URL": f"http://{key}.ws",
        "FAIRWATER_CONTEXT_URL": "https://github.com/team/tool/tree/main",
        "FAIRWATER_REPO_ROOT": "/workspace/tool",
        "GITPOD_WORKSPACE_ID": key,
        "GITPOD_WORKSPACE_URL": f"http://{key}.ws",
        "GITPOD_REPO_ROOT": "/workspace/tool",
    }
    assert not request.local_allowed


async def test_a_class_that_is_no_longer_configured_is_named(store: Store) -> None:
    entry = await started(store)
    without = SqlWorkspaceRecords(store.database, {}, str, StillClock(), lambda workspace, progress: None)
    with pytest.raises(Permanent, match="standard") as refused:
        await without.request(entry.workspace.id, entry.workspace.run)
    assert refused.value.code == "no_such_class"


async def test_progress_is_told_and_ends_with_its_phase(store: Store) -> None:
    entry = await started(store)
    step = Progress("cloning", 1, None, "objects")
    await store.records.note_progress(entry.workspace.id, step)
    assert store.progress == [(entry.workspace.id, step)]
    async with store.database.read() as transaction:
        seen = await transaction.workspaces.find(entry.workspace.id, None, entry.owner)
    assert seen.progress == step
    await store.records.record(entry.workspace.id, entry.workspace.run, Event.FAIL, "broken", NOW)
    assert entry.workspace.id not in store.database.progress
