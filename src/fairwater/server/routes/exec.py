"""Commands in a workspace, by POST: collected into one answer, or line by line as they print."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncGenerator
from contextlib import ExitStack
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from fairwater.domain.failure import Permanent, Temporary
from fairwater.ports.process import Channel, Process
from fairwater.server.authentication import Principal
from fairwater.server.authorisation import Caller, workspace_for
from fairwater.server.commands import Collected, Piece, alarm, begin, cut_off, exec_request, fed, story
from fairwater.server.idempotency import Once, Reply
from fairwater.server.messages import RunCommand
from fairwater.server.services import services_of
from fairwater.server.streams import ClosingStream, Watched, finish
from fairwater.serving.peers import STOPPING

router = APIRouter(prefix="/workspaces", tags=["exec"])
NDJSON = "application/x-ndjson"


@router.post("/{workspace}/exec")
async def exec_command(request: Request, who: Caller, workspace: str, body: RunCommand) -> Response:
    """With `Accept: application/x-ndjson`, one object a line as it comes; the answer to a key is then not kept."""
    services = services_of(request)
    async with services.database.read() as transaction:
        entry = await workspace_for(request, transaction, who, workspace)
    once = Once(request, who)
    before = await once.reserve()
    if before is not None:
        return before
    try:
        process = await begin(services, entry, exec_request(body))
    except (Temporary, Permanent):
        await once.undone()
        raise
    if NDJSON in request.headers.get("accept", ""):
        await once.done(Reply(200, None, secret=True))
        return _stream(request, who, process, body)
    return await once.done(Reply(200, await _collect(request, who, process, body)))


async def _collect(request: Request, who: Principal, process: Process, body: RunCommand) -> dict[str, Any]:
    """Raises Permanent: `exec_timeout`, `cut_off`; Temporary where the node was lost."""
    collected, left, revoked = Collected(), asyncio.Event(), asyncio.Event()
    leaving = asyncio.create_task(_notice(request, left))
    with alarm(body.timeout_s) as overdue, services_of(request).authenticator.staying(who, revoked):
        watched = Watched(story(process), left, overdue, revoked, request.scope.get(STOPPING))
        try:
            async with fed(process, body.stdin or b""):
                async for piece in watched.items():
                    if isinstance(piece, int):
                        return _result(piece, collected)
                    collected.add(*piece)
        finally:
            leaving.cancel()
            await finish(_hang_up(process, watched))
        raise _unfinished(overdue, body)


def _result(status: int, collected: Collected) -> dict[str, Any]:
    return {
        "exit_code": status,
        "stdout": collected.text(Channel.STDOUT),
        "stderr": collected.text(Channel.STDERR),
        "stdout_truncated": Channel.STDOUT in collected.truncated,
        "stderr_truncated": Channel.STDERR in collected.truncated,
    }


def _stream(request: Request, who: Principal, process: Process, body: RunCommand) -> Response:
    revoked, stack = asyncio.Event(), ExitStack()
    stack.enter_context(services_of(request).authenticator.staying(who, revoked))
    overdue = stack.enter_context(alarm(body.timeout_s))
    watched = Watched(story(process), overdue, revoked, request.scope.get(STOPPING))

    async def lines() -> AsyncGenerator[bytes]:
        try:
            async with fed(process, body.stdin or b""):
                async for piece in watched.items():
                    if isinstance(piece, int):
                        yield _line({"exit_code": piece})
                        return
                    channel, data = piece
                    yield _line({"stream": channel.name.lower(), "data": base64.b64encode(data).decode()})
            failure: Permanent | Temporary = _unfinished(overdue, body)
        except (Temporary, Permanent) as lost:
            failure = lost
        yield _line({"error": {"code": failure.code, "message": failure.message}})

    content = lines()

    async def ended() -> None:
        stack.close()
        await content.aclose()
        await _hang_up(process, watched)

    return ClosingStream(content, ended, NDJSON)


async def _hang_up(process: Process, watched: Watched[Piece]) -> None:
    await process.close()
    await watched.close()


async def _notice(request: Request, left: asyncio.Event) -> None:
    """Sets `left` when the client is gone; its body was read before."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
    left.set()


def _line(document: dict[str, Any]) -> bytes:
    return json.dumps(document, separators=(",", ":")).encode() + b"\n"


def _unfinished(overdue: asyncio.Event, body: RunCommand) -> Permanent:
    if overdue.is_set():
        return Permanent(
            f"the command took longer than {body.timeout_s:g} s and was hung up: give it more with timeout_s",
            code="exec_timeout",
        )
    return cut_off()
