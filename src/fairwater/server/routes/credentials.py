"""Credentials of people for git hosts and image registries. A secret comes in and is never in an answer or a log.

No `Idempotency-Key` is taken here: what would be kept to know the request again could be used to guess its secret. To
add twice what was added is to have it once.
"""

from __future__ import annotations

import asyncio

import structlog
from fastapi import APIRouter, Request
from starlette.responses import Response

from fairwater.domain.failure import Permanent
from fairwater.domain.workspaces.credential_host import parse_credential_host
from fairwater.domain.workspaces.secrets import Credential, CredentialKind
from fairwater.domain.workspaces.ssh_key import parse_ssh_key
from fairwater.server.authorisation import Caller, account_for
from fairwater.server.documents import credential_document
from fairwater.server.idempotency import json_response
from fairwater.server.messages import AddCredential
from fairwater.server.services import services_of

router = APIRouter(prefix="/users/{user}/credentials", tags=["credentials"])
_log = structlog.get_logger("fairwater.server")


@router.get("")
async def list_credentials(request: Request, who: Caller, user: str) -> Response:
    """All of them: there are 64 at most."""
    async with services_of(request).database.read() as transaction:
        account = await account_for(request, transaction, who, user)
        found = await transaction.secrets.credentials(account.id)
    return json_response(200, {"items": [credential_document(one) for one in found], "next": None})


@router.post("", status_code=201)
async def add_credential(request: Request, who: Caller, user: str, body: AddCredential) -> Response:
    """In place of the one of the same kind for the same host. From then on it is used in every start."""
    services = services_of(request)
    credential, fingerprint = await _credential(body)
    async with services.database.write() as transaction:
        account = await account_for(request, transaction, who, user)
        stored = await transaction.secrets.put_credential(account.id, credential, fingerprint, services.clock.now())
    _log.info("credential_added", credential=stored.id, kind=stored.kind, host=stored.host, user=account.id, by=who.id)
    location = f"/api/v1/users/{account.id}/credentials/{stored.id}"
    return json_response(201, credential_document(stored), {"Location": location})


@router.delete("/{credential}", status_code=204)
async def delete_credential(request: Request, who: Caller, user: str, credential: str) -> Response:
    async with services_of(request).database.write() as transaction:
        account = await account_for(request, transaction, who, user)
        if not await transaction.secrets.remove_credential(account.id, credential):
            raise Permanent(f"{account.name} has no credential {credential[:40]!r}", code="no_such_credential")
    _log.info("credential_deleted", credential=credential[:40], user=account.id, by=who.id)
    return Response(status_code=204)


async def _credential(body: AddCredential) -> tuple[Credential, str | None]:
    """Raises Permanent: `bad_host`, `bad_credential`, `bad_ssh_key`."""
    host = parse_credential_host(body.host, body.kind, plain_http=body.plain_http)
    if body.kind is CredentialKind.TOKEN:
        secret = body.secret.strip()
        if not secret or not secret.isprintable():
            raise Permanent(
                "a token is one line of printable characters; for an SSH key, set kind to 'ssh-key'",
                code="bad_credential",
            )
        return Credential(body.kind, host, body.username, secret, body.plain_http), None
    if body.plain_http:
        raise Permanent("an SSH key is never sent, so plain_http has no meaning for it", code="bad_credential")
    # In a thread: it is arithmetic with large numbers, for a fraction of a second.
    key, fingerprint = await asyncio.to_thread(parse_ssh_key, body.secret)
    return Credential(body.kind, host, body.username or "git", key), fingerprint
