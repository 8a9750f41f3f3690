"""A plain process of the machine as `ports.process.Process`.

Decides how its streams are waited for: nothing is read before it is asked for, so a slow reader slows the command.
Works on any event loop, and collects the process whether or not somebody waits for it.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import struct
import subprocess
import termios
from collections.abc import AsyncIterator, Callable, Iterable
from pathlib import Path
from signal import Signals
from typing import IO

from fairwater.domain.failure import Permanent, Temporary
from fairwater.ports.process import Channel, TerminalSize

_CHUNK_BYTES = 64 * 1024
_END_OF_TRANSMISSION = b"\x04"


def start_process(
    command: tuple[str, ...],
    cwd: str,
    environment: dict[str, str],
    *,
    terminal: TerminalSize | None = None,
    log: IO[bytes] | None = None,
) -> PlainProcess:
    """Starts `command` in a session of its own; with `log`, its output goes there and its standard input is empty.

    Raises:
        Permanent: `bad_cwd`, `bad_command`, `command_not_found`, `not_executable`.
        Temporary: `no_resources`: the machine has no process or descriptor left.
    """
    if not command or not command[0] or any("\0" in part for part in command):
        raise Permanent("a command needs a name, and no part of it may hold a zero byte", code="bad_command")
    if not Path(cwd).is_dir():
        raise Permanent(f"there is no folder {cwd} to run {command[0]} in", code="bad_cwd")
    theirs, ours = _open_streams(terminal, log)
    try:
        popen = subprocess.Popen(
            command,
            cwd=cwd,
            env=environment,
            stdin=theirs[0],
            stdout=theirs[1],
            stderr=theirs[2],
            start_new_session=True,
            preexec_fn=_take_terminal if terminal else None,  # one ioctl, which takes no lock
        )
    except OSError as error:
        for stream in ours:
            os.close(stream)
        raise _explain(command[0], error) from error
    finally:
        for stream in set(theirs) - {log.fileno() if log else -1}:
            os.close(stream)
    for stream in ours:
        os.set_blocking(stream, False)
    if terminal:
        return PlainProcess(popen, ours[0], {ours[0]: Channel.STDOUT}, terminal=True)
    if log:
        return PlainProcess(popen, None, {}, terminal=False)
    return PlainProcess(popen, ours[0], {ours[1]: Channel.STDOUT, ours[2]: Channel.STDERR}, terminal=False)


def _open_streams(terminal: TerminalSize | None, log: IO[bytes] | None) -> tuple[tuple[int, int, int], tuple[int, ...]]:
    """The command's three streams, and our ends of them."""
    if log is not None:
        return (os.open(os.devnull, os.O_RDONLY), log.fileno(), log.fileno()), ()
    if terminal is not None:
        master, slave = os.openpty()
        _set_size(master, terminal)
        return (slave, slave, slave), (master,)
    (stdin, write_end), (read_out, stdout), (read_err, stderr) = os.pipe(), os.pipe(), os.pipe()
    return (stdin, stdout, stderr), (write_end, read_out, read_err)


def _take_terminal() -> None:
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


def _set_size(master: int, size: TerminalSize) -> None:
    fcntl.ioctl(master, termios.TIOCSWINSZ, struct.pack("4H", size.rows & 0xFFFF, size.columns & 0xFFFF, 0, 0))


def _explain(name: str, error: OSError) -> Permanent | Temporary:
    if isinstance(error, FileNotFoundError):
        return Permanent(f"there is no command {name!r} in the workspace", code="command_not_found")
    if isinstance(error, BlockingIOError):
        return Temporary("the machine can start no more processes now", code="no_resources")
    return Permanent(f"{name!r} cannot be run: {error.strerror}", code="not_executable")


class PlainProcess:
    """Implements `ports.process.Process`."""

    def __init__(
        self, popen: subprocess.Popen[bytes], stdin: int | None, outputs: dict[int, Channel], *, terminal: bool
    ) -> None:
        self._popen = popen
        self._stdin = stdin
        self._outputs = outputs
        self._terminal = terminal
        self._loop = asyncio.get_running_loop()
        self._ended: asyncio.Future[int] = self._loop.create_future()
        self._pidfd = os.pidfd_open(popen.pid)
        self._loop.add_reader(self._pidfd, self._collect)

    async def output(self) -> AsyncIterator[tuple[Channel, bytes]]:
        while self._outputs:
            await self._until(self._loop.add_reader, self._loop.remove_reader, tuple(self._outputs))
            for stream, channel in tuple(self._outputs.items()):
                try:
                    chunk = os.read(stream, _CHUNK_BYTES)
                except BlockingIOError:
                    continue
                except OSError:  # EIO: the last process that had the terminal is gone
                    chunk = b""
                if chunk:
                    yield channel, chunk
                elif self._outputs.pop(stream, None) is not None and stream != self._stdin:
                    os.close(stream)

    async def write(self, data: bytes) -> None:
        if not data:
            if self._stdin is not None and self._terminal:
                await self.write(_END_OF_TRANSMISSION)
            else:
                self._close_stdin()
            return
        rest = memoryview(data)
        while rest and self._stdin is not None:
            try:
                rest = rest[os.write(self._stdin, rest) :]
            except BlockingIOError:
                await self._until(self._loop.add_writer, self._loop.remove_writer, (self._stdin,))
            except OSError:  # the command no longer reads: what is sent to it is lost, as in a shell's pipe
                self._close_stdin()

    async def signal(self, name: str) -> None:
        try:
            number = Signals[f"SIG{name.upper().removeprefix('SIG')}"]
        except KeyError:
            raise Permanent(f"{name[:20]!r} is not a signal; use TERM, INT, HUP, KILL, …", code="bad_signal") from None
        self._signal_group(number)

    async def resize(self, size: TerminalSize) -> None:
        if self._terminal and self._stdin is not None:
            _set_size(self._stdin, size)

    async def wait(self) -> int:
        return await asyncio.shield(self._ended)

    async def close(self) -> None:
        self._signal_group(Signals.SIGHUP)
        self._signal_group(Signals.SIGCONT)
        streams = {*self._outputs, *(() if self._stdin is None else (self._stdin,))}
        self._outputs.clear()
        self._stdin = None
        for stream in streams:
            self._loop.remove_reader(stream)
            self._loop.remove_writer(stream)
            os.close(stream)

    def _signal_group(self, number: Signals) -> None:
        # Once collected, its id may belong to somebody else.
        if self._popen.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._popen.pid, number)

    def _collect(self) -> None:
        self._loop.remove_reader(self._pidfd)
        os.close(self._pidfd)
        status = self._popen.wait()
        if not self._ended.done():
            self._ended.set_result(status if status >= 0 else 128 - status)

    def _close_stdin(self) -> None:
        if self._stdin is not None and not self._terminal:
            os.close(self._stdin)
        if not self._terminal:
            self._stdin = None

    async def _until(
        self,
        add: Callable[[int, Callable[[], None]], object],
        remove: Callable[[int], object],
        streams: Iterable[int],
    ) -> None:
        """Waits until one of `streams` can go on."""
        ready: asyncio.Future[None] = self._loop.create_future()

        def tell() -> None:
            if not ready.done():
                ready.set_result(None)

        for stream in streams:
            add(stream, tell)
        try:
            await ready
        finally:
            for stream in streams:
                remove(stream)
