"""Commands and terminals in a workspace, by WebSocket: the frames of `ports/process.py`, relayed both ways.

Decides who may open one, and until when; how streams travel is `serving.command_session`'s business.
"""

from __future__ import annotations

import asyncio
import contextlib

from fastapi import APIRouter, WebSocket
from pydantic import ValidationError
from starlette.websockets import WebSocketDisconnect

from fairwater.domain.failure import Permanent
from fairwater.server.authorisation import Caller, workspace_for
from fairwater.server.commands import begin, cut_off, exec_request
from fairwater.server.messages import OpenTerminal
from fairwater.server.services import services_of
from fairwater.serving.command_session import serve_command
from fairwater.serving.frames import failure_frame
from fairwater.serving.peers import STOPPING

SUBPROTOCOL = "fairwater.exec.v1"
router = APIRouter(prefix="/workspaces", tags=["exec"])
_FIRST_MESSAGE_S = 10.0


@router.websocket("/{workspace}/exec")
async def exec_terminal(websocket: WebSocket, who: Caller, workspace: str) -> None:
    services = services_of(websocket)
    async with services.database.read() as transaction:
        entry = await workspace_for(websocket, transaction, who, workspace)
    offered = websocket.scope.get("subprotocols", [])
    if offered and SUBPROTOCOL not in offered:
        raise Permanent(f"the only sub-protocol here is {SUBPROTOCOL}", code="bad_subprotocol")
    await websocket.accept(SUBPROTOCOL if offered else None)
    revoked = asyncio.Event()
    with services.authenticator.staying(who, revoked):
        try:
            body = await _first_message(websocket)
        except Permanent as failure:
            await _end(websocket, failure)
            return
        except WebSocketDisconnect:
            return
        session = asyncio.create_task(serve_command(websocket, begin(services, entry, exec_request(body))))
        stopping: asyncio.Event | None = websocket.scope.get(STOPPING)
        ends = [asyncio.ensure_future(end.wait()) for end in (revoked, stopping) if end is not None]
        try:
            await asyncio.wait({session, *ends}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for one in (session, *ends):
                one.cancel()
            await asyncio.wait({session})  # hangs the command up
        if session.cancelled():
            await _end(websocket, cut_off())
        else:
            session.result()


async def _first_message(websocket: WebSocket) -> OpenTerminal:
    """Raises Permanent: `bad_first_message`; WebSocketDisconnect."""
    try:
        async with asyncio.timeout(_FIRST_MESSAGE_S):
            message = await websocket.receive()
    except TimeoutError:
        raise Permanent("the first message did not come in time", code="bad_first_message") from None
    if message["type"] == "websocket.disconnect":
        raise WebSocketDisconnect(message.get("code", 1005))
    try:
        return OpenTerminal.model_validate_json(message.get("text") or "")
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"]) or "the first message"
        raise Permanent(f"{where}: {first['msg']}", code="bad_first_message") from None


async def _end(websocket: WebSocket, failure: Permanent) -> None:
    with contextlib.suppress(WebSocketDisconnect, RuntimeError):  # RuntimeError: it was closed meanwhile
        await websocket.send_bytes(failure_frame(failure))
        await websocket.close()
