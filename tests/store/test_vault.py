"""What is sealed, with which key, and where it may be opened."""

from __future__ import annotations

import asyncio
import base64
import os
import stat
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import text

from fairwater.domain.failure import Permanent, Temporary
from fairwater.domain.ids import OrganisationId, UserId
from fairwater.domain.workspaces.secrets import Credential, CredentialKind
from fairwater.ports.vault import Holder, Variable
from fairwater.store.secrets import SqlSecrets
from fairwater.store.vault import Place, Vault
from fairwater.store.vault_keys import keys_in, parse_keys

from .conftest import NOW, Store

OLD, NEW = b"o" * 32, b"n" * 32
PLACE = Place("credentials", "u1", ("k1", "git.example"))


def code_of(failure: pytest.ExceptionInfo[Permanent]) -> str:
    return failure.value.code


@given(st.binary(max_size=2000))
def test_what_is_sealed_is_opened_in_its_place_and_never_sealed_the_same_twice(value: bytes) -> None:
    vault = Vault([OLD])
    sealed = vault.seal(value, PLACE)
    assert vault.open(sealed, PLACE) == value
    assert vault.seal(value, PLACE) != sealed
    assert len(value) < 16 or value not in sealed


@pytest.mark.parametrize(
    "place",
    [
        Place("variables", "u1", ("k1", "git.example")),
        Place("credentials", "u2", ("k1", "git.example")),
        Place("credentials", "u1", ("k1", "evil.example")),
        Place("credentials", "u1", ("k1git.example",)),
        Place("credentials", "u1k1", ("git.example",)),
        Place("credentials", "u1"),
    ],
)
def test_what_is_sealed_cannot_be_opened_in_another_place(place: Place) -> None:
    vault = Vault([OLD])
    with pytest.raises(Permanent) as caught:
        vault.open(vault.seal(b"secret", PLACE), place)
    assert code_of(caught) == "sealed_damaged"


@given(st.integers(min_value=0), st.integers(min_value=1, max_value=255))
def test_a_changed_bit_is_noticed(position: int, mask: int) -> None:
    vault = Vault([OLD])
    sealed = bytearray(vault.seal(b"secret", PLACE))
    sealed[position % len(sealed)] ^= mask
    with pytest.raises(Permanent) as caught:
        vault.open(bytes(sealed), PLACE)
    assert code_of(caught) in {"sealed_damaged", "wrong_master_key"}


@given(st.binary(max_size=60))
def test_whatever_stands_there_is_refused_in_order(sealed: bytes) -> None:
    with pytest.raises(Permanent):
        Vault([OLD]).open(sealed, PLACE)


def test_the_first_key_seals_and_every_one_opens() -> None:
    sealed = Vault([OLD]).seal(b"secret", PLACE)
    both = Vault([NEW, OLD])
    assert both.open(sealed, PLACE) == b"secret"
    assert Vault([NEW]).open(both.seal(b"secret", PLACE), PLACE) == b"secret"
    with pytest.raises(Permanent) as caught:
        Vault([NEW]).open(sealed, PLACE)
    assert code_of(caught) == "wrong_master_key"
    assert "put back the key" in caught.value.message


def test_a_vault_shows_no_key() -> None:
    assert "o" * 8 not in repr(Vault([OLD]))
    assert OLD.hex() not in repr(Vault([OLD]))


def test_keys_are_read_in_base64_and_hexadecimal_with_comments() -> None:
    written = f"# of 2022\n{base64.b64encode(NEW).decode()}  # new\n\n{OLD.hex()}, {OLD.hex().upper()}\n"
    assert parse_keys(written) == (NEW, OLD)


@pytest.mark.parametrize("written", ["", "# nothing", "hunter2", "aGk=", "zz" * 32, "A" * 44, "\n".join(["00" * 31])])
def test_what_is_no_key_is_refused_without_showing_it(written: str) -> None:
    with pytest.raises(Permanent) as caught:
        parse_keys(written)
    assert code_of(caught) == "bad_master_key"
    assert "openssl rand -base64 32" in caught.value.message
    assert not written or written not in caught.value.message


def test_a_key_is_made_once_for_its_owner_alone(tmp_path: Path) -> None:
    path = tmp_path / "master.key"
    made = keys_in(path, make=True)
    assert keys_in(path, make=True) == made
    assert len(made) == 1
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [file.name for file in tmp_path.iterdir()] == ["master.key"]


@pytest.mark.parametrize("mode", [0o644, 0o620, 0o606])
def test_a_key_that_others_may_read_or_change_is_refused(mode: int, tmp_path: Path) -> None:
    path = tmp_path / "master.key"
    keys_in(path, make=True)
    path.chmod(mode)
    with pytest.raises(Permanent) as caught:
        keys_in(path, make=False)
    assert code_of(caught) == "no_master_key"
    assert f"chmod 600 {path}" in caught.value.message


def test_a_key_that_is_missing_or_no_file_is_said_to_be_that(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "none", tmp_path, tmp_path / "pipe", tmp_path / "none" / "key"):
        with pytest.raises(Permanent) as caught:
            keys_in(path, make=False)
        assert code_of(caught) == "no_master_key"
        assert str(path) in caught.value.message
    with pytest.raises(Permanent) as caught:
        keys_in(tmp_path / "none" / "key", make=True)
    assert "make its folder" in caught.value.message


def test_a_file_with_nonsense_is_refused_with_its_name_alone(tmp_path: Path) -> None:
    path = tmp_path / "master.key"
    path.write_bytes(b"hunter2\xff")
    path.chmod(0o600)
    with pytest.raises(Permanent) as caught:
        keys_in(path, make=False)
    assert code_of(caught) == "bad_master_key"
    assert str(path) in caught.value.message
    assert "hunter2" not in caught.value.message


async def test_a_new_database_takes_the_key_as_its_own_and_refuses_another(store: Store) -> None:
    async def prove(*keys: bytes) -> None:
        async with store.database.write() as transaction:
            await SqlSecrets(transaction.connection, Vault(keys)).prove_key(NOW)

    await prove(OLD)
    await prove(OLD)
    with pytest.raises(Permanent) as caught:
        await prove(NEW)
    assert code_of(caught) == "wrong_master_key"
    await prove(NEW, OLD)
    with pytest.raises(Permanent):
        await prove(NEW)


async def test_a_row_that_was_changed_outside_cannot_send_a_secret_elsewhere(store: Store) -> None:
    ada = await store.account()
    organisation = OrganisationId(ada.organisations[0].id)
    async with store.database.write() as transaction:
        secrets = SqlSecrets(transaction.connection, Vault([OLD]))
        given = Credential(CredentialKind.TOKEN, "git.example", "ada", "s3cret")
        await secrets.put_credential(ada.id, given, None, NOW)
        await transaction.connection.execute(text("UPDATE credentials SET host = 'evil.example'"))
        with pytest.raises(Permanent) as caught:
            await secrets.for_run(ada.id, organisation, "https://git.example/a/b")
    assert code_of(caught) == "sealed_damaged"
    assert "s3cret" not in caught.value.message


async def test_a_variable_moved_to_another_person_cannot_be_opened(store: Store) -> None:
    ada, bob = await store.account(), await store.account("bob")
    async with store.database.write() as transaction:
        secrets = SqlSecrets(transaction.connection, Vault([OLD]))
        await secrets.put_variable(Holder(ada.id), Variable("TOKEN", "s3cret", secret=True), NOW)
        await transaction.connection.execute(text("UPDATE variables SET user_id = :bob"), {"bob": bob.id})
        with pytest.raises(Permanent):
            await secrets.for_run(bob.id, OrganisationId(bob.organisations[0].id), "https://git.example/a/b")


async def test_a_secret_variable_that_is_made_an_open_one_outside_is_not_shown(store: Store) -> None:
    ada = await store.account()
    async with store.database.write() as transaction:
        secrets = SqlSecrets(transaction.connection, Vault([OLD]))
        await secrets.put_variable(Holder(ada.id), Variable("TOKEN", "s3cret", secret=True), NOW)
        await transaction.connection.execute(text("UPDATE variables SET secret = false"))
        with pytest.raises(Permanent):
            await secrets.variables(Holder(ada.id))


async def test_a_rotation_seals_everything_anew(store: Store) -> None:
    ada = await store.account()
    organisation = OrganisationId(ada.organisations[0].id)
    async with store.database.write() as transaction:
        secrets = SqlSecrets(transaction.connection, Vault([OLD]))
        await secrets.prove_key(NOW)
        for host in ("one.example", "two.example"):
            await secrets.put_credential(ada.id, Credential(CredentialKind.TOKEN, host, "", "s3cret"), None, NOW)
        await secrets.put_variable(Holder(organisation, organisation=True), Variable("A", "b"), NOW)
        assert await SqlSecrets(transaction.connection, Vault([NEW, OLD])).rotate(NOW) == 3
        rotated = SqlSecrets(transaction.connection, Vault([NEW]))
        await rotated.prove_key(NOW)
        found = await rotated.for_run(UserId(ada.id), organisation, "https://git.example/a/b")
    assert [one.secret for one in found.credentials] == ["s3cret", "s3cret"]
    assert found.environment == (("A", "b"),)


async def test_of_two_who_set_the_same_variable_at_once_none_is_lost_and_one_stays(store: Store) -> None:
    ada = await store.account()

    async def put(value: str) -> str:
        try:
            async with store.database.write() as transaction:
                await transaction.secrets.put_variable(Holder(ada.id), Variable("A", value), NOW)
        except Temporary:
            return ""
        return value

    done = [value for value in await asyncio.gather(*(put(f"v{number}") for number in range(8))) if value]
    async with store.database.read() as transaction:
        found = await transaction.secrets.variables(Holder(ada.id))
    assert len(found) == 1
    assert found[0].value in done


async def test_servers_that_begin_at_once_prove_the_same_key(store: Store) -> None:
    async def begin() -> None:
        async with store.database.write() as transaction:
            await transaction.secrets.prove_key(NOW)

    await asyncio.gather(*(begin() for _ in range(6)))
    async with store.database.read() as transaction:
        rows = await transaction.connection.execute(text("SELECT key_id FROM vault_keys"))
        assert len(rows.all()) == 1
