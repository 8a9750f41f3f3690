"""The database as a whole, for administrators: a backup while the server runs, its restoration, and new keys."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import UTC
from typing import Annotated

import structlog
from fastapi import APIRouter, Query, Request
from starlette.responses import Response

from fairwater.domain.failure import Permanent
from fairwater.server.authorisation import Caller
from fairwater.server.idempotency import json_response
from fairwater.server.services import services_of
from fairwater.server.streams import ClosingStream, Watched
from fairwater.serving.peers import STOPPING

router = APIRouter(prefix="/admin", tags=["administration"])
_FIRST_BYTES_S = 30.0
_MEDIA_TYPE = "application/octet-stream"
_log = structlog.get_logger("fairwater.server")


@router.get("/backup")
async def download_backup(request: Request, who: Caller) -> Response:
    """Everything but the content of workspaces, as it was at one moment. Secrets in it stay sealed."""
    services = services_of(request)
    if services.backup is None:
        raise _not_offered()
    stream = Watched(services.backup(), request.scope.get(STOPPING))
    await stream.begin(_FIRST_BYTES_S)
    _log.info("backup_begun", by=who.id)
    at = services.clock.now().astimezone(UTC).strftime("%Y%m%d-%H%M%S")
    headers = {
        "Content-Disposition": f'attachment; filename="fairwater-{at}.backup"',
        "Cache-Control": "no-store",
        "X-Content-Type-Options": "nosniff",
    }
    return ClosingStream(_whole(stream), stream.close, _MEDIA_TYPE, headers)


@router.post("/restore")
async def upload_backup(request: Request, who: Caller, confirm: Annotated[bool, Query()] = False) -> Response:
    """Puts a backup in the place of everything that is in the database. Nothing is changed before all of it is here.

    Needs `confirm=true`. `unknown` are the workspaces that run and that the backup does not know: nobody looks after
    them any more.
    """
    services = services_of(request)
    if services.restore is None:
        raise _not_offered()
    if not confirm:
        raise Permanent(
            "a restoration replaces everything that is in the database: ask with confirm=true", code="not_confirmed"
        )
    _log.warning("restore_begun", by=who.id)
    restored = await services.restore(_body(request))
    services.authenticator.forget_all()
    warning = None
    try:
        async with services.database.write() as transaction:
            await transaction.secrets.prove_key(services.clock.now())
    except Permanent as failure:
        warning = failure.message
    _log.warning("restored", by=who.id, reason=warning, unknown=list(restored.unknown))
    return json_response(200, {"restored": dict(restored.rows), "warning": warning, "unknown": list(restored.unknown)})


@router.post("/rotate-keys")
async def rotate_keys(request: Request, who: Caller) -> Response:
    """Seals every secret anew with the first master key; the others are not needed afterwards."""
    services = services_of(request)
    async with services.database.write() as transaction:
        count = await transaction.secrets.rotate(services.clock.now())
    _log.warning("keys_rotated", secrets=count, by=who.id)
    return json_response(200, {"sealed": count})


async def _body(request: Request) -> AsyncIterator[bytes]:
    async for chunk in request.stream():
        if chunk:
            yield chunk


async def _whole(stream: Watched[bytes]) -> AsyncIterator[bytes]:
    """Cut short by the server's end, the answer must not look complete: a backup that ends early is none."""
    async for chunk in stream.items():
        yield chunk
    if not stream.ended:
        raise Permanent("the server stops: ask for the backup again", code="cut_off")


def _not_offered() -> Permanent:
    return Permanent("this server offers no backups of its database", code="not_offered")
