"""Credentials and variables over HTTP: what goes in is used in runs, and never comes out again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import structlog
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import BestAvailableEncryption, Encoding, NoEncryption, PrivateFormat

from fairwater.domain.ids import OrganisationId, UserId
from fairwater.domain.workspaces.secrets import RunSecrets
from fairwater.ports.accounts import Role
from fairwater.ports.vault import CREDENTIALS_MAX, VARIABLES_MAX, Holder, Variable

from .conftest import API, World

MINE = f"{API}/users/me/credentials"
VARIABLES = f"{API}/users/me/variables"
SECRET = "ghp_hunter2hunter2"


def ssh_key(passphrase: bytes | None = None) -> str:
    key = Ed25519PrivateKey.generate()
    if passphrase:
        return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(passphrase)).decode()
    return key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption()).decode()


async def for_run(world: World, client: Any, url: str = "https://git.example/team/repo") -> RunSecrets:
    me = (await client.get(f"{API}/me")).json()
    async with world.database.read() as transaction:
        account = await transaction.accounts.find(UserId(me["id"]))
        assert account is not None
        organisation = OrganisationId(account.organisations[0].id)
        return await transaction.secrets.for_run(account.id, organisation, url)


def on_disk(world: World) -> bytes:
    database = Path(str(world.database.engine.url.database))
    return b"".join(path.read_bytes() for path in sorted(database.parent.glob("fairwater.db*")))


async def test_a_token_is_used_in_runs_and_is_in_no_answer_no_log_and_not_on_the_disk(world: World) -> None:
    client = await world.member()
    with structlog.testing.capture_logs() as logs:
        added = await client.post(MINE, json={"host": "git.example", "username": "ada", "secret": SECRET})
        listed = await client.get(MINE)
        removed = await client.delete(f"{MINE}/{added.json()['id']}")
    assert (added.status_code, removed.status_code) == (201, 204)
    assert added.headers["location"].endswith(added.json()["id"])
    assert listed.json()["items"] == [added.json()]
    assert {key: added.json()[key] for key in ("kind", "host", "username", "plain_http", "fingerprint")} == {
        "kind": "token",
        "host": "git.example",
        "username": "ada",
        "plain_http": False,
        "fingerprint": None,
    }
    assert [line["event"] for line in logs] == ["credential_added", "credential_deleted"]
    assert SECRET not in added.text + listed.text + str(logs)
    assert b"git.example" in on_disk(world), "what is kept is to be seen"
    assert SECRET.encode() not in on_disk(world)


async def test_what_was_added_reaches_the_run_and_what_was_removed_does_not(world: World) -> None:
    client = await world.member()
    added = (await client.post(MINE, json={"host": "git.example", "username": "ada", "secret": SECRET})).json()
    token = (await for_run(world, client)).token_for("git.example")
    assert token is not None
    assert (token.username, token.secret) == ("ada", SECRET)
    assert SECRET not in repr(token)
    await client.delete(f"{MINE}/{added['id']}")
    assert (await for_run(world, client)).credentials == ()


async def test_a_token_for_the_same_host_takes_the_place_of_the_one_before(world: World) -> None:
    client = await world.member()
    for host in ("git.example", "https://GIT.example:443/team", "git.example:8443"):
        await client.post(MINE, json={"host": host, "secret": f"for {host}"})
    assert [one["host"] for one in (await client.get(MINE)).json()["items"]] == ["git.example", "git.example:8443"]
    token = (await for_run(world, client)).token_for("git.example")
    assert token is not None
    assert token.secret == "for https://GIT.example:443/team"


async def test_an_ssh_key_shows_its_public_fingerprint_alone(world: World) -> None:
    client, key = await world.member(), ssh_key()
    added = await client.post(MINE, json={"kind": "ssh-key", "host": "git.example:22", "secret": key})
    document = added.json()
    assert (added.status_code, document["host"], document["username"]) == (201, "git.example", "git")
    assert document["fingerprint"].startswith("SHA256:")
    assert (await client.get(MINE)).json()["items"] == [document]
    assert (await for_run(world, client)).keys()[0].secret == key
    assert key.splitlines()[2] not in added.text


@pytest.mark.parametrize(
    ("body", "code"),
    [
        ({"host": "", "secret": SECRET}, "bad_host"),
        ({"host": "a b", "secret": SECRET}, "bad_host"),
        ({"host": "git.example:99999", "secret": SECRET}, "bad_host"),
        ({"host": "git.example\n", "secret": f"{SECRET}\nmore"}, "bad_credential"),
        ({"host": "git.example", "secret": ""}, "invalid_request"),
        ({"host": "git.example", "secret": "x" * 40_000}, "invalid_request"),
        ({"host": "git.example", "secret": SECRET, "username": "a:b"}, "invalid_request"),
        ({"host": "git.example", "secret": SECRET, "kind": "pgp"}, "invalid_request"),
        ({"host": "git.example", "secret": SECRET, "kind": "ssh-key"}, "bad_ssh_key"),
        ({"host": "git.example", "secret": "ssh-ed25519 AAAA", "kind": "ssh-key"}, "bad_ssh_key"),
        ({"host": "git.example", "secret": SECRET, "kind": "ssh-key", "plain_http": True}, "bad_credential"),
        ({"host": "git.example", "secret": SECRET, "extra": 1}, "invalid_request"),
    ],
)
async def test_a_bad_credential_is_refused_without_repeating_it(world: World, body: dict[str, Any], code: str) -> None:
    client = await world.member()
    with structlog.testing.capture_logs() as logs:
        answer = await client.post(MINE, json=body)
    assert answer.json()["code"] == code
    assert answer.status_code in {400, 422}
    assert SECRET not in answer.text + str(logs)
    assert (await client.get(MINE)).json()["items"] == []


async def test_a_key_with_a_passphrase_is_refused_and_said_to_be_that(world: World) -> None:
    client = await world.member()
    body = {"kind": "ssh-key", "host": "git.example", "secret": ssh_key(b"guess me")}
    answer = await client.post(MINE, json=body)
    assert (answer.status_code, answer.json()["code"]) == (422, "bad_ssh_key")
    assert "passphrase" in answer.json()["detail"]


async def test_an_account_has_a_bounded_number_of_credentials(world: World) -> None:
    client = await world.member()
    for number in range(CREDENTIALS_MAX):
        await client.post(MINE, json={"host": f"h{number}.example", "secret": "x"})
    answer = await client.post(MINE, json={"host": "more.example", "secret": "x"})
    assert (answer.status_code, answer.json()["code"]) == (409, "too_many_credentials")
    assert (await client.post(MINE, json={"host": "h0.example", "secret": "y"})).status_code == 201, "a new one for it"


async def test_nobody_removes_what_is_somebody_elses(world: World) -> None:
    ada, bob = await world.member(), await world.member("bob")
    credential = (await ada.post(MINE, json={"host": "git.example", "secret": SECRET})).json()["id"]
    variable = (await ada.put(VARIABLES, json={"name": "A", "value": "b"})).json()["id"]
    for path in (f"{MINE}/{credential}", f"{VARIABLES}/{variable}"):
        assert (await bob.delete(path)).status_code == 404
    assert len((await ada.get(MINE)).json()["items"]) == len((await ada.get(VARIABLES)).json()["items"]) == 1


async def test_a_secret_variable_is_never_shown_and_another_one_is(world: World) -> None:
    client = await world.member()
    with structlog.testing.capture_logs() as logs:
        hidden = await client.put(VARIABLES, json={"name": "TOKEN", "value": SECRET, "secret": True})
        await client.put(VARIABLES, json={"name": "COLOUR", "value": "red"})
        listed = await client.get(VARIABLES)
    assert hidden.json()["value"] is None
    assert [(one["name"], one["value"]) for one in listed.json()["items"]] == [("COLOUR", "red"), ("TOKEN", None)]
    assert SECRET not in hidden.text + listed.text + str(logs)
    assert SECRET.encode() not in on_disk(world)
    assert dict((await for_run(world, client)).environment) == {"TOKEN": SECRET, "COLOUR": "red"}


async def test_the_more_specific_pattern_wins_and_a_persons_own_over_the_organisations(world: World) -> None:
    client, staff = await world.member(), await world.member("olga", Role.ADMIN)
    shared = f"{API}/organisations/default/variables"
    await staff.put(shared, json={"name": "A", "value": "organisation", "repository": "git.example/team/repo"})
    await staff.put(shared, json={"name": "B", "value": "organisation"})
    for pattern, value in (("", "everywhere"), ("team/*", "team"), ("team/other", "other")):
        await client.put(VARIABLES, json={"name": "A", "value": value, "repository": pattern})
    assert dict((await for_run(world, client)).environment) == {"A": "team", "B": "organisation"}
    other = dict((await for_run(world, client, "https://git.example/team/other")).environment)
    elsewhere = dict((await for_run(world, client, "git@git.example:x/y.git")).environment)
    assert (other["A"], elsewhere["A"]) == ("other", "everywhere")


@pytest.mark.parametrize(
    ("body", "code"),
    [
        ({"name": "A-B", "value": "x"}, "invalid_request"),
        ({"name": "GITPOD_REPO_ROOT", "value": "x"}, "bad_variable"),
        ({"name": "A", "value": "\0"}, "invalid_request"),
        ({"name": "A", "value": "x" * 40_000}, "invalid_request"),
        ({"name": "A", "value": "ä" * 20_000}, "bad_variable"),
        ({"name": "A", "value": "x", "repository": "one"}, "bad_pattern"),
        ({"name": "A", "value": "x", "repository": "a/**/b"}, "bad_pattern"),
        ({"name": "A", "value": "x", "repository": "a/b*c*d"}, "bad_pattern"),
    ],
)
async def test_a_bad_variable_is_refused(world: World, body: dict[str, Any], code: str) -> None:
    client = await world.member()
    answer = await client.put(VARIABLES, json=body)
    assert (answer.status_code in {400, 422}, answer.json()["code"]) == (True, code)
    assert (await client.get(VARIABLES)).json()["items"] == []


async def test_an_account_has_a_bounded_number_of_variables(world: World) -> None:
    account, token = await world.account("ada")
    async with world.database.write() as transaction:
        for number in range(VARIABLES_MAX):
            await transaction.secrets.put_variable(Holder(account.id), Variable(f"A{number}", "x"), world.clock.now())
    client = world.client(token)
    answer = await client.put(VARIABLES, json={"name": "MORE", "value": "x"})
    assert (answer.status_code, answer.json()["code"]) == (409, "too_many_variables")
    assert (await client.put(VARIABLES, json={"name": "A0", "value": "y"})).status_code == 200


async def test_all_variables_together_fit_into_what_a_process_can_be_given(world: World) -> None:
    client = await world.member()
    answers = [await client.put(VARIABLES, json={"name": f"A{n}", "value": "x" * 32_000}) for n in range(9)]
    assert [answer.status_code for answer in answers] == [200] * 8 + [409]
    assert answers[-1].json()["code"] == "too_many_variables"


async def test_an_unknown_organisation_has_no_variables(world: World) -> None:
    staff = await world.member("olga", Role.OPERATOR)
    answer = await staff.get(f"{API}/organisations/nowhere/variables")
    assert (answer.status_code, answer.json()["code"]) == (404, "no_such_organisation")


async def test_a_body_that_is_put_is_bounded_too(world: World) -> None:
    client = await world.member()
    answer = await client.put(VARIABLES, json={"name": "A", "value": "x" * (5 << 20)})
    assert (answer.status_code, answer.json()["code"]) == (413, "content_too_large")


async def test_people_choose_their_own_dotfiles_and_nobody_elses(world: World) -> None:
    ada, bob = await world.member(), await world.member("bob")
    url = "https://git.example/ada/dotfiles"
    changed = await ada.patch(f"{API}/users/me", json={"dotfiles_url": url})
    assert (changed.status_code, changed.json()["dotfiles_url"]) == (200, url)
    assert (await ada.get(f"{API}/me")).json()["dotfiles_url"] == url
    assert (await bob.patch(f"{API}/users/ada", json={"dotfiles_url": url})).status_code == 404
    assert (await ada.patch(f"{API}/users/me", json={})).json()["dotfiles_url"] == url, "left out, it stays"
    assert (await ada.patch(f"{API}/users/me", json={"dotfiles_url": None})).json()["dotfiles_url"] is None


@pytest.mark.parametrize("url", ["file:///etc", "--upload-pack=x", "https://u:p@git.example/a/b"])
async def test_dotfiles_come_from_a_repository_that_every_workspace_can_reach(world: World, url: str) -> None:
    client = await world.member()
    answer = await client.patch(f"{API}/users/me", json={"dotfiles_url": url})
    assert (answer.status_code, answer.json()["code"]) == (422, "bad_context_url")


async def test_nobody_gives_themselves_a_role(world: World) -> None:
    client = await world.member()
    for body in ({"role": "admin"}, {"blocked": False, "dotfiles_url": "https://git.example/a/b"}):
        answer = await client.patch(f"{API}/users/me", json=body)
        assert (answer.status_code, answer.json()["code"]) == (403, "forbidden")
    me = (await client.get(f"{API}/me")).json()
    assert (me["role"], me["dotfiles_url"]) == ("member", None)
