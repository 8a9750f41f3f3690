"""A command under way on the node, over a WebSocket on the agent's socket."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

from websockets.asyncio.client import ClientConnection, unix_connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidStatus

from fairwater.domain.failure import Permanent, Temporary
from fairwater.engines.local.failures import away, read_problem
from fairwater.ports.agent import API_VERSION, VERSION_HEADER
from fairwater.ports.process import Channel, ExecRequest, TerminalSize
from fairwater.serving.agent_messages import EXEC_REQUEST
from fairwater.serving.frames import FRAME_BYTES_MAX, control, frame, read_control, read_failure, read_frame

_HELD_FRAMES = 32
"""Output that nobody has asked for yet; at most so many frames, then the command has to wait."""
_INPUT_FRAME_BYTES = 64 * 1024


async def start_remote(socket: Path, path: str, request: ExecRequest, *, timeout_s: float) -> RemoteProcess:
    """Starts a command on the node; `path` is the route with its query.

    Raises:
        Permanent: what the agent refuses it for; `agent_version`.
        Temporary: `agent_away`, `agent_slow`; what the agent cannot do now.
    """
    connecting = unix_connect(
        str(socket),
        f"ws://agent{path}",
        additional_headers={VERSION_HEADER: str(API_VERSION)},
        user_agent_header=None,
        compression=None,
        proxy=None,
        open_timeout=timeout_s,
        close_timeout=1.0,
        ping_interval=None,  # the kernel knows when the other end of a unix socket is gone
        max_size=FRAME_BYTES_MAX + 1024,
        max_queue=4,
    )
    try:
        connection = await connecting
    except InvalidStatus as refused:
        raise read_problem(refused.response.status_code, bytes(refused.response.body or b"")) from refused
    except TimeoutError as error:
        raise Temporary(f"the node agent on {socket} took too long to answer", code="agent_slow") from error
    except (OSError, InvalidHandshake, ConnectionClosed) as error:
        raise away(socket, str(error)) from error
    try:
        await connection.send(EXEC_REQUEST.dump_json(request).decode())
        async with asyncio.timeout(timeout_s):
            channel, data = read_frame(await connection.recv(decode=False))
        members = read_control(data) if channel is Channel.CONTROL else {}
        if "error" in members:
            raise read_failure(members["error"])
    except ConnectionClosed as error:
        raise away(socket, "it closed the connection") from error
    except TimeoutError as error:
        connection.transport.abort()
        raise Temporary(f"the node agent on {socket} took too long to start a command", code="agent_slow") from error
    except BaseException:
        connection.transport.abort()
        raise
    return RemoteProcess(connection, socket)


class RemoteProcess:
    """Implements `ports.process.Process`."""

    def __init__(self, connection: ClientConnection, socket: Path) -> None:
        self._connection = connection
        self._socket = socket
        self._held: asyncio.Queue[tuple[Channel, bytes] | None] = asyncio.Queue(_HELD_FRAMES)
        self._ended: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._reading = asyncio.create_task(self._read())

    async def output(self) -> AsyncIterator[tuple[Channel, bytes]]:
        while (chunk := await self._held.get()) is not None:
            yield chunk

    async def write(self, data: bytes) -> None:
        if not data:
            await self._send(control(eof=True))
        for start in range(0, len(data), _INPUT_FRAME_BYTES):
            await self._send(frame(Channel.STDIN, data[start : start + _INPUT_FRAME_BYTES]))

    async def signal(self, name: str) -> None:
        await self._send(control(signal=name))

    async def resize(self, size: TerminalSize) -> None:
        await self._send(control(resize=[size.rows, size.columns]))

    async def wait(self) -> int:
        return await asyncio.shield(self._ended)

    async def close(self) -> None:
        """The agent hangs the command up when the connection goes."""
        self._reading.cancel()
        await asyncio.gather(self._reading, return_exceptions=True)
        if self._ended.done():
            await self._connection.close()
        else:
            self._connection.transport.abort()  # a close in good order would wait behind what is still to be sent
        if not self._ended.done():
            self._ended.set_exception(Temporary("the command was left before it ended", code="connection_lost"))
        self._ended.exception()  # nobody need ask for it

    async def _send(self, message: bytes) -> None:
        """A command that has ended takes nothing more; `wait` tells how it ended."""
        with contextlib.suppress(ConnectionClosed):
            await self._connection.send(message)

    async def _read(self) -> None:
        outcome: int | Temporary | Permanent = Temporary(
            f"the connection to the node agent on {self._socket} was lost while the command ran",
            code="connection_lost",
        )
        try:
            async for message in self._connection:
                channel, data = read_frame(message if isinstance(message, bytes) else message.encode())
                if channel is not Channel.CONTROL:
                    await self._held.put((channel, data))
                    continue
                members = read_control(data)
                if "exit" in members:
                    outcome = int(members["exit"])
                elif "error" in members:
                    outcome = read_failure(members["error"])
                else:
                    continue
                break
        except ConnectionClosed:
            pass
        except Permanent as failure:
            outcome = failure
        if isinstance(outcome, int):
            self._ended.set_result(outcome)
        else:
            self._ended.set_exception(outcome)
            self._ended.exception()  # it is kept for `wait`, and no warning is due where nobody waits
        await self._held.put(None)
