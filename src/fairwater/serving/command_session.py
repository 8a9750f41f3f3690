"""A command's streams between a process and an accepted WebSocket, with back-pressure both ways.

Decides when the session is over: the command ended and its output is through, or the client is gone, which hangs the
command up. Refuses to know where the command runs.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable
from typing import Any

from starlette.websockets import WebSocket, WebSocketDisconnect

from fairwater.domain.failure import Permanent, Temporary
from fairwater.ports.process import Channel, Process
from fairwater.serving.frames import (
    FRAME_BYTES_MAX,
    STARTED,
    control,
    failure_frame,
    frame,
    read_control,
    read_frame,
    read_size,
)
from fairwater.serving.peers import LEFT

_INPUT_BYTES_MAX = 1024 * 1024
"""How much standard input is held for a command that does not read, so that a signal behind it still arrives."""
_LINGER_S = 0.25
"""How long output may stay silent after the command's end: a child left in the background keeps its streams open."""


async def serve_command(websocket: WebSocket, starting: Awaitable[Process]) -> None:
    """Starts the command and carries its streams over `websocket`, which is closed at the end."""
    try:
        process = await starting
    except (Temporary, Permanent) as failure:
        await _finish(websocket, failure_frame(failure))
        return
    session = _Session(websocket, process)
    try:
        last = await session.run()
    finally:
        await process.close()
    if last is not None:
        await _finish(websocket, last)


async def _finish(websocket: WebSocket, last: bytes) -> None:
    with contextlib.suppress(WebSocketDisconnect, RuntimeError):  # RuntimeError: it was closed meanwhile
        await websocket.send_bytes(last)
        await websocket.close()


class _Session:
    def __init__(self, websocket: WebSocket, process: Process) -> None:
        self._websocket = websocket
        self._process = process
        self._input: asyncio.Queue[bytes] = asyncio.Queue()
        self._input_bytes = 0
        self._room = asyncio.Event()
        self._sending = False
        self._sent = 0

    async def run(self) -> bytes | None:
        """The last frame to send; None when the client is gone."""
        left: asyncio.Event = self._websocket.scope.get(LEFT) or asyncio.Event()
        try:
            await self._websocket.send_bytes(STARTED)
        except WebSocketDisconnect:
            return None
        gone = asyncio.ensure_future(left.wait())
        receiving = asyncio.create_task(self._receive())
        feeding = asyncio.create_task(self._feed())
        ending = asyncio.create_task(self._carry_output())
        tasks: set[asyncio.Future[Any]] = {gone, receiving, feeding, ending}
        try:
            await asyncio.wait({gone, receiving, ending}, return_when=asyncio.FIRST_COMPLETED)
            for task in (ending, receiving):
                if task.done():
                    return task.result()
            return None
        except (Temporary, Permanent) as failure:
            return failure_frame(failure)
        except WebSocketDisconnect:
            return None
        finally:
            for one in tasks:
                one.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _carry_output(self) -> bytes:
        """Sends the output until the command has ended and all of it is through; the frame with its exit status."""
        sending = asyncio.create_task(self._send())
        try:
            status = await self._process.wait()
            while not sending.done():
                sent = self._sent
                await asyncio.wait({sending}, timeout=_LINGER_S)
                if not self._sending and self._sent == sent:
                    break
            if sending.done():
                sending.result()
        finally:
            sending.cancel()
            await asyncio.gather(sending, return_exceptions=True)
        return control(exit=status)

    async def _send(self) -> None:
        async for channel, data in self._process.output():
            self._sending = True
            for start in range(0, len(data), FRAME_BYTES_MAX):
                await self._websocket.send_bytes(frame(channel, data[start : start + FRAME_BYTES_MAX]))
            self._sent += 1
            self._sending = False

    async def _receive(self) -> None:
        """Takes what the client sends until it is gone."""
        while True:
            message = await self._websocket.receive()
            if message["type"] == "websocket.disconnect":
                return
            channel, data = read_frame(message.get("bytes") or b"")
            match channel:
                case Channel.STDIN if data:
                    await self._put(data)
                case Channel.STDIN:
                    pass  # the end of input is said on its own
                case Channel.CONTROL:
                    await self._control(read_control(data))
                case _:
                    raise Permanent("output comes from the command, not from its client", code="bad_frame")

    async def _control(self, members: dict[str, Any]) -> None:
        if "resize" in members:
            await self._process.resize(read_size(members["resize"]))
        if "signal" in members:
            await self._process.signal(str(members["signal"]))
        if members.get("eof"):
            await self._put(b"")

    async def _put(self, data: bytes) -> None:
        while self._input_bytes > _INPUT_BYTES_MAX:
            self._room.clear()
            await self._room.wait()
        self._input_bytes += len(data)
        self._input.put_nowait(data)

    async def _feed(self) -> None:
        while True:
            data = await self._input.get()
            await self._process.write(data)
            self._input_bytes -= len(data)
            self._room.set()
