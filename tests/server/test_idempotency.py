"""The same request sent twice takes effect once."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from pathlib import Path

import httpx2
import pytest

from fairwater.domain.failure import Permanent
from fairwater.ports.process import Channel

from .conftest import API, World
from .tiny_agent import ScriptedProcess

KEY = {"Idempotency-Key": "3f1c"}
ORDER = {"context_url": "https://example.org/team/repo"}


async def make(client: httpx2.AsyncClient, body: Mapping[str, object] | None = None) -> httpx2.Response:
    return await client.post(f"{API}/workspaces", json=body or ORDER, headers=KEY)


async def test_a_repeated_request_gets_the_first_answer_and_does_nothing(world: World) -> None:
    client = await world.member()
    first, second = await make(client), await make(client)
    assert (second.status_code, second.json()) == (201, first.json())
    assert second.headers["location"] == first.headers["location"]
    assert second.headers["idempotent-replayed"] == "true"
    assert world.woken == [first.json()["id"]]
    assert len((await client.get(f"{API}/workspaces")).json()["items"]) == 1


async def test_the_same_key_with_another_body_is_refused(world: World) -> None:
    client = await world.member()
    await make(client)
    other = await make(client, ORDER | {"name": "other"})
    assert (other.status_code, other.json()["code"]) == (422, "idempotency_key_reused")


async def test_keys_of_two_accounts_do_not_meet(world: World) -> None:
    ada, bob = await world.member("ada"), await world.member("bob")
    assert (await make(ada)).json()["id"] != (await make(bob)).json()["id"]


async def test_a_request_that_failed_may_be_sent_again(world: World) -> None:
    client = await world.member()
    taken = await world.create(client, name="mine", start=False)
    assert (await make(client, ORDER | {"name": "mine"})).status_code == 409
    await client.delete(f"{API}/workspaces/{taken['id']}")
    assert (await make(client, ORDER | {"name": "mine"})).status_code == 201


async def test_two_at_once_take_effect_once(world: World) -> None:
    client = await world.member()
    answers = await asyncio.gather(*(make(client) for _ in range(5)))
    assert {answer.status_code for answer in answers} <= {201, 409}
    assert len({answer.json()["id"] for answer in answers if answer.status_code == 201}) == 1
    assert len((await client.get(f"{API}/workspaces")).json()["items"]) == 1


async def test_a_key_is_forgotten_after_a_day(world: World) -> None:
    client = await world.member()
    first = await make(client)
    world.clock.advance(24 * 3600)
    assert (await make(client)).json()["id"] != first.json()["id"]


@pytest.mark.parametrize("key", ["", "x" * 256, "tab\there"])
async def test_a_key_is_short_and_printable(world: World, key: str) -> None:
    client = await world.member()
    answer = await client.post(f"{API}/workspaces", json=ORDER, headers={"Idempotency-Key": key})
    assert (answer.status_code, answer.json()["code"]) == (400, "bad_idempotency_key")


async def test_a_token_is_shown_once_and_kept_nowhere(world: World) -> None:
    client = await world.member()
    first = await client.post(f"{API}/users/me/tokens", json={}, headers=KEY)
    again = await client.post(f"{API}/users/me/tokens", json={}, headers=KEY)
    assert (again.status_code, again.json()["code"]) == (409, "answer_not_kept")
    assert len((await client.get(f"{API}/users/me/tokens")).json()["items"]) == 2, "the test's own and one more"
    secret = first.json()["token"].encode()
    database = Path(str(world.database.engine.url.database))
    written = [path.read_bytes() for path in database.parent.glob("fairwater.db*")]
    assert any(first.json()["id"].encode() in content for content in written), "what is kept is to be seen"
    assert not any(secret in content for content in written)


async def test_a_command_is_run_once_for_a_key(world: World) -> None:
    client = await world.member()
    made = await world.create(client)
    world.agent.process = ScriptedProcess([(Channel.STDOUT, b"once\n")])
    path = f"{API}/workspaces/{made['id']}/exec"
    first = await client.post(path, json={"command": ["date"]}, headers=KEY)
    second = await client.post(path, json={"command": ["date"]}, headers=KEY)
    assert first.json() == second.json()
    assert len(world.agent.requests) == 1


async def test_a_command_that_could_not_begin_may_be_sent_again(world: World) -> None:
    client = await world.member()
    made = await world.create(client)
    path = f"{API}/workspaces/{made['id']}/exec"
    world.agent.failure = Permanent("there is no such command", code="command_not_found")
    assert (await client.post(path, json={"command": ["x"]}, headers=KEY)).status_code == 422
    world.agent.failure = None
    assert (await client.post(path, json={"command": ["x"]}, headers=KEY)).status_code == 200


async def test_a_command_that_was_cut_off_is_not_run_again(world: World) -> None:
    client = await world.member()
    made = await world.create(client)
    path = f"{API}/workspaces/{made['id']}/exec"
    world.agent.process = ScriptedProcess([], until_hung_up=True)
    overdue = await client.post(path, json={"command": ["x"], "timeout_s": 0.01}, headers=KEY)
    assert (overdue.status_code, overdue.json()["code"]) == (504, "exec_timeout")
    again = await client.post(path, json={"command": ["x"], "timeout_s": 0.01}, headers=KEY)
    assert (again.status_code, again.json()["code"]) == (409, "idempotency_in_progress")
