"""Backups and restorations over HTTP, and new keys."""

from __future__ import annotations

import asyncio

import pytest
import structlog

from fairwater.domain.failure import Temporary
from fairwater.domain.ids import WorkspaceId
from fairwater.ports.accounts import Role
from fairwater.ports.vault import Holder, Variable
from fairwater.serving.peers import STOPPING
from fairwater.serving.problems import AnswerCutShort
from fairwater.store.database import SqlDatabase
from fairwater.store.vault import Vault

from .conftest import API, World
from .streaming import Listener


async def test_a_backup_is_streamed_as_it_is_made(world: World) -> None:
    _, token = await world.account("root", Role.ADMIN)
    world.copies.go_on.clear()
    async with Listener(world.app, f"{API}/admin/backup", token) as listener:
        assert await listener.status() == 200
        assert await listener.chunk() == b"first "
        world.copies.go_on.set()
        assert await listener.chunk() == b"second"
        assert await listener.chunk() == b""


async def test_a_backup_that_fails_on_the_way_does_not_look_complete(world: World) -> None:
    _, token = await world.account("root", Role.ADMIN)
    world.copies.failure = Temporary("the database is away", code="database_away")
    with structlog.testing.capture_logs() as logs, pytest.raises(AnswerCutShort):
        async with Listener(world.app, f"{API}/admin/backup", token) as listener:
            await listener.ended()
    assert [(line["event"], line["code"]) for line in logs if "code" in line] == [("answer_cut_short", "database_away")]


async def test_a_backup_that_fails_at_once_is_refused(world: World) -> None:
    client = await world.member("root", Role.ADMIN)
    world.copies.fails_at, world.copies.failure = 0, Temporary("the database is away", code="database_away")
    answer = await client.get(f"{API}/admin/backup")
    assert (answer.status_code, answer.json()["code"]) == (503, "database_away")


async def test_a_backup_that_the_servers_end_cuts_short_does_not_look_complete(world: World) -> None:
    _, token = await world.account("root", Role.ADMIN)
    world.copies.go_on.clear()
    stopping = asyncio.Event()
    listener = Listener(world.app, f"{API}/admin/backup", token, scope={STOPPING: stopping})
    await listener.__aenter__()
    await listener.status()
    assert await listener.chunk() == b"first "
    stopping.set()
    with pytest.raises(AnswerCutShort):
        await listener.ended()


async def test_a_restoration_takes_the_body_as_a_stream_and_only_when_it_is_confirmed(world: World) -> None:
    client = await world.member("root", Role.ADMIN)
    content = b"x" * (5 << 20)  # more than any other body may have
    refused = await client.post(f"{API}/admin/restore", content=content)
    assert (refused.status_code, refused.json()["code"], world.copies.restored) == (409, "not_confirmed", None)
    answer = await client.post(f"{API}/admin/restore?confirm=true", content=content)
    assert (answer.status_code, answer.json()) == (200, {"restored": {"users": 1}, "warning": None, "unknown": []})
    assert world.copies.restored == content


async def test_workspaces_that_run_and_that_the_backup_does_not_know_are_named(world: World) -> None:
    client = await world.member("root", Role.ADMIN)
    world.copies.unknown = (WorkspaceId("abcdefghjkmn"),)
    answer = await client.post(f"{API}/admin/restore?confirm=true", content=b"x")
    assert answer.json()["unknown"] == ["abcdefghjkmn"]


async def test_a_restored_database_that_another_key_has_sealed_is_said_to_be_that(world: World) -> None:
    client = await world.member("root", Role.ADMIN)
    await reseal(world, [b"o" * 32])
    answer = await client.post(f"{API}/admin/restore?confirm=true", content=b"x")
    assert "put back the key that was used before" in answer.json()["warning"]


async def test_after_a_rotation_the_old_key_is_not_needed(world: World) -> None:
    account, token = await world.account("root", Role.ADMIN)
    async with world.database.write() as transaction:
        await transaction.secrets.prove_key(world.clock.now())
        await transaction.secrets.put_variable(Holder(account.id), Variable("A", "b", secret=True), world.clock.now())
    world.database.vault = Vault([b"n" * 32, bytes(range(32))])
    answer = await world.client(token).post(f"{API}/admin/rotate-keys")
    assert (answer.status_code, answer.json()) == (200, {"sealed": 1})
    world.database.vault = Vault([b"n" * 32])
    async with world.database.write() as transaction:
        await transaction.secrets.prove_key(world.clock.now())
        secrets = await transaction.secrets.for_run(account.id, account.organisations[0].id, "https://git.example/a/b")
    assert secrets.environment == (("A", "b"),)


async def reseal(world: World, keys: list[bytes]) -> None:
    """Has the database sealed with `keys`, as one from elsewhere would be."""
    before: SqlDatabase = world.database
    own, before.vault = before.vault, Vault(keys)
    async with before.write() as transaction:
        await transaction.secrets.prove_key(world.clock.now())
    before.vault = own


async def test_a_server_without_backups_says_so(world: World) -> None:
    client = await world.member("root", Role.ADMIN)
    services = world.app.state.services  # type: ignore[attr-defined]
    for name in ("backup", "restore"):
        object.__setattr__(services, name, None)
    for method, path in (("GET", "backup"), ("POST", "restore?confirm=true")):
        answer = await client.request(method, f"{API}/admin/{path}")
        assert (answer.status_code, answer.json()["code"]) == (501, "not_offered")


async def test_a_database_that_is_away_is_not_ready_and_asks_to_come_back(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def away() -> None:
        raise Temporary("the database does not answer", code="database_away", delay_s=2)

    monkeypatch.setattr(world.database, "ping", away)
    answer = await world.client().get("/readyz")
    assert (answer.status_code, answer.json()["database"]) == (503, "the database does not answer")
    assert answer.headers["retry-after"] == "1"
