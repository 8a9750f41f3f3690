"""What bringing in the content and the first process of a workspace have printed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import ExitStack

from fastapi import APIRouter, Request
from starlette.responses import Response

from fairwater.server.authentication import Principal
from fairwater.server.authorisation import Caller, workspace_for
from fairwater.server.services import services_of
from fairwater.server.streams import ClosingStream, Watched
from fairwater.serving.peers import STOPPING

router = APIRouter(prefix="/workspaces", tags=["logs"])
_FIRST_BYTES_S = 1.0
_HEADERS = {"X-Content-Type-Options": "nosniff", "Cache-Control": "no-store"}


@router.get("/{workspace}/logs")
async def read_logs(request: Request, who: Caller, workspace: str, follow: bool = False) -> Response:
    """Of the current run, or the last; with `follow`, on until it ends."""
    services = services_of(request)
    async with services.database.read() as transaction:
        entry = await workspace_for(request, transaction, who, workspace)
    chunks = services.access.logs(entry.workspace.id, entry.workspace.run, follow=follow)
    return await text_stream(request, who, chunks)


async def text_stream(request: Request, who: Principal, chunks: AsyncIterator[bytes]) -> Response:
    """An answer of `chunks` as they come, for as long as `who` may read. What fails at once is raised."""
    stack = ExitStack()
    revoked = asyncio.Event()
    stack.enter_context(services_of(request).authenticator.staying(who, revoked))
    stream = Watched(chunks, revoked, request.scope.get(STOPPING))

    async def ended() -> None:
        stack.close()
        await stream.close()

    try:
        await stream.begin(_FIRST_BYTES_S)
    except BaseException:
        stack.close()
        raise
    return ClosingStream(stream.items(), ended, "text/plain; charset=utf-8", _HEADERS)
