"""The client against a PID 1 that lies, stays silent or goes away: made up here, so without privilege."""

from __future__ import annotations

import array
import asyncio
import os
import pty
import socket
import struct
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import pytest

from fairwater.domain.failure import Permanent, Temporary
from fairwater.node.init_client import InitClient, InitState
from fairwater.node.init_messages import (
    REPLY,
    REQUEST,
    Answer,
    Command,
    Request,
    Where,
    command_request,
    exit_status,
    parse_reply,
    start_failure,
)
from fairwater.ports.process import Channel, TerminalSize

COMMAND = Command(("program",))


def reply(kind: int, *, where: int = 0, value: int = 0, pid: int = 0, run: int = 0) -> bytes:
    return REPLY.pack(kind, where, value, pid, run)


class FalseInit:
    """Listens like PID 1 does, and says what a test tells it to."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "init.sock"
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK)
        self._listener.bind(str(self.path))
        self._listener.listen()
        self.client = InitClient(self.path, answer_within_s=20)

    async def meet(self) -> socket.socket:
        connection, _ = await asyncio.get_running_loop().sock_accept(self._listener)
        return connection

    async def answers(self, message: bytes, *descriptors: int) -> None:
        """Takes one request, answers `message`, and closes."""
        with await self.meet() as connection:
            _, control, _, _ = await asyncio.to_thread(receive, connection)
            for _, _, content in control:
                for number in array.array("i", content):
                    os.close(number)
            rights = array.array("i", descriptors)
            if message:
                connection.sendmsg([message], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)] if descriptors else [])

    def close(self) -> None:
        self._listener.close()


def receive(connection: socket.socket) -> tuple[bytes, list[tuple[int, int, bytes]], int, object]:
    connection.settimeout(10)
    return connection.recvmsg(1 << 18, 100)


@pytest.fixture
def false_init(tmp_path: Path) -> Iterator[FalseInit]:
    made = FalseInit(tmp_path)
    yield made
    made.close()


def open_descriptors() -> set[str]:
    return {f"{entry.name} {entry.readlink()}" for entry in Path("/proc/self/fd").iterdir() if entry.is_symlink()}


Call = Callable[[InitClient], Awaitable[object]]
CALLS: dict[str, Call] = {
    "hello": lambda client: client.hello(),
    "terminate": lambda client: client.terminate(),
    "launch": lambda client: client.launch(1, COMMAND, stdout=1, stderr=2),
    "exec": lambda client: client.exec(COMMAND),
    "exec on a terminal": lambda client: client.exec(COMMAND, TerminalSize()),
}


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize(
    ("message", "code"),
    [
        (b"", "init_gone"),
        (b"x", "init_confused"),
        (b"x" * 5000, "init_confused"),
        (reply(0), "init_confused"),
        (reply(99), "init_confused"),
        (reply(Answer.EXITED), "init_confused"),
        (reply(Answer.STARTED, pid=-1), "init_confused"),
        (reply(Answer.ERROR, where=Where.PROTOCOL), "init_confused"),
        (reply(Answer.ERROR, where=Where.BUSY), "busy"),
    ],
)
async def test_what_is_no_proper_reply_is_refused_and_leaves_nothing_open(
    false_init: FalseInit, call: str, message: bytes, code: str
) -> None:
    before = open_descriptors()
    answering = asyncio.ensure_future(false_init.answers(message, 1) if message else false_init.answers(message))
    with pytest.raises(Temporary) as failure:
        await CALLS[call](false_init.client)
    assert failure.value.code == code
    await answering
    assert open_descriptors() - before == set()


@pytest.mark.parametrize("call", CALLS)
async def test_silence_ends_after_a_while(false_init: FalseInit, call: str) -> None:
    meeting = asyncio.ensure_future(false_init.meet())
    with pytest.raises(Temporary) as failure:
        await CALLS[call](InitClient(false_init.path, answer_within_s=0.05))
    assert failure.value.code == "init_silent"
    (await meeting).close()


@pytest.mark.parametrize("call", CALLS)
async def test_nobody_there_is_told(tmp_path: Path, call: str) -> None:
    with pytest.raises(Temporary) as failure:
        await CALLS[call](InitClient(tmp_path / "none"))
    assert failure.value.code == "init_gone"


async def test_a_descriptor_that_is_no_terminal_is_refused_and_closed(false_init: FalseInit) -> None:
    before = open_descriptors()
    for descriptors in ((), (os.open("/dev/zero", os.O_RDWR),), os.pipe()):
        answering = asyncio.ensure_future(false_init.answers(reply(Answer.STARTED, pid=2), *descriptors))
        with pytest.raises(Temporary) as failure:
            await false_init.client.exec(COMMAND, TerminalSize())
        assert failure.value.code == "init_confused"
        await answering
        for number in descriptors:
            os.close(number)
    assert open_descriptors() - before == set()


async def test_a_handed_over_terminal_does_not_block_and_is_closed_at_the_end(false_init: FalseInit) -> None:
    before = open_descriptors()
    master, slave = pty.openpty()
    answering = asyncio.ensure_future(false_init.answers(reply(Answer.STARTED, pid=2), master))
    process = await false_init.client.exec(COMMAND, TerminalSize())
    await answering
    os.close(master)
    os.write(slave, b"seen")
    assert await anext(process.output()) == (Channel.STDOUT, b"seen")
    await process.resize(TerminalSize(7, 70000))
    assert os.get_terminal_size(slave) == (65535, 7)
    with pytest.raises(Temporary):
        await process.wait()  # the connection ended without a status
    os.close(slave)
    await process.close()
    assert open_descriptors() - before == set()


@pytest.mark.parametrize("said", [reply(Answer.HELLO), b"", b"x" * 100, reply(Answer.STARTED, pid=5)])
async def test_anything_but_an_end_of_the_command_counts_as_a_lost_connection(
    false_init: FalseInit, said: bytes
) -> None:
    async def serve() -> None:
        with await false_init.meet() as connection:
            _, control, _, _ = await asyncio.to_thread(receive, connection)
            for number in array.array("i", control[0][2]):
                os.close(number)
            connection.send(reply(Answer.STARTED, pid=5))
            if said:
                connection.send(said)

    serving = asyncio.ensure_future(serve())
    process = await false_init.client.exec(COMMAND)
    with pytest.raises(Temporary) as failure:
        await asyncio.wait_for(process.wait(), 10)
    assert failure.value.code == "connection_lost"
    with pytest.raises(Permanent) as refused:
        await process.resize(TerminalSize())
    assert refused.value.code == "no_terminal"
    await serving
    await process.close()


async def test_one_who_gives_up_waiting_for_the_end_does_not_end_it_for_others(false_init: FalseInit) -> None:
    end = asyncio.Event()

    async def serve() -> None:
        with await false_init.meet() as connection:
            _, control, _, _ = await asyncio.to_thread(receive, connection)
            for number in array.array("i", control[0][2]):
                os.close(number)
            connection.send(reply(Answer.STARTED, pid=5))
            await end.wait()
            connection.send(reply(Answer.EXITED, value=9))

    serving = asyncio.ensure_future(serve())
    process = await false_init.client.exec(COMMAND)
    impatient = asyncio.ensure_future(process.wait())
    patient = asyncio.ensure_future(process.wait())
    await asyncio.sleep(0)
    impatient.cancel()
    end.set()
    assert await asyncio.wait_for(patient, 10) == 128 + 9
    await serving
    await process.close()


async def test_hello_tells_what_is_launched_and_refuses_another_version(false_init: FalseInit) -> None:
    for said, state in (
        (reply(Answer.HELLO, value=1), InitState(1, None, None)),
        (reply(Answer.HELLO, value=1, where=2, run=7, pid=3), InitState(1, 7, 3)),
        (reply(Answer.HELLO, value=2, where=2, run=7), InitState(2, 7, None)),
    ):
        answering = asyncio.ensure_future(false_init.answers(said))
        assert await false_init.client.hello() == state
        await answering
    for version in (0, 3, -1):
        answering = asyncio.ensure_future(false_init.answers(reply(Answer.HELLO, value=version)))
        with pytest.raises(Permanent) as failure:
            await false_init.client.hello()
        assert failure.value.code == "init_version"
        await answering


async def test_a_first_process_of_before_tasks_gets_none_and_the_rest_works(
    false_init: FalseInit, tmp_path: Path
) -> None:
    """It answers as the first version did, whatever number a HELLO carries."""
    with (tmp_path / "log").open("wb+") as log, (tmp_path / "status").open("wb") as status:
        answering = asyncio.ensure_future(false_init.answers(reply(Answer.HELLO, value=1, where=2, run=7)))
        with pytest.raises(Permanent) as failure:
            await false_init.client.start_task(0, COMMAND, log=log.fileno(), status=status.fileno())
        await answering
    assert failure.value.code == "init_version"
    assert "start it again" in failure.value.message
    answering = asyncio.ensure_future(false_init.answers(reply(Answer.DONE)))
    await false_init.client.terminate()
    await answering


async def test_a_tasks_log_that_could_not_be_shortened_is_refused(false_init: FalseInit, tmp_path: Path) -> None:
    with (tmp_path / "log").open("wb") as log, pytest.raises(ValueError, match="reading and writing"):
        await false_init.client.start_task(0, COMMAND, log=log.fileno(), status=log.fileno())


@pytest.mark.parametrize("number", [-1, 64, 2**40])
async def test_a_task_beyond_the_last_is_refused(false_init: FalseInit, number: int) -> None:
    with pytest.raises(Permanent) as failure:
        await false_init.client.start_task(number, COMMAND, log=0, status=0)
    assert failure.value.code == "too_many_tasks"


@pytest.mark.parametrize(
    ("where", "number", "code"),
    [
        (Where.EXEC, 2, "command_not_found"),
        (Where.EXEC, 13, "not_executable"),
        (Where.EXEC, 8, "not_executable"),
        (Where.EXEC, 7, "command_too_long"),
        (Where.EXEC, 26, "program_busy"),
        (Where.EXEC, 11, "workspace_full"),
        (Where.FORK, 11, "workspace_full"),
        (Where.TERMINAL, 28, "workspace_full"),
        (Where.CHDIR, 13, "bad_cwd"),
        (Where.USER, 1, "start_failed"),
        (Where.BUSY, 11, "busy"),
        (77, -5, "start_failed"),
    ],
)
def test_every_failure_to_start_says_what_to_do(where: int, number: int, code: str) -> None:
    failure = start_failure(parse_reply(reply(Answer.ERROR, where=where, value=number)), COMMAND)
    assert failure.code == code
    assert len(failure.message) > 20


def test_statuses_are_a_shells() -> None:
    assert [exit_status(status) for status in (0, 7 << 8, 9, 11 | 0x80, 255 << 8)] == [0, 7, 137, 139, 255]


def test_a_command_travels_as_the_first_process_reads_it() -> None:
    command = Command(("ls", "-l"), {"A": "b"}, cwd="/w", uid=5, gid=6, groups=(7,))
    message = command_request(Request.EXEC, command, terminal=TerminalSize(3, 4))
    assert REQUEST.unpack_from(message) == (3, 1, 0, 0, 5, 6, 1, 2, 1, 3, 4, 0)
    assert message[REQUEST.size :] == struct.pack("=I", 7) + b"/w\0ls\0-l\0A=b\0"
    for bad in (Command(("a",), uid=-1), Command(("a",), groups=(1,) * 33), Command(("a",), gid=2**32 - 1)):
        with pytest.raises(Permanent):
            command_request(Request.EXEC, bad)
