"""One connection to a workspace's PID 1: packets with descriptors, bounded in size and time.

Knows how bytes and descriptors travel, and closes what nobody takes; what they mean is `init_client.py`'s.
"""

from __future__ import annotations

import array
import asyncio
import contextlib
import os
import socket
import stat
from collections.abc import Iterator
from pathlib import Path

from fairwater.domain.failure import Temporary
from fairwater.node.init_messages import REPLY, Reply, parse_reply

_PATH_MAX = 100
"""Bytes of a path that fit into a socket's address, with room to spare (the kernel has 108)."""


class Descriptor:
    """A descriptor that is closed at the end of the block unless it was released."""

    def __init__(self, number: int | None) -> None:
        self._number = number

    @property
    def number(self) -> int:
        return -1 if self._number is None else self._number

    def release(self) -> int:
        number, self._number = self.number, None
        return number

    def __enter__(self) -> Descriptor:
        return self

    def __exit__(self, *_: object) -> None:
        if self._number is not None:
            os.close(self.release())


@contextlib.contextmanager
def pipe() -> Iterator[tuple[Descriptor, Descriptor]]:
    """A pipe's reading and writing end."""
    reading, writing = os.pipe2(os.O_CLOEXEC)
    with Descriptor(reading) as first, Descriptor(writing) as second:
        yield first, second


def connect(path: Path) -> socket.socket:
    """Raises Temporary: `init_gone`, where nobody listens; `busy`."""
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK)
    try:
        if len(os.fsencode(path)) <= _PATH_MAX:
            connection.connect(os.fspath(path))
        else:
            with Descriptor(os.open(path.parent, os.O_PATH | os.O_CLOEXEC)) as folder:
                connection.connect(f"/proc/self/fd/{folder.number}/{path.name}")
    except BlockingIOError:
        connection.close()
        raise Temporary("the workspace's first process is busy: try again", code="busy", delay_s=0.1) from None
    except OSError as error:
        connection.close()
        raise Temporary(
            f"no first process answers at {path}: {error.strerror}; the workspace is not running",
            code="init_gone",
        ) from error
    return connection


async def receive(connection: socket.socket, within_s: float) -> tuple[Reply, Descriptor]:
    """One reply, with the descriptor that came with it, if any.

    Raises:
        Temporary: `init_silent`, `init_gone`, `init_confused`.
    """
    loop = asyncio.get_running_loop()
    ready: asyncio.Future[None] = loop.create_future()

    def wake() -> None:
        if not ready.done():
            ready.set_result(None)

    loop.add_reader(connection, wake)
    try:
        async with asyncio.timeout(within_s):
            await ready
    except TimeoutError:
        raise Temporary(
            f"the workspace's first process gave no answer within {within_s:g} s", code="init_silent"
        ) from None
    finally:
        loop.remove_reader(connection)
    return _receive(connection)


def send(connection: socket.socket, message: bytes, descriptors: tuple[int, ...] = ()) -> None:
    """Sends a request with its descriptors, which stay open here. Raises Temporary (`init_gone`)."""
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))] if descriptors else []
    try:
        connection.sendmsg([message], rights, socket.MSG_NOSIGNAL)
    except OSError as error:
        raise Temporary(f"the workspace's first process is gone: {error.strerror}", code="init_gone") from error


def _receive(connection: socket.socket) -> tuple[Reply, Descriptor]:
    size = array.array("i").itemsize
    try:
        data, control, _, _ = connection.recvmsg(REPLY.size + 1, socket.CMSG_LEN(size), socket.MSG_CMSG_CLOEXEC)
    except OSError as error:
        raise Temporary(f"the workspace's first process is gone: {error.strerror}", code="init_gone") from error
    descriptors = array.array("i")
    for level, kind, content in control:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            descriptors.frombytes(content[: len(content) - len(content) % size])
    with contextlib.ExitStack() as undo:
        held = [undo.enter_context(Descriptor(number)) for number in descriptors]
        reply = parse_reply(data)
        return reply, Descriptor(held[0].release() if held else None)


def is_terminal_master(descriptor: int) -> bool:
    """Whether it is the master's side of a pseudo-terminal, the one kind of descriptor that PID 1 hands back."""
    if descriptor < 0:
        return False
    status = os.fstat(descriptor)
    return stat.S_ISCHR(status.st_mode) and status.st_rdev == os.makedev(5, 2)
