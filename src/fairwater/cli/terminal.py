"""A command in a workspace, joined to this process's own streams over a WebSocket.

Frames are those of `ports/process.py`. On a terminal the local one is put into raw mode and its size is followed;
elsewhere standard output and error stay apart. SIGINT and SIGTERM are handed on; a third SIGINT that finds the command
still there gives up on it. The exit status is the command's own.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
import termios
import threading
import tty
from collections.abc import Iterator
from typing import Any

from websockets.asyncio.client import ClientConnection, connect, unix_connect
from websockets.exceptions import ConnectionClosed, InvalidStatus, WebSocketException

from fairwater.cli.client import PREFIX, unreachable
from fairwater.cli.connection import Target
from fairwater.cli.output import say
from fairwater.cli.problem import failure_of
from fairwater.domain.failure import Permanent, Temporary
from fairwater.ports.process import Channel

PROTOCOL = "fairwater.exec.v1"
_CHUNK = 32 * 1024
_STATUS_OF = {"command_not_found": 127, "command_not_executable": 126}
"""What a shell would exit with."""


def run(target: Target, path: str, request: dict[str, Any], *, stdin: bool, use_terminal: bool) -> int:
    """Runs the command to its end and returns its exit status.

    Raises:
        Permanent, Temporary: it could not be started, or the connection to it was lost.
    """
    if use_terminal:
        columns, rows = _terminal_size()
        request = {**request, "terminal": {"rows": rows, "columns": columns}}
        request["environment"] = {"TERM": os.environ.get("TERM", "xterm"), **request["environment"]}
    else:
        request = {**request, "terminal": None}
    with _raw_terminal() if use_terminal else contextlib.nullcontext():
        try:
            status = asyncio.run(_session(target, path, request, stdin=stdin))
        except BrokenPipeError:
            return 128 + signal.SIGPIPE
        except asyncio.CancelledError:
            say("the command does not end: leaving it")
            return 128 + signal.SIGINT
    return status


async def _session(target: Target, path: str, request: dict[str, Any], *, stdin: bool) -> int:
    try:
        async with _dial(target, path) as socket:
            await socket.send(json.dumps(request))
            with _signals(socket, resizes=request["terminal"] is not None):
                pump = _pump_input(socket) if stdin else asyncio.create_task(_control(socket, {"eof": True}))
                try:
                    return await _pump_output(socket)
                finally:
                    pump.cancel()
    except InvalidStatus as error:
        raise _refused(error) from None
    except ConnectionClosed as error:
        raise Temporary(f"the connection to the command was lost ({error})", code="connection_lost") from None
    except (OSError, TimeoutError) as error:
        if isinstance(error, BrokenPipeError):
            raise
        raise unreachable(target, str(error)) from None
    except WebSocketException as error:
        raise Permanent(f"{target} did not answer as Fairwater does ({error})", code="not_fairwater") from None


def _dial(target: Target, path: str) -> connect:
    headers = {"Authorization": f"Bearer {target.token}"} if target.token else {}
    url = "ws" + target.url.removeprefix("http") + PREFIX + path
    options: dict[str, Any] = {
        "subprotocols": [PROTOCOL],
        "additional_headers": headers,
        "max_size": 4 * 1024 * 1024,
        "compression": None,
        "close_timeout": 2,
    }
    if target.socket is not None:
        return unix_connect(str(target.socket), url, **options)
    return connect(url, **options)


def _refused(error: InvalidStatus) -> Permanent | Temporary:
    try:
        problem = json.loads(error.response.body or b"")
    except ValueError:
        problem = {}
    return failure_of(error.response.status_code, problem if isinstance(problem, dict) else {})


async def _control(socket: ClientConnection, message: dict[str, Any]) -> None:
    with contextlib.suppress(ConnectionClosed):
        await socket.send(bytes([Channel.CONTROL]) + json.dumps(message).encode())


async def _pump_output(socket: ClientConnection) -> int:
    """Writes what the command writes, until it says how it ended."""
    async for message in socket:
        if not isinstance(message, bytes) or not message:
            continue
        channel, data = message[0], message[1:]
        if channel in {Channel.STDOUT, Channel.STDERR}:
            # In a thread: whoever reads us may wait for us to read first.
            await asyncio.to_thread(_write_all, 1 if channel == Channel.STDOUT else 2, data)
        elif channel == Channel.CONTROL:
            control = json.loads(data)
            if "exit" in control:
                return int(control["exit"])
            if "error" in control:
                return _failed(control["error"])
    raise Temporary("the server closed the connection before the command ended", code="connection_lost")


def _failed(error: dict[str, Any]) -> int:
    """The status of a command that did not run; raises where a shell has none for it."""
    code, message = str(error.get("code")), str(error.get("message"))
    if code in _STATUS_OF:
        say(f"error: {message}")
        return _STATUS_OF[code]
    if error.get("retry_after_s") is not None:
        raise Temporary(message, code=code)
    raise Permanent(message, code=code)


def _write_all(descriptor: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


def _pump_input(socket: ClientConnection) -> asyncio.Task[None]:
    """Hands standard input on, at the pace the command takes it.

    A thread reads, because a regular file cannot be watched; it is left behind, blocked in its read, when the command
    ends first.
    """
    loop = asyncio.get_running_loop()
    chunks: asyncio.Queue[bytes] = asyncio.Queue()
    room = threading.Semaphore(4)

    def read() -> None:
        while True:
            try:
                data = os.read(0, _CHUNK)
            except OSError:
                data = b""
            room.acquire()
            try:
                loop.call_soon_threadsafe(chunks.put_nowait, data)
            except RuntimeError:
                return  # the command has ended, and the loop with it
            if not data:
                return

    async def send() -> None:
        while True:
            data = await chunks.get()
            if not data:
                await _control(socket, {"eof": True})
                return
            with contextlib.suppress(ConnectionClosed):
                await socket.send(bytes([Channel.STDIN]) + data)
            room.release()

    threading.Thread(target=read, daemon=True, name="stdin").start()
    return loop.create_task(send())


@contextlib.contextmanager
def _signals(socket: ClientConnection, *, resizes: bool) -> Iterator[None]:
    """Hands signals and changes of the terminal's size on to the command."""
    loop = asyncio.get_running_loop()
    session = asyncio.current_task()
    assert session is not None
    tasks: set[asyncio.Task[None]] = set()
    interrupts = 0

    def tell(message: dict[str, Any]) -> None:
        task = loop.create_task(_control(socket, message))
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    def interrupt() -> None:
        nonlocal interrupts
        interrupts += 1
        if interrupts > 2:
            session.cancel()
        tell({"signal": "INT"})

    def resize() -> None:
        columns, rows = _terminal_size()
        tell({"resize": [rows, columns]})

    handlers = {signal.SIGINT: interrupt, signal.SIGTERM: lambda: tell({"signal": "TERM"})}
    if resizes:
        handlers[signal.SIGWINCH] = resize
    for number, handler in handlers.items():
        loop.add_signal_handler(number, handler)
    try:
        yield
    finally:
        for number in handlers:
            loop.remove_signal_handler(number)


def _terminal_size() -> tuple[int, int]:
    """Columns and rows of the terminal itself; what the shell has put into the environment may be old."""
    try:
        size = os.get_terminal_size(sys.stdin.fileno())
    except OSError:
        return 80, 24
    return size.columns or 80, size.lines or 24


@contextlib.contextmanager
def _raw_terminal() -> Iterator[None]:
    """Every key goes to the command; the terminal is as before afterwards, whatever happens."""
    descriptor = sys.stdin.fileno()
    before = termios.tcgetattr(descriptor)
    tty.setraw(descriptor)
    try:
        yield
    finally:
        termios.tcsetattr(descriptor, termios.TCSADRAIN, before)
