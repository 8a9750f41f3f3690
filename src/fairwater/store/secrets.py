"""Credentials and variables in the database, sealed, within one transaction: see `ports/vault.py`."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from secrets import token_hex
from typing import Any

from sqlalchemy import Table, bindparam, delete, func, insert, or_, select, text, update
from sqlalchemy.exc import IntegrityError

from fairwater.domain.failure import Permanent, Temporary
from fairwater.domain.ids import OrganisationId, UserId
from fairwater.domain.workspaces.context import parse_context
from fairwater.domain.workspaces.pattern import matches, specificity
from fairwater.domain.workspaces.secrets import Credential, CredentialKind, RunSecrets
from fairwater.ports.vault import (
    CREDENTIALS_MAX,
    VARIABLES_BYTES_MAX,
    VARIABLES_MAX,
    Holder,
    StoredCredential,
    StoredVariable,
    Variable,
)
from fairwater.store.engine import Statements
from fairwater.store.schema import Row
from fairwater.store.vault import Place, Vault

_ID_BYTES = 8
_CREDENTIALS, _VARIABLES, _KEYS = (Row.metadata.tables[name] for name in ("credentials", "variables", "vault_keys"))
_OF_PERSON = (
    select(_CREDENTIALS)
    .where(_CREDENTIALS.c.user_id == bindparam("owner"))
    .order_by(_CREDENTIALS.c.host, _CREDENTIALS.c.kind)
)
_FOR_RUN = select(_VARIABLES).where(
    or_(_VARIABLES.c.user_id == bindparam("owner"), _VARIABLES.c.organisation_id == bindparam("organisation"))
)
_ADD_PROOF = text(
    "INSERT INTO vault_keys (key_id, proof, created_at) VALUES (:key_id, :proof, :now) ON CONFLICT DO NOTHING"
).bindparams(bindparam("now", type_=_KEYS.c.created_at.type), bindparam("proof", type_=_KEYS.c.proof.type))
"""Servers that start at once on one database all add the same key's."""


class SqlSecrets:
    """What is sealed of a credential is its fingerprint (empty for a token), a line end, and the secret."""

    def __init__(self, connection: Statements, vault: Vault) -> None:
        self._connection = connection
        self._vault = vault

    async def credentials(self, user: UserId) -> tuple[StoredCredential, ...]:
        return tuple(self._shown(row) for row in await self._credential_rows(user))

    async def put_credential(
        self, user: UserId, credential: Credential, fingerprint: str | None, now: datetime
    ) -> StoredCredential:
        await self._connection.execute(
            delete(_CREDENTIALS).where(
                _CREDENTIALS.c.user_id == user,
                _CREDENTIALS.c.kind == credential.kind.value,
                _CREDENTIALS.c.host == credential.host,
            )
        )
        await self._bound(_CREDENTIALS, _CREDENTIALS.c.user_id == user, CREDENTIALS_MAX, "credential")
        values: dict[str, Any] = {
            "id": "k" + token_hex(_ID_BYTES),
            "user_id": user,
            "kind": credential.kind.value,
            "host": credential.host,
            "username": credential.username,
            "plain_http": credential.plain_http,
        }
        sealed = self._vault.seal(f"{fingerprint or ''}\n{credential.secret}".encode(), _credential_place(values))
        await self._add(_CREDENTIALS, {**values, "sealed": sealed, "created_at": now})
        return StoredCredential(
            values["id"], credential.kind, credential.host, credential.username, credential.plain_http, fingerprint, now
        )

    async def remove_credential(self, user: UserId, credential: str) -> bool:
        result = await self._connection.execute(
            delete(_CREDENTIALS).where(_CREDENTIALS.c.user_id == user, _CREDENTIALS.c.id == credential)
        )
        return result.rowcount > 0

    async def variables(self, holder: Holder) -> tuple[StoredVariable, ...]:
        query = select(_VARIABLES).where(_held_by(holder)).order_by(_VARIABLES.c.name, _VARIABLES.c.repository)
        rows = (await self._connection.execute(query)).all()
        return tuple(
            StoredVariable(
                row.id, row.name, None if row.secret else self._value(row), row.repository, row.secret, row.created_at
            )
            for row in rows
        )

    async def put_variable(self, holder: Holder, variable: Variable, now: datetime) -> StoredVariable:
        same = (_VARIABLES.c.name == variable.name, _VARIABLES.c.repository == variable.repository)
        await self._connection.execute(delete(_VARIABLES).where(_held_by(holder), *same))
        await self._bound(_VARIABLES, _held_by(holder), VARIABLES_MAX, "variable")
        size = select(func.coalesce(func.sum(func.length(_VARIABLES.c.sealed)), 0)).where(_held_by(holder))
        if (await self._connection.execute(size)).scalar_one() + len(variable.value.encode()) > VARIABLES_BYTES_MAX:
            raise Permanent(
                f"all variables together hold {VARIABLES_BYTES_MAX // 1024} KiB at most: keep large things in files",
                code="too_many_variables",
            )
        values: dict[str, Any] = {
            "id": "v" + token_hex(_ID_BYTES),
            "user_id": None if holder.organisation else holder.id,
            "organisation_id": holder.id if holder.organisation else None,
            "repository": variable.repository,
            "name": variable.name,
            "secret": variable.secret,
        }
        sealed = self._vault.seal(variable.value.encode(), _variable_place(values))
        await self._add(_VARIABLES, {**values, "sealed": sealed, "created_at": now})
        shown = None if variable.secret else variable.value
        return StoredVariable(values["id"], variable.name, shown, variable.repository, variable.secret, now)

    async def remove_variable(self, holder: Holder, variable: str) -> bool:
        result = await self._connection.execute(delete(_VARIABLES).where(_held_by(holder), _VARIABLES.c.id == variable))
        return result.rowcount > 0

    async def for_run(self, owner: UserId, organisation: OrganisationId, context_url: str) -> RunSecrets:
        credentials = tuple(
            Credential(CredentialKind(row.kind), row.host, row.username, self._secret(row)[1], row.plain_http)
            for row in await self._credential_rows(owner)
        )
        rows = await self._connection.execute(_FOR_RUN, {"owner": owner, "organisation": organisation})
        context = parse_context(context_url)
        meant = sorted((row for row in rows if matches(row.repository, context)), key=_precedence)
        # The last of a name wins, so the most precise of the person's own comes last.
        chosen = {row.name: row for row in meant}
        return RunSecrets(credentials, tuple((name, self._value(row)) for name, row in sorted(chosen.items())))

    async def prove_key(self, now: datetime) -> None:
        rows = await self._connection.execute(select(_KEYS))
        proofs = {row.key_id: row.proof for row in rows}
        self._vault.check(proofs)
        if self._vault.key_id not in proofs:
            await self._add_proof(now)

    async def rotate(self, now: datetime) -> int:
        count = 0
        for table, place in ((_CREDENTIALS, _credential_place), (_VARIABLES, _variable_place)):
            for row in (await self._connection.execute(select(table))).all():
                where = place(row._mapping)
                sealed = self._vault.seal(self._vault.open(row.sealed, where), where)
                await self._connection.execute(update(table).where(table.c.id == row.id).values(sealed=sealed))
                count += 1
        await self._connection.execute(delete(_KEYS))
        await self._add_proof(now)
        return count

    async def _add(self, table: Table, values: dict[str, Any]) -> None:
        try:
            await self._connection.execute(insert(table).values(values))
        except IntegrityError:
            raise Temporary("the same was written at the same time by another: try again", code="conflict") from None

    async def _add_proof(self, now: datetime) -> None:
        values = {"key_id": self._vault.key_id, "proof": self._vault.proof(), "now": now}
        await self._connection.execute(_ADD_PROOF, values)

    async def _credential_rows(self, user: UserId) -> Iterable[Any]:
        return (await self._connection.execute(_OF_PERSON, {"owner": user})).all()

    async def _bound(self, table: Table, condition: Any, most: int, what: str) -> None:
        count = (await self._connection.execute(select(func.count()).select_from(table).where(condition))).scalar_one()
        if count >= most:
            raise Permanent(
                f"there are {count} {what}s already, and {most} are the most: remove one that is no longer needed",
                code=f"too_many_{what}s",
            )

    def _shown(self, row: Any) -> StoredCredential:
        fingerprint = self._secret(row)[0] if row.kind == CredentialKind.SSH_KEY.value else ""
        return StoredCredential(
            row.id,
            CredentialKind(row.kind),
            row.host,
            row.username,
            row.plain_http,
            fingerprint or None,
            row.created_at,
        )

    def _secret(self, row: Any) -> tuple[str, str]:
        fingerprint, _, secret = self._vault.open(row.sealed, _credential_place(row._mapping)).decode().partition("\n")
        return fingerprint, secret

    def _value(self, row: Any) -> str:
        return self._vault.open(row.sealed, _variable_place(row._mapping)).decode()


def _held_by(holder: Holder) -> Any:
    return (_VARIABLES.c.organisation_id if holder.organisation else _VARIABLES.c.user_id) == holder.id


def _precedence(row: Any) -> tuple[bool, tuple[int, int, int], str]:
    return row.user_id is not None, specificity(row.repository), row.repository


def _credential_place(row: Any) -> Place:
    """With the host, so that nobody who can write to the database has a secret sent elsewhere."""
    plain = "plain" if row["plain_http"] else "tls"
    return Place("credentials", row["user_id"], (row["id"], row["kind"], row["host"], row["username"], plain))


def _variable_place(row: Any) -> Place:
    owner = row["user_id"] or row["organisation_id"]
    secret = "secret" if row["secret"] else "open"
    return Place("variables", owner, (row["id"], row["repository"], row["name"], secret))
