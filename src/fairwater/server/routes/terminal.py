"""Commands and terminals in a workspace, by WebSocket: the frames of `ports/process.py`, relayed both ways.

Nothing is gathered on the way: output waits until the reader has taken what came before, and so does input until the
command reads it.
"""

from __future__ import annotations

import asyncio
import json
from typing import Any

from fastapi import APIRouter, WebSocket
from pydantic import ValidationError
from starlette.websockets import WebSocketDisconnect

from fairwater.domain.failure import Permanent, Temporary
from fairwater.ports.process import Channel, Process, TerminalSize
from fairwater.server.authorisation import Caller, workspace_for
from fairwater.server.commands import begin, exec_request, story
from fairwater.server.messages import OpenTerminal, Terminal
from fairwater.server.services import services_of
from fairwater.server.streams import Watched, finish
from fairwater.serving.peers import LEFT, STOPPING

SUBPROTOCOL = "fairwater.exec.v1"
router = APIRouter(prefix="/workspaces", tags=["exec"])
_FIRST_MESSAGE_S = 10.0
_INPUT_FRAMES = 16
_SIGNALS = frozenset({"HUP", "INT", "QUIT", "KILL", "USR1", "USR2", "TERM", "CONT", "STOP", "TSTP", "WINCH"})


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
    last: dict[str, Any] | None
    try:
        with services.authenticator.staying(who, revoked):
            body = await _first_message(websocket)
            process = await begin(services, entry, exec_request(body))
            try:
                last = await _relay(websocket, process, revoked)
            finally:
                await finish(process.close())
    except (Temporary, Permanent) as failure:
        last = {"error": {"code": failure.code, "message": failure.message}}
    except WebSocketDisconnect:
        return
    if last is not None:
        try:
            await websocket.send_bytes(bytes([Channel.CONTROL]) + json.dumps(last).encode())
            await websocket.close(1000)
        except (WebSocketDisconnect, RuntimeError):
            return  # they left before the last word


async def _first_message(websocket: WebSocket) -> OpenTerminal:
    """Raises Permanent: `bad_first_message`."""
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


async def _relay(websocket: WebSocket, process: Process, revoked: asyncio.Event) -> dict[str, Any] | None:
    """The last frame's content; None where nobody is left to get it. Raises Permanent: `bad_frame`, `cut_off`."""
    over = asyncio.Event()
    reading = asyncio.create_task(_read(websocket, process, over))
    scope = websocket.scope
    watched = Watched(story(process), over, revoked, scope.get(STOPPING), scope.get(LEFT))
    try:
        async for piece in watched.items():
            if isinstance(piece, int):
                return {"exit": piece}
            await websocket.send_bytes(bytes([piece[0]]) + piece[1])
    finally:
        if not reading.done():
            reading.cancel()
            await asyncio.wait({reading})
        await watched.close()
    if over.is_set() and not reading.cancelled():
        reading.result()
        return None
    raise Permanent("the command was hung up: the server is stopping, or you may no longer run it", code="cut_off")


async def _read(websocket: WebSocket, process: Process, over: asyncio.Event) -> None:
    """Frames towards the command, until the client leaves. Raises Permanent: `bad_frame`."""
    # Input has a queue of its own, so that a signal still arrives while the command does not read.
    queue: asyncio.Queue[bytes] = asyncio.Queue(_INPUT_FRAMES)
    writing = asyncio.create_task(_write(process, queue))
    try:
        while True:
            message = await websocket.receive()
            if message["type"] == "websocket.disconnect":
                return
            frame: bytes = message.get("bytes") or b""
            if not frame or frame[0] not in {Channel.STDIN, Channel.CONTROL}:
                raise _bad_frame("a frame towards a command begins with 0 (standard input) or 3 (control)")
            if frame[0] == Channel.CONTROL:
                await _control(process, frame[1:], queue)
            elif len(frame) > 1:
                await queue.put(frame[1:])
    finally:
        writing.cancel()
        over.set()


async def _write(process: Process, queue: asyncio.Queue[bytes]) -> None:
    broken = False
    while True:
        data = await queue.get()
        try:
            if not broken:
                await process.write(data)
        except (Temporary, Permanent):
            broken = True  # it reads no more; how it ended is told by its exit status


async def _control(process: Process, content: bytes, queue: asyncio.Queue[bytes]) -> None:
    try:
        order = json.loads(content)
    except (ValueError, RecursionError):
        raise _bad_frame("a control frame is one JSON object") from None
    try:
        match order:
            case {"resize": [int(rows), int(columns)]}:
                size = Terminal(rows=rows, columns=columns)
                await process.resize(TerminalSize(size.rows, size.columns))
            case {"signal": str(name)} if name in _SIGNALS:
                await process.signal(name)
            case {"eof": True}:
                await queue.put(b"")
            case _:
                raise _bad_frame('control is {"resize": [rows, columns]}, {"signal": NAME} or {"eof": true}')
    except ValidationError:
        raise _bad_frame("a terminal has 1 to 2000 rows and columns") from None
    except Temporary:
        return  # it ended meanwhile


def _bad_frame(message: str) -> Permanent:
    return Permanent(message, code="bad_frame")
