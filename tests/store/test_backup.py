"""A backup of any database, put back into any other: all of it, checked first, and settled with what nodes know."""

from __future__ import annotations

import asyncio
import gzip
import hashlib
import json
from collections.abc import AsyncIterator, Callable, Sequence
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import select

from fairwater.domain.failure import Permanent, Temporary
from fairwater.domain.ids import OrganisationId, RunNumber, WorkspaceId
from fairwater.domain.workspaces.run import RunFacts, RunState
from fairwater.domain.workspaces.secrets import Credential, CredentialKind
from fairwater.domain.workspaces.workspace import Event, Phase
from fairwater.ports.catalogue import Entry
from fairwater.ports.vault import Holder, Variable
from fairwater.store.backup import backup, restore
from fairwater.store.backup_format import TABLES
from fairwater.store.migration import newest_revision

from .conftest import NOW, Store, open_store

LATER = NOW + timedelta(hours=1)


async def no_runs() -> tuple[RunFacts, ...]:
    return ()


async def whole(store: Store) -> bytes:
    return b"".join([chunk async for chunk in backup(store.database, NOW)])


async def sent(content: bytes) -> AsyncIterator[bytes]:
    for start in range(0, len(content), 1000):
        yield content[start : start + 1000]


async def rows(store: Store) -> dict[str, list[tuple[Any, ...]]]:
    found = {}
    async with store.database.read() as transaction:
        for table in TABLES:
            selected = (await transaction.connection.execute(select(table).order_by(*table.primary_key.columns))).all()
            found[table.name] = [tuple(row) for row in selected]
    return found


async def fill(store: Store, workspaces: int = 3) -> list[Entry]:
    """Something of everything; the workspaces have run once and stopped."""
    owner = await store.account("ada")
    async with store.database.write() as transaction:
        await transaction.accounts.set_dotfiles(owner.id, "https://example.org/ada/dotfiles")
        await transaction.tokens.add(owner.id, "laptop", "0" * 64, NOW, LATER)
        await transaction.codes.add(owner.id, "1" * 64, NOW, LATER)
        await transaction.keys.claim(owner.id, "key", "2" * 64, NOW)
        token = Credential(CredentialKind.TOKEN, "git.example.org", "ada", "hush-hush")
        await transaction.secrets.put_credential(owner.id, token, None, NOW)
        team = Holder(OrganisationId(owner.organisations[0].id), organisation=True)
        await transaction.secrets.put_variable(team, Variable("NAME", "välue \N{SNOWMAN}", secret=True), NOW)
        await transaction.secrets.prove_key(NOW)
    entries = [await store.workspace(owner, f"repo-{number}") for number in range(workspaces)]
    for entry in entries:
        async with store.database.write() as transaction:
            started = await transaction.workspaces.apply(entry, Event.START, "asked for", NOW)
        await happen(store, started, Event.STOP, Event.RELEASED)
    return entries


async def happen(store: Store, entry: Entry, *events: Event) -> None:
    for event in events:
        record = await store.records.load(entry.workspace.id)
        assert record is not None
        await store.records.record(entry.workspace.id, record.workspace.run, event, event, NOW)


@pytest.fixture
async def other(empty_url: str) -> AsyncIterator[Store]:
    """Another database, of each kind, beside each."""
    from fairwater.store.migration import upgrade

    url = empty_url.replace("fairwater.db", "other.db")
    await upgrade(url)
    opened = open_store(url)
    yield opened
    await opened.database.close()


async def test_a_backup_is_the_same_everywhere_it_is_put_back(store: Store, other: Store) -> None:
    await fill(store)
    await other.workspace(await other.account("somebody-else"), "gone")
    restored = await restore(other.database, sent(await whole(store)), no_runs, LATER)
    assert await rows(other) == await rows(store)
    assert restored.rows["workspaces"] == 3
    assert restored.rows["history"] == 9
    assert "login_codes" not in restored.rows
    assert restored.unknown == ()


async def test_secrets_stay_sealed_and_open_where_they_are_put_back(store: Store, other: Store) -> None:
    entries = await fill(store)
    content = gzip.decompress(await whole(store))
    assert b"hush" not in content
    await restore(other.database, sent(gzip.compress(content)), no_runs, LATER)
    request = await other.records.request(entries[0].workspace.id, RunNumber(1))
    assert request is not None
    assert [credential.secret for credential in request.secrets.credentials] == ["hush-hush"]
    assert dict(request.secrets.environment) == {"NAME": "välue \N{SNOWMAN}"}


async def test_after_a_restoration_work_goes_on_with_numbers_that_were_never_used(store: Store, other: Store) -> None:
    entries = await fill(store)
    content = await whole(store)
    await restore(other.database, sent(content), no_runs, LATER)
    for place in (store, other):
        async with place.database.write() as transaction:
            entry = await transaction.workspaces.find(entries[0].workspace.id, None, entries[0].owner)
            await transaction.workspaces.apply(entry, Event.START, "asked for", LATER)
    async with store.database.read() as transaction:
        newest = await transaction.history.newest()
    await restore(store.database, sent(content), no_runs, LATER)
    async with store.database.write() as transaction:
        entry = await transaction.workspaces.find(entries[0].workspace.id, None, entries[0].owner)
        await transaction.workspaces.apply(entry, Event.START, "asked for", LATER)
    async with store.database.read() as transaction:
        assert await transaction.history.newest() > newest


async def test_a_backup_is_one_moment_while_others_write(store: Store) -> None:
    entries = await fill(store, workspaces=40)
    stop = asyncio.Event()

    async def write() -> None:
        number = 0
        while not stop.is_set():
            number += 1
            async with store.database.write() as transaction:
                entry = await transaction.workspaces.find(entries[number % 40].workspace.id, None, entries[0].owner)
                if entry.workspace.phase is Phase.STOPPED:
                    entry = await transaction.workspaces.apply(entry, Event.START, "asked for", NOW)
                    await transaction.workspaces.apply(entry, Event.STOP, "stop", NOW)
            await happen(store, entry, Event.RELEASED)
            await asyncio.sleep(0)

    writing = asyncio.create_task(write())
    try:
        for _ in range(5):
            content = [json.loads(line) for line in gzip.decompress(await whole(store)).splitlines()]
            tables = {line["table"]: line["columns"] for line in content if isinstance(line, dict) and "table" in line}
            table, found = "", dict[str, list[dict[str, Any]]]()
            for line in content:
                if isinstance(line, dict):
                    table = line.get("table", "")
                else:
                    found.setdefault(table, []).append(dict(zip(tables[table], line, strict=True)))
            for workspace in found["workspaces"]:
                lines = [line for line in found["history"] if line["workspace_id"] == workspace["id"]]
                assert (lines[-1]["phase"], lines[-1]["run"]) == (workspace["phase"], workspace["run"])
    finally:
        stop.set()
        await writing


def altered(content: bytes, change: Any) -> bytes:
    lines = gzip.decompress(content).splitlines(keepends=True)
    change(lines)
    return gzip.compress(b"".join(lines))


def without_end(lines: list[bytes]) -> None:
    lines.pop()


def without_a_row(lines: list[bytes]) -> None:
    lines.remove(next(line for line in lines if line.startswith(b"[")))


def with_another_name(lines: list[bytes]) -> None:
    at = next(number for number, line in enumerate(lines) if b'"ada"' in line)
    lines[at] = lines[at].replace(b'"ada"', b'"eve"')


def with_more_after_the_end(lines: list[bytes]) -> None:
    lines.append(b"[1]\n")


def with_an_unknown_table(lines: list[bytes]) -> None:
    lines.insert(1, b'{"table":"pg_authid","columns":["id"]}\n')


def with_an_unknown_column(lines: list[bytes]) -> None:
    lines[1] = lines[1].replace(b'"name"', b'"name\\"; DROP TABLE users"')


def with_a_number_for_a_text(lines: list[bytes]) -> None:
    at = next(number for number, line in enumerate(lines) if b'"ada"' in line)
    lines[at] = lines[at].replace(b'"ada"', b"7")


@pytest.mark.parametrize(
    "change",
    [
        without_end,
        without_a_row,
        with_another_name,
        with_more_after_the_end,
        with_an_unknown_table,
        with_an_unknown_column,
        with_a_number_for_a_text,
    ],
)
async def test_what_is_not_the_backup_that_was_made_changes_nothing(store: Store, change: Any) -> None:
    await fill(store)
    before = await rows(store)
    with pytest.raises(Permanent) as refused:
        await restore(store.database, sent(altered(await whole(store), change)), no_runs, LATER)
    assert refused.value.code == "bad_backup"
    assert await rows(store) == before


@pytest.mark.parametrize("content", [b"", b"hello", gzip.compress(b"hello\n"), gzip.compress(b"[" * 100_000)])
async def test_what_is_no_backup_is_refused(store: Store, content: bytes) -> None:
    with pytest.raises(Permanent) as refused:
        await restore(store.database, sent(content), no_runs, LATER)
    assert refused.value.code == "bad_backup"


@pytest.mark.parametrize("cut", [20, 200, -1, -9])
async def test_a_backup_that_was_cut_off_changes_nothing(store: Store, cut: int) -> None:
    await fill(store)
    with pytest.raises(Permanent) as refused:
        await restore(store.database, sent((await whole(store))[:cut]), no_runs, LATER)
    assert refused.value.code == "bad_backup"


def of_revision(content: bytes, revision: str, left_out: Callable[[str, str], bool] = lambda *_: False) -> bytes:
    """The backup as a version with tables of `revision` makes it, whole; `left_out` are the columns it does not know,
    and a table without any is none."""
    made, counts, table, kept = list[Any](), dict[str, int](), "", list[int]()
    for line in map(json.loads, gzip.decompress(content).splitlines()[:-1]):
        if isinstance(line, list):
            if kept:
                made.append([line[at] for at in kept])
                counts[table] += 1
        elif "table" in line:
            table = line["table"]
            kept = [at for at, column in enumerate(line["columns"]) if not left_out(table, column)]
            if kept:
                made.append({"table": table, "columns": [line["columns"][at] for at in kept]})
                counts[table] = 0
        else:
            made.append({**line, "revision": revision})
    lines = b"".join(json.dumps(line, separators=(",", ":")).encode() + b"\n" for line in made)
    end = {"counts": counts, "sha256": hashlib.sha256(lines).hexdigest()}
    return gzip.compress(lines + json.dumps(end).encode() + b"\n")


async def test_a_backup_of_a_newer_version_is_refused_and_changes_nothing(store: Store) -> None:
    await fill(store)
    before = await rows(store)
    with pytest.raises(Permanent, match="a newer Fairwater has made it") as refused:
        await restore(store.database, sent(of_revision(await whole(store), "9999")), no_runs, LATER)
    assert refused.value.code == "newer_backup"
    assert await rows(store) == before


async def test_a_backup_of_an_older_version_is_taken_and_what_it_does_not_know_is_empty(
    store: Store, other: Store
) -> None:
    await fill(store)
    unknown = {("workspaces", "image_asked"), ("users", "dotfiles_url")}

    def left_out(table: str, column: str) -> bool:
        return (table, column) in unknown or table in {"credentials", "variables", "vault_keys"}

    older = of_revision(await whole(store), "0002", left_out)
    restored = await restore(other.database, sent(older), no_runs, LATER)
    assert (restored.rows["workspaces"], "variables" in restored.rows) == (3, False)
    before, after = await rows(store), await rows(other)
    assert after["history"] == before["history"]
    assert (after["credentials"], after["variables"]) == ([], [])
    async with other.database.read() as transaction:
        account = await transaction.accounts.named("ada")
    assert account is not None
    assert account.dotfiles_url is None


async def test_a_backup_of_this_version_that_was_written_anew_is_taken(store: Store, other: Store) -> None:
    """So that a refusal of the ones above is for what was left out, and not for how they are written."""
    await fill(store)
    content = of_revision(await whole(store), newest_revision())
    await restore(other.database, sent(content), no_runs, LATER)
    assert await rows(other) == await rows(store)


async def test_a_backup_that_lacks_what_cannot_be_empty_is_refused(store: Store) -> None:
    await fill(store)
    content = of_revision(await whole(store), "0002", lambda table, column: (table, column) == ("workspaces", "image"))
    with pytest.raises(Permanent, match="image"):
        await restore(store.database, sent(content), no_runs, LATER)


async def test_runs_that_the_backup_does_not_know_are_told_and_left_alone(store: Store) -> None:
    await fill(store)

    async def nodes() -> Sequence[RunFacts]:
        return (
            RunFacts(WorkspaceId("zzzzzzzzzzzz"), RunNumber(1), RunState.RUNNING, "running", NOW),
            RunFacts(WorkspaceId("yyyyyyyyyyyy"), RunNumber(1), RunState.ENDED, "stopped", NOW),
        )

    restored = await restore(store.database, sent(await whole(store)), nodes, LATER)
    assert restored.unknown == ("zzzzzzzzzzzz",)
    assert await store.records.unfinished() == ()


async def test_a_later_run_has_all_the_time_that_a_run_has(store: Store) -> None:
    """The deadline of the run that the backup knows may have passed long ago."""
    entry, *_ = await fill(store)
    async with store.database.write() as transaction:
        found = await transaction.workspaces.find(entry.workspace.id, None, entry.owner)
        await transaction.workspaces.apply(found, Event.START, "asked for", NOW)
    await happen(store, entry, Event.PLACED)
    content, much_later = await whole(store), NOW + timedelta(days=3)

    async def nodes() -> Sequence[RunFacts]:
        return (RunFacts(entry.workspace.id, RunNumber(9), RunState.STARTING, "starting", much_later),)

    await restore(store.database, sent(content), nodes, much_later)
    record = await store.records.load(entry.workspace.id)
    assert record is not None
    assert (record.workspace.phase, record.workspace.run) == (Phase.CREATING, 9)
    assert record.deadline is not None
    assert record.deadline.at > much_later
    await happen(store, entry, Event.READY)
    assert store.told[-1].asked_at is None, "nobody knows when it was asked for"


async def test_where_the_nodes_cannot_be_asked_nothing_is_changed(store: Store) -> None:
    await fill(store)
    content = await whole(store)
    await store.account("later")
    before = await rows(store)

    async def away() -> tuple[RunFacts, ...]:
        raise Temporary("the node does not answer", code="node_away")

    with pytest.raises(Temporary, match="the node"):
        await restore(store.database, sent(content), away, LATER)
    assert await rows(store) == before


async def test_workspaces_are_what_their_node_says_of_them(store: Store) -> None:
    """What was stopped at the time of the backup runs now, in a later run, and what ran is unknown to the node."""
    stopped, running, same = await fill(store)
    for entry in (running, same):
        async with store.database.write() as transaction:
            found = await transaction.workspaces.find(entry.workspace.id, None, entry.owner)
            await transaction.workspaces.apply(found, Event.START, "asked for", NOW)
        await happen(store, entry, Event.PLACED, Event.READY)
    content = await whole(store)

    async def nodes() -> Sequence[RunFacts]:
        return (
            RunFacts(stopped.workspace.id, RunNumber(7), RunState.RUNNING, "running", NOW),
            RunFacts(same.workspace.id, RunNumber(2), RunState.RUNNING, "running", NOW),
        )

    store.told.clear()
    await restore(store.database, sent(content), nodes, LATER)
    states = {}
    for entry in (stopped, running, same):
        record = await store.records.load(entry.workspace.id)
        assert record is not None
        states[entry.name] = (record.workspace.phase, record.workspace.run, record.deadline)
    assert states == {
        stopped.name: (Phase.RUNNING, 7, None),
        running.name: (Phase.STOPPED, 2, None),
        same.name: (Phase.RUNNING, 2, None),
    }
