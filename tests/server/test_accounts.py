"""Accounts, tokens and logins: who gets in, and who no longer."""

from __future__ import annotations

import asyncio

import pytest

from fairwater.ports.accounts import Role

from .conftest import API, World
from .streaming import Listener


async def test_a_token_lets_its_holder_in_and_nothing_else_does(world: World) -> None:
    _, token = await world.account("ada")
    assert (await world.client(token).get(f"{API}/me")).json()["name"] == "ada"
    for wrong in (token + "x", token[:-1], "fw_", "x"):
        assert (await world.client(wrong).get(f"{API}/me")).status_code == 401
    client = world.client()
    assert (await client.get(f"{API}/me", headers={"Authorization": f"Basic {token}"})).status_code == 401


async def test_a_token_on_the_local_socket_speaks_for_its_holder(world: World) -> None:
    _, token = await world.account("ada")
    local = world.client(token, uid=0)
    assert (await local.get(f"{API}/me")).json()["name"] == "ada"
    refused = await local.post(f"{API}/workspaces", json={"context_url": "file:///srv/repo"})
    assert refused.json()["code"] == "local_only"


async def test_a_token_ends_at_its_time_although_it_was_good_a_moment_ago(world: World) -> None:
    client = await world.member()
    made = (await client.post(f"{API}/users/me/tokens", json={"name": "ci", "expires_in_s": 2})).json()
    other = world.client(made["token"])
    assert (await other.get(f"{API}/me")).status_code == 200
    world.clock.advance(2)
    assert (await other.get(f"{API}/me")).status_code == 401


async def test_a_deleted_token_is_good_for_nothing_at_once(world: World) -> None:
    client = await world.member()
    made = (await client.post(f"{API}/users/me/tokens", json={"name": "ci"})).json()
    other = world.client(made["token"])
    assert (await other.get(f"{API}/me")).status_code == 200
    assert (await client.delete(f"{API}/users/me/tokens/{made['id']}")).status_code == 204
    assert (await other.get(f"{API}/me")).status_code == 401
    assert (await client.delete(f"{API}/users/me/tokens/{made['id']}")).status_code == 404


async def test_blocking_acts_at_once_and_so_does_unblocking(world: World) -> None:
    account, token = await world.account("ada")
    client, admin = world.client(token), world.client(uid=0)
    made = await world.create(client)
    for _ in range(2):
        assert (await client.get(f"{API}/me")).status_code == 200
        await admin.patch(f"{API}/users/{account.id}", json={"blocked": True})
        for method, path in (("GET", "/me"), ("GET", f"/workspaces/{made['id']}"), ("POST", "/workspaces")):
            answer = await client.request(method, API + path, json={})
            assert (answer.status_code, answer.json()["code"]) == (403, "blocked")
        await admin.patch(f"{API}/users/ada", json={"blocked": False})


async def test_a_start_asks_the_database_whether_its_account_is_blocked(world: World) -> None:
    """Blocked through another server, of which this one has not heard."""
    account, token = await world.account("ada")
    client = world.client(token)
    assert (await client.get(f"{API}/me")).status_code == 200
    async with world.database.write() as transaction:
        await transaction.accounts.change(account.id, None, True)
    refused = await client.post(f"{API}/workspaces", json={"context_url": "https://example.org/a/b"})
    assert (refused.status_code, refused.json()["code"]) == (403, "blocked")
    world.clock.advance(5)
    assert (await client.get(f"{API}/me")).status_code == 403


async def test_blocking_ends_open_streams(world: World) -> None:
    account, token = await world.account("ada")
    await world.create(world.client(token))
    async with Listener(world.app, f"{API}/events", token, "after=0") as listener:
        assert (await listener.frame()).kind == "workspace"
        await world.client(uid=0).patch(f"{API}/users/{account.id}", json={"blocked": True})
        await listener.ended()


async def test_a_new_role_acts_at_once(world: World) -> None:
    _, token = await world.account("ada")
    client = world.client(token)
    assert (await client.get(f"{API}/users")).status_code == 403
    await world.client(uid=0).patch(f"{API}/users/ada", json={"role": "operator"})
    assert (await client.get(f"{API}/users")).status_code == 200


async def test_the_local_administrator_cannot_be_locked_out(world: World) -> None:
    local = world.client(uid=0)
    admin = await world.member("other-admin", Role.ADMIN)
    assert (await local.get(f"{API}/me")).status_code == 200
    refused = await admin.patch(f"{API}/users/admin", json={"blocked": True})
    assert (refused.status_code, refused.json()["code"]) == (409, "local_administrator")
    assert (await local.get(f"{API}/me")).status_code == 200


async def test_users_are_made_listed_and_unique(world: World) -> None:
    admin = world.client(uid=0)
    made = await admin.post(f"{API}/users", json={"name": "ada", "role": "member", "organisation": "engines"})
    assert made.json()["organisations"] == ["engines"]
    assert (await admin.post(f"{API}/users", json={"name": "ada"})).json()["code"] == "name_taken"
    assert (await admin.post(f"{API}/users", json={"name": "-rf"})).status_code == 422
    names = [user["name"] for user in (await admin.get(f"{API}/users")).json()["items"]]
    assert names == ["ada", "admin"]
    organisations = [each["name"] for each in (await admin.get(f"{API}/organisations")).json()["items"]]
    assert organisations == ["default", "engines"]


@pytest.mark.parametrize("noun", ["users", "organisations", "users/admin/tokens"])
async def test_lists_of_accounts_are_paged(world: World, noun: str) -> None:
    admin = world.client(uid=0)
    for name in ("a", "b", "c", "d"):
        await admin.post(f"{API}/users", json={"name": name, "organisation": f"org-{name}"})
        await admin.post(f"{API}/users/admin/tokens", json={"name": name})
    whole = (await admin.get(f"{API}/{noun}")).json()["items"]
    first = (await admin.get(f"{API}/{noun}?limit=2")).json()
    second = (await admin.get(f"{API}/{noun}", params={"limit": 200, "cursor": first["next"]})).json()
    assert first["items"] + second["items"] == whole
    assert second["next"] is None


async def test_a_login_code_is_good_once(world: World) -> None:
    await world.account("ada")
    admin, anybody = world.client(uid=0), world.client()
    code = (await admin.post(f"{API}/login/codes", json={"user": "ada"})).json()["code"]
    answers = await asyncio.gather(*(anybody.post(f"{API}/login/exchange", json={"code": code}) for _ in range(3)))
    assert sorted(answer.status_code for answer in answers) == [200, 404, 404]
    token = next(answer.json()["token"] for answer in answers if answer.status_code == 200)
    assert (await world.client(token).get(f"{API}/me")).json()["name"] == "ada"


async def test_a_login_code_is_good_for_ten_minutes(world: World) -> None:
    admin, anybody = world.client(uid=0), world.client()
    code = (await admin.post(f"{API}/login/codes", json={"user": "me"})).json()["code"]
    world.clock.advance(600)
    refused = await anybody.post(f"{API}/login/exchange", json={"code": code})
    assert (refused.status_code, refused.json()["code"]) == (404, "no_such_code")


async def test_a_blocked_account_cannot_log_in_and_its_code_stays(world: World) -> None:
    account, _ = await world.account("ada")
    admin, anybody = world.client(uid=0), world.client()
    code = (await admin.post(f"{API}/login/codes", json={"user": "ada"})).json()["code"]
    await admin.patch(f"{API}/users/{account.id}", json={"blocked": True})
    assert (await anybody.post(f"{API}/login/exchange", json={"code": code})).json()["code"] == "blocked"
