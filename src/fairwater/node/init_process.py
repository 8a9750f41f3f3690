"""A command under way in a workspace, on the agent's side of its pipes or its terminal.

Reads only when somebody takes the output, so that a command which prints faster than it is read waits in the kernel
like in any pipe. Decides nothing about what runs; PID 1 began it (`init_client.py`).
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import os
import signal
import socket
import struct
import termios
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass

from fairwater.domain.failure import Permanent, Temporary
from fairwater.node.init_messages import REPLY, Answer, Reply, Request, exit_status, parse_reply, request, window
from fairwater.ports.process import Channel, TerminalSize

CHUNK = 64 * 1024
"""Bytes read at once: as much as a pipe holds."""
_CHUNKS_WITHOUT_PAUSE = 16
_END_OF_TRANSMISSION = b"\x04"


@dataclass(frozen=True, slots=True)
class Streams:
    """Descriptors that do not block, owned by the process from now on. A terminal's is both stdin and stdout."""

    stdin: int
    stdout: int
    stderr: int | None = None
    terminal: bool = False


class InitProcess:
    """Implements `ports/process.py` Process. Use it in the event loop in which it was made."""

    def __init__(self, connection: socket.socket, pid: int, streams: Streams) -> None:
        self.pid = pid
        """The pid inside the workspace."""
        self._connection = connection
        self._terminal = streams.stdout if streams.terminal else None
        self._stdin: int | None = streams.stdin
        self._sources = {Channel.STDOUT: streams.stdout}
        if streams.stderr is not None:
            self._sources[Channel.STDERR] = streams.stderr
        self._loop = asyncio.get_running_loop()
        self._closed = False
        self._writing = asyncio.Lock()
        self._waiters: set[asyncio.Future[None]] = set()
        self._exit: asyncio.Future[Reply | None] = self._loop.create_future()
        self._loop.add_reader(connection, self._hear)

    async def output(self) -> AsyncIterator[tuple[Channel, bytes]]:
        chunks = 0
        while self._sources and not self._closed:
            idle = True
            for channel, source in tuple(self._sources.items()):
                data = self._read(channel, source)
                if data:
                    idle = False
                    chunks += 1
                    yield channel, data
                    if chunks % _CHUNKS_WITHOUT_PAUSE == 0:
                        await asyncio.sleep(0)  # a command that never stops printing must not hold the loop
            if idle and self._sources and not self._closed:
                await self._ready(self._loop.add_reader, self._loop.remove_reader, *self._sources.values())

    async def write(self, data: bytes) -> None:
        """Writes to standard input; what a command no longer reads is dropped. Empty data ends it (^D on a terminal).

        Raises:
            Temporary: `connection_lost`, once the process was closed.
        """
        async with self._writing:
            if self._closed:
                raise Temporary("the command's connection is closed", code="connection_lost")
            if not data and self._terminal is None:
                self._end_stdin()
                return
            rest = memoryview(data or _END_OF_TRANSMISSION)
            while rest and self._stdin is not None:
                try:
                    rest = rest[os.write(self._stdin, rest) :]
                except BlockingIOError:
                    await self._ready(self._loop.add_writer, self._loop.remove_writer, self._stdin)
                except OSError as error:
                    if error.errno not in (errno.EPIPE, errno.EIO):
                        raise
                    self._end_stdin()

    async def signal(self, name: str) -> None:
        """Sends a signal by name, with or without `SIG`; a command that has ended gets none.

        Raises:
            Permanent: `bad_signal`.
        """
        plain = name.upper().removeprefix("SIG")
        number = signal.Signals.__members__.get(f"SIG{plain}")
        if number is None:
            raise Permanent(f"{name[:40]!r} is no signal: use TERM, INT, HUP, KILL, …", code="bad_signal")
        if self._exit.done() or self._closed:
            return
        with contextlib.suppress(OSError):  # PID 1 is gone: `wait` tells
            self._connection.send(request(Request.SIGNAL, number=number), socket.MSG_NOSIGNAL)

    async def resize(self, size: TerminalSize) -> None:
        """The kernel tells the foreground command of it. Raises Permanent (`no_terminal`)."""
        if self._terminal is None:
            raise Permanent("the command has no terminal to resize", code="no_terminal")
        if not self._closed and Channel.STDOUT in self._sources:
            with contextlib.suppress(OSError):  # the other side has just closed it
                fcntl.ioctl(self._terminal, termios.TIOCSWINSZ, struct.pack("=HHHH", *window(size), 0, 0))

    async def wait(self) -> int:
        reply = await asyncio.shield(self._exit)
        if reply is None:
            raise Temporary(
                "the connection to the command was lost before it ended: the workspace has stopped or was left",
                code="connection_lost",
            )
        return exit_status(reply.value)

    async def close(self) -> None:
        """Hangs the command up when it still runs; may be repeated."""
        if self._closed:
            return
        self._closed = True
        self._leave_connection()
        if not self._exit.done():
            self._exit.set_result(None)
        if self._stdin is not None:
            self._loop.remove_writer(self._stdin)
        for source in self._sources.values():
            self._loop.remove_reader(source)
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_result(None)
        self._end_stdin()
        for channel in tuple(self._sources):
            self._end_source(channel)
        if self._terminal is not None:
            os.close(self._terminal)

    def _read(self, channel: Channel, source: int) -> bytes:
        """A chunk, or nothing: none is there now, or the stream has ended and is gone from the sources."""
        if self._closed:
            return b""
        try:
            data = os.read(source, CHUNK)
        except BlockingIOError:
            return b""
        except OSError as error:
            if error.errno != errno.EIO:  # a terminal's end
                raise
            data = b""
        if not data:
            self._end_source(channel)
        return data

    async def _ready(
        self, add: Callable[[int, Callable[[], None]], None], remove: Callable[[int], bool], *descriptors: int
    ) -> None:
        """Waits until one of the descriptors is ready, or the process is closed."""
        waiter: asyncio.Future[None] = self._loop.create_future()

        def wake() -> None:
            if not waiter.done():
                waiter.set_result(None)

        self._waiters.add(waiter)
        try:
            for descriptor in descriptors:
                add(descriptor, wake)
            await waiter
        finally:
            self._waiters.discard(waiter)
            if not self._closed:  # `close` has done it, and the numbers may be others' by now
                for descriptor in descriptors:
                    remove(descriptor)

    def _hear(self) -> None:
        """Takes what PID 1 says of the command: its end, or that of the connection."""
        reply: Reply | None = None
        try:
            reply = parse_reply(self._connection.recv(REPLY.size + 1))
        except BlockingIOError:
            return
        except (OSError, Temporary):
            reply = None
        if reply is not None and reply.kind != Answer.EXITED:
            reply = None  # nothing else is due here
        if not self._exit.done():
            self._exit.set_result(reply)
        self._leave_connection()

    def _leave_connection(self) -> None:
        if self._connection.fileno() >= 0:
            self._loop.remove_reader(self._connection)
            self._connection.close()

    def _end_stdin(self) -> None:
        if self._stdin is not None and self._stdin != self._terminal:
            os.close(self._stdin)
        self._stdin = None

    def _end_source(self, channel: Channel) -> None:
        source = self._sources.pop(channel, None)
        if source is not None and source != self._terminal:
            os.close(source)
