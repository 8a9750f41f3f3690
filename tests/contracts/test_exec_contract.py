"""The contract of `ports.process.Process`, on the agent itself and through its API over a unix socket."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

import pytest

from fairwater.domain.failure import Permanent
from fairwater.domain.ids import RunNumber, WorkspaceId
from fairwater.ports.process import Channel, ExecRequest, Process, TerminalSize

if TYPE_CHECKING:
    from tests.contracts.conftest import Node

WORKSPACE = WorkspaceId("abcdefgh2345")
FIRST = RunNumber(1)
WITHIN_S = 20.0


@pytest.fixture
async def running(node: Node) -> Node:
    await node.up()
    return node


async def start(node: Node, *command: str, terminal: TerminalSize | None = None) -> Process:
    return await node.access.exec(WORKSPACE, FIRST, ExecRequest(command, terminal=terminal))


async def read_until(process: Process, wanted: bytes) -> bytes:
    said = b""
    async with asyncio.timeout(WITHIN_S):
        async for _, data in process.output():
            said += data
            if wanted in said:
                return said
    raise AssertionError(f"{wanted!r} did not come, only {said!r}")


async def read_until_kept(
    process: Process, first: bytes, *, then: Callable[[], Awaitable[None]], wanted: bytes
) -> None:
    """Reads until `first` came, does `then`, and reads on until `wanted` came: output is iterated once."""
    said, done = b"", False
    async with asyncio.timeout(WITHIN_S):
        async for _, data in process.output():
            said += data
            if first in said and not done:
                done = True
                await then()
            if wanted in said:
                return
    raise AssertionError(f"{wanted!r} did not come, only {said!r}")


@pytest.mark.parametrize("status", [0, 1, 127, 255])
async def test_the_exit_status_is_told(running: Node, status: int) -> None:
    assert (await running.run("sh", "-c", f"exit {status}"))[0] == status


async def test_a_signal_that_ended_the_command_is_told(running: Node) -> None:
    assert (await running.run("sh", "-c", "kill -9 $$"))[0] == 128 + 9


async def test_output_and_errors_are_kept_apart(running: Node) -> None:
    assert await running.run("sh", "-c", "echo out; echo err >&2") == (0, b"out\n", b"err\n")


async def test_standard_input_arrives_whole_and_ends(running: Node) -> None:
    data = bytes(range(256)) * 20000
    assert await running.run("cat", stdin=data) == (0, data, b"")


async def test_much_output_arrives_whole(running: Node) -> None:
    status, out, _ = await running.run("head", "-c", "30000000", "/dev/zero")
    assert (status, len(out)) == (0, 30_000_000)


async def test_the_environment_is_the_workspaces_and_the_requests(running: Node) -> None:
    status, out, _ = await running.run("sh", "-c", "echo $A $HOME", environment=(("A", "b"),))
    assert out.startswith(b"b ")
    assert (status, len(out.split())) == (0, 2)


async def test_nothing_of_the_agents_environment_is_seen(running: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAIRWATER_SECRET", "secret")
    assert b"secret" not in (await running.run("env"))[1]


async def test_the_working_directory_is_the_requests(running: Node) -> None:
    await running.run("mkdir", "folder", cwd="/workspace")
    _, out, _ = await running.run("pwd", cwd="/workspace/folder")
    assert out.strip().endswith(b"/workspace/folder")


@pytest.mark.parametrize(
    ("request_", "code"),
    [
        (ExecRequest(("no-such-command",)), "command_not_found"),
        (ExecRequest(("/etc/passwd",)), "not_executable"),
        (ExecRequest(("true",), cwd="/workspace/none"), "bad_cwd"),
        (ExecRequest(()), "bad_command"),
        (ExecRequest(("a\0b",)), "bad_command"),
    ],
)
async def test_what_cannot_be_run_is_told_at_once(running: Node, request_: ExecRequest, code: str) -> None:
    with pytest.raises(Permanent) as told:
        await running.access.exec(WORKSPACE, FIRST, request_)
    assert told.value.code == code


async def test_a_signal_arrives(running: Node) -> None:
    process = await start(
        running, "sh", "-c", "trap 'echo caught; exit 7' TERM; echo ready; while :; do sleep 0.05; done"
    )
    await read_until_kept(process, b"ready", then=lambda: process.signal("TERM"), wanted=b"caught")
    assert await asyncio.wait_for(process.wait(), WITHIN_S) == 7
    await process.close()


async def test_a_signal_arrives_though_input_is_not_read(running: Node) -> None:
    process = await start(running, "sleep", "1000")
    writing = asyncio.create_task(process.write(b"x" * 300_000))
    await asyncio.wait({writing}, timeout=0.3)
    signalling = asyncio.create_task(process.signal("KILL"))
    assert await asyncio.wait_for(process.wait(), WITHIN_S) == 128 + 9
    await asyncio.wait_for(signalling, WITHIN_S)
    await process.close()
    writing.cancel()
    await asyncio.gather(writing, return_exceptions=True)


async def test_a_command_is_slowed_by_a_reader_that_does_not_read(running: Node) -> None:
    process = await start(running, "sh", "-c", "head -c 50000000 /dev/zero; echo done >&2")
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(process.wait(), 0.5)
    size = 0
    async with asyncio.timeout(WITHIN_S):
        async for channel, data in process.output():
            size += len(data) if channel is Channel.STDOUT else 0
        assert await process.wait() == 0
    assert size == 50_000_000
    await process.close()


async def test_a_command_that_does_not_read_slows_its_writer(running: Node) -> None:
    process = await start(running, "sleep", "1000")
    writing = asyncio.create_task(process.write(b"x" * 50_000_000))
    await asyncio.wait({writing}, timeout=0.5)
    assert not writing.done()
    writing.cancel()
    await asyncio.gather(writing, return_exceptions=True)
    await process.close()


async def test_leaving_a_command_hangs_it_up(running: Node) -> None:
    process = await start(
        running,
        "sh",
        "-c",
        "trap 'echo left >hung-up; exit' HUP; echo ready; exec >&- 2>&-; while :; do sleep 0.05; done",
    )
    await read_until(process, b"ready")
    await process.close()
    async with asyncio.timeout(WITHIN_S):
        while (await running.run("cat", "hung-up"))[1] != b"left\n":
            pass


async def test_leaving_a_command_that_does_not_read_hangs_it_up(running: Node) -> None:
    process = await start(
        running,
        "sh",
        "-c",
        "exec >&- 2>&-; trap 'echo left >hung-up; exit' HUP; touch ready; while :; do sleep 0.05; done",
    )
    writing = asyncio.create_task(process.write(b"x" * 50_000_000))
    await asyncio.wait({writing}, timeout=0.3)
    writing.cancel()
    await asyncio.gather(writing, return_exceptions=True)
    await process.close()
    async with asyncio.timeout(WITHIN_S):
        while (await running.run("cat", "hung-up"))[1] != b"left\n":
            pass


async def test_a_terminal_is_one(running: Node) -> None:
    process = await start(running, "sh", "-c", "stty size; tty; echo $TERM", terminal=TerminalSize(30, 100))
    said = await read_until(process, b"xterm")
    assert said.startswith(b"30 100\r\n/dev/pts/")
    assert await asyncio.wait_for(process.wait(), WITHIN_S) == 0
    await process.close()


async def test_a_terminal_is_resized_and_its_keys_are_signals(running: Node) -> None:
    script = "trap 'stty size; exit 3' INT; echo ready; while :; do sleep 0.05; done"
    process = await start(running, "sh", "-c", script, terminal=TerminalSize())

    async def resize_and_interrupt() -> None:
        await process.resize(TerminalSize(11, 22))
        await process.write(b"\x03")

    await read_until_kept(process, b"ready", then=resize_and_interrupt, wanted=b"11 22")
    assert await asyncio.wait_for(process.wait(), WITHIN_S) == 3
    await process.close()


async def test_the_user_root_is_refused_where_there_is_none(running: Node) -> None:
    if running.isolated:
        assert (await running.run("id", "-u", user="root"))[1] == b"0\n"
        return
    with pytest.raises(Permanent) as told:
        await running.access.exec(WORKSPACE, FIRST, ExecRequest(("id",), user="root"))
    assert told.value.code == "no_such_user"


async def test_an_unknown_signal_is_refused(running: Node) -> None:
    process = await start(running, "sleep", "1000")

    async def signal_and_wait() -> None:
        await process.signal("NONSENSE")
        await process.wait()

    with pytest.raises(Permanent) as told:
        await asyncio.wait_for(signal_and_wait(), WITHIN_S)
    assert told.value.code == "bad_signal"
    await process.close()
