"""Commands begun by PID 1: streams, status, signals, terminals, and who they run as."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from fairwater.domain.failure import Permanent, Temporary
from fairwater.node.init_client import InitClient, InitState
from fairwater.node.init_messages import Command
from fairwater.ports.process import Channel, TerminalSize

from .conftest import HOST_IDS, PATH, Container, becomes, finish

pytestmark = pytest.mark.root


def state(pid: str) -> str:
    """R, S, T, …: what a process of the machine is at."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0]


async def read_until(output: AsyncIterator[tuple[Channel, bytes]], wanted: bytes) -> bytes:
    seen = b""
    async with asyncio.timeout(20):
        async for _, data in output:
            seen += data
            if wanted in seen:
                return seen
    raise AssertionError(f"the output ended without {wanted!r}: {seen!r}")


async def test_streams_are_kept_apart_and_the_status_is_the_commands(container: Container) -> None:
    process = await container.begin("sh", "-c", "cat; echo problem >&2; exit 7")
    assert await finish(process, b"some ", b"input") == (7, b"some input", b"problem\n")
    assert await container.run("sh", "-c", "kill -TERM $$") == (128 + 15, b"", b"")


async def test_a_command_runs_as_its_user_with_nothing_of_its_starters(container: Container) -> None:
    code = """
import json, os
status = dict(line.split(":\\t") for line in open("/proc/self/status") if ":\\t" in line)
fds = {int(n) for n in os.listdir("/proc/self/fd")}
print(json.dumps({"uids": os.getresuid(), "gids": os.getresgid(), "groups": os.getgroups(), "cwd": os.getcwd(),
 "environment": dict(os.environ), "session": os.getsid(0) == os.getpid(), "fds": len(fds),
 "oom": open("/proc/self/oom_score_adj").read().strip(), "umask": os.umask(0),
 **{k: status[k].strip() for k in ("CapPrm", "CapInh", "CapAmb", "SigBlk", "SigIgn", "NoNewPrivs")}}))
"""
    begun = await container.begin(
        "/usr/bin/python3", "-I", "-c", code, cwd="/usr/lib", environment={"LANG": "C.UTF-8", "A": "b=c"}, groups=(7, 9)
    )
    status, out, err = await finish(begun)
    assert (status, err) == (0, b"")
    found = json.loads(out)
    zero = "0" * 16
    # Python itself ignores SIGPIPE and SIGXFSZ.
    python_ignores = f"{1 << 12 | 1 << 24:016x}"
    assert found == {
        "uids": [1000] * 3,
        "gids": [1000] * 3,
        "groups": [7, 9],
        "cwd": "/usr/lib",
        "environment": {"LANG": "C.UTF-8", "A": "b=c"},
        "session": True,
        "fds": 4,  # three streams and the listing itself
        "oom": "300",
        "umask": 0o022,
        "CapPrm": zero,
        "CapInh": zero,
        "CapAmb": zero,
        "SigBlk": zero,
        "SigIgn": python_ignores,
        "NoNewPrivs": "1",
    }


async def test_supplementary_groups_are_dropped_and_root_is_roots_inside_only(container: Container) -> None:
    assert (await container.run("id", "-G"))[1] == b"1000\n"
    assert (await container.run("id", "-u", uid=0))[1] == b"0\n"
    process = await container.begin("sleep", "100", uid=0)
    assert [Path(f"/proc/{child}").stat().st_uid for child in container.children] == [HOST_IDS]
    await process.close()


async def test_a_command_may_open_its_streams_by_name(container: Container) -> None:
    assert await container.run("sh", "-c", "echo out > /dev/stdout; echo err > /dev/stderr") == (0, b"out\n", b"err\n")


@pytest.mark.parametrize(
    ("arguments", "options", "code"),
    [
        (("no-such-command",), {}, "command_not_found"),
        (("/no/such/command",), {}, "command_not_found"),
        (("",), {}, "command_not_found"),
        (("x" * 5000,), {}, "command_not_found"),
        (("ls",), {"environment": {"PATH": "/nowhere"}}, "command_not_found"),
        (("/etc/passwd",), {}, "not_executable"),
        (("/etc",), {}, "not_executable"),
        (("true",), {"cwd": "/no/such/folder"}, "bad_cwd"),
        (("true",), {"cwd": "/etc/passwd"}, "bad_cwd"),
        (("true",), {"cwd": "/root"}, "bad_cwd"),
        ((), {}, "bad_command"),
        (("echo", "x" * 128 * 1024), {}, "command_too_long"),
        (("echo", "a\0b"), {}, "bad_command"),
        (("true",), {"environment": {"A=B": "c"}}, "bad_command"),
    ],
)
@pytest.mark.parametrize("terminal", [None, TerminalSize()])
async def test_what_cannot_run_is_told_before_it_counts_as_started(
    container: Container,
    arguments: tuple[str, ...],
    options: dict[str, object],
    code: str,
    terminal: TerminalSize | None,
) -> None:
    with pytest.raises(Permanent) as failure:
        await container.begin(*arguments, terminal=terminal, **options)  # type: ignore[arg-type]
    assert failure.value.code == code
    assert "check" in failure.value.message or code in ("bad_command", "command_too_long")
    assert (await container.run("echo", "well"))[1] == b"well\n"


async def test_the_given_path_is_searched_and_scripts_without_a_first_line_run(
    container: Container, shared: Path
) -> None:
    script = shared / "greet"
    script.write_text("echo hello $1\n")
    script.chmod(0o755)
    found = await container.begin("greet", "you", environment={"PATH": f"/nowhere:{shared}:/usr/bin:/bin"})
    assert await finish(found) == (0, b"hello you\n", b"")


@pytest.mark.parametrize("name", ["TERM", "SIGKILL", "hup", "USR1"])
async def test_a_signal_reaches_the_whole_process_group(container: Container, name: str) -> None:
    process = await container.begin("sh", "-c", "sleep 100 & echo ready; wait")
    output = process.output()
    await read_until(output, b"ready")
    await process.signal(name)
    async with asyncio.timeout(20):
        assert [chunk async for chunk in output] == []  # the sleep held the pipe, and is gone too
        assert await process.wait() > 128
    await process.close()


async def test_an_unknown_signal_is_refused_and_one_to_the_dead_is_nothing(container: Container) -> None:
    process = await container.begin("true")
    with pytest.raises(Permanent) as failure:
        await process.signal("NOPE")
    assert failure.value.code == "bad_signal"
    assert await process.wait() == 0
    await process.signal("TERM")
    await process.close()


async def test_a_terminal_is_one_and_follows_its_size(container: Container) -> None:
    code = "trap 'stty size' WINCH; test -t 0 -a -t 1 -a -t 2 && tty && stty size; read x; read y; exit 3"
    process = await container.begin("bash", "-c", code, terminal=TerminalSize(30, 101))
    output = process.output()
    assert b"/dev/pts/0\r\n30 101\r\n" in await read_until(output, b"30 101\r\n")
    await process.resize(TerminalSize(50, 160))
    await process.write(b"\n")
    await read_until(output, b"50 160")
    await process.write(b"\n\n")
    async with asyncio.timeout(20):
        assert await process.wait() == 3
        assert {channel async for channel, _ in output} <= {Channel.STDOUT}
    await process.close()


async def test_control_c_and_end_of_input_work_on_a_terminal(container: Container) -> None:
    process = await container.begin("sh", "-c", "cat; echo over", terminal=TerminalSize())
    output = process.output()
    await process.write(b"typed\n")
    await read_until(output, b"typed\r\ntyped\r\n")
    await process.write(b"")
    await read_until(output, b"over")
    assert await process.wait() == 0
    await process.close()
    process = await container.begin("sleep", "100", terminal=TerminalSize())
    await process.write(b"\x03")
    async with asyncio.timeout(20):
        assert await process.wait() == 128 + 2
    await process.close()


async def test_the_terminal_belongs_to_the_user(container: Container) -> None:
    process = await container.begin("sh", "-c", "echo by-name > $(tty); stat -c %u $(tty)", terminal=TerminalSize())
    _, out, _ = await finish(process)
    assert out.replace(b"^D\x08\x08", b"") == b"by-name\r\n1000\r\n"


async def test_leaving_hangs_the_command_up(container: Container, shared: Path) -> None:
    # Nothing may be said on stderr: it has no reader any more, and SIGPIPE would be quicker than the trap.
    code = "exec 2>/dev/null; trap 'echo hung up > $0; exit' HUP; echo ready; while :; do sleep 0.1; done"
    for number, terminal in enumerate((None, TerminalSize())):
        mark = shared / str(number)
        process = await container.begin("bash", "-c", code, str(mark), terminal=terminal)
        await read_until(process.output(), b"ready")
        await process.close()
        await process.close()
        with pytest.raises(Temporary):
            await process.wait()
        await container.childless()
        assert mark.read_text() == "hung up\n"


async def test_a_stopped_command_hears_that_its_client_left(container: Container) -> None:
    process = await container.begin("sh", "-c", "echo ready; kill -STOP $$; sleep 100")
    await read_until(process.output(), b"ready")
    await process.close()
    await container.childless()


async def test_a_command_that_closes_its_streams_runs_on(container: Container) -> None:
    process = await container.begin("sh", "-c", "exec <&- >&- 2>&-; sleep 0.3; exit 5")
    async with asyncio.timeout(20):
        assert [chunk async for chunk in process.output()] == []
        await process.write(b"nobody reads this")
        await process.write(b"")
        assert await process.wait() == 5
    await process.close()


async def test_output_waits_for_its_reader(container: Container) -> None:
    process = await container.begin("sh", "-c", "yes & echo $! >&2; wait")
    output = process.output()
    first = await anext(output)
    [child] = container.children
    [yes] = Path(f"/proc/{child}/task/{child}/children").read_text().split()

    def written() -> int:
        fields = dict(line.split(": ") for line in Path(f"/proc/{yes}/io").read_text().splitlines())
        return int(fields["wchar"])

    await becomes(lambda: written() >= 64 * 1024 and state(yes) == "S")
    assert written() < 1 << 20
    assert len(first[1]) <= 64 * 1024
    taken = 0
    async for _, data in output:
        taken += len(data)
        if taken > 8 << 20:
            break
    await process.close()


async def test_a_command_that_never_stops_printing_leaves_the_loop_to_others(container: Container) -> None:
    process = await container.begin("yes")

    async def take() -> None:
        async for _ in process.output():
            pass

    taking = asyncio.ensure_future(take())
    async with asyncio.timeout(20):
        for _ in range(50):
            await container.client.hello()
    await process.close()
    await asyncio.wait_for(taking, 20)


@pytest.mark.parametrize("terminal", [None, TerminalSize()])
async def test_close_wakes_whoever_reads_or_writes(container: Container, terminal: TerminalSize | None) -> None:
    process = await container.begin("sh", "-c", "stty raw; sleep 100", terminal=terminal)

    async def take() -> int:
        return len([chunk async for chunk in process.output()])

    reading = asyncio.ensure_future(take())
    writing = asyncio.ensure_future(process.write(b"x" * (4 << 20)))
    await container.client.hello()
    await process.close()
    await asyncio.wait_for(asyncio.gather(reading, writing, return_exceptions=True), 20)
    with pytest.raises(Temporary):
        await process.write(b"x")


async def test_a_hundred_megabytes_pass_unchanged_both_ways(container: Container) -> None:
    process = await container.begin("cat")
    part = os.urandom(1 << 20)
    sent, received, size = hashlib.sha256(), hashlib.sha256(), 0

    async def send() -> None:
        for _ in range(100):
            sent.update(part)
            await process.write(part)
        await process.write(b"")

    sending = asyncio.ensure_future(send())
    async with asyncio.timeout(120):
        async for channel, data in process.output():
            assert channel == Channel.STDOUT
            received.update(data)
            size += len(data)
        await sending
    assert size == 100 << 20
    assert sent.digest() == received.digest()
    assert await process.wait() == 0
    await process.close()


async def test_many_commands_run_at_once(container: Container) -> None:
    results = await asyncio.gather(*(container.run("sh", "-c", f"echo {n}; exit {n}") for n in range(100)))
    assert results == [(n, f"{n}\n".encode(), b"") for n in range(100)]


# ---------------------------------------------------------------- launch


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "log"


async def launch(container: Container, run: int, *arguments: str, log: Path) -> tuple[int | None, bool]:
    with log.open("ab") as file:
        done = await container.client.launch(
            run, Command(arguments, {"PATH": PATH}), stdout=file.fileno(), stderr=file.fileno()
        )
    return done.pid, done.already


async def test_a_workspace_is_launched_once_and_remembers_it_for_the_next_client(
    container: Container, log: Path
) -> None:
    assert await container.client.hello() == InitState(2, None, None)
    command = ("sh", "-c", "read x; echo $? $(id -u); echo err >&2; exec sleep 100")
    pid, already = await launch(container, 3, *command, log=log)
    assert pid
    assert not already
    assert await launch(container, 3, *command, log=log) == (pid, True)
    with pytest.raises(Permanent) as failure:
        await launch(container, 4, *command, log=log)
    assert failure.value.code == "other_run"
    # Another agent, after a restart, knows nothing but the path.
    assert await InitClient(container.path).hello() == InitState(2, 3, pid)
    await becomes(lambda: log.read_text() == "1 1000\nerr\n")
    await container.client.terminate()
    await container.childless()
    assert await container.client.hello() == InitState(2, 3, None)


async def test_a_launch_without_a_command_only_marks(container: Container, log: Path) -> None:
    assert await launch(container, 1, log=log) == (None, False)
    assert await launch(container, 1, log=log) == (None, True)
    assert await container.client.hello() == InitState(2, 1, None)


async def test_a_launch_that_fails_leaves_the_workspace_parked(container: Container, log: Path) -> None:
    with pytest.raises(Permanent) as failure:
        await launch(container, 1, "no-such-command", log=log)
    assert failure.value.code == "command_not_found"
    assert await container.client.hello() == InitState(2, None, None)
    assert (await launch(container, 2, "true", log=log))[1] is False


async def test_terminate_reaches_all_but_the_first(container: Container) -> None:
    stopped = await container.begin("sh", "-c", "kill -STOP $$; sleep 100")
    [pid] = container.children
    await becomes(lambda: state(pid) == "T")
    shell = await container.begin("bash", "--norc", "-i", environment={"PS1": "ready "}, terminal=TerminalSize())
    shell_pid = container.children[-1]
    await read_until(shell.output(), b"ready ")  # it ignores SIGTERM, and waits for input
    await becomes(lambda: state(shell_pid) == "S")
    processes = [await container.begin("sleep", "100"), stopped, shell, await container.begin("sleep", "100", uid=0)]
    await container.client.terminate()
    async with asyncio.timeout(20):
        assert [await process.wait() for process in processes] == [128 + 15, 128 + 15, 128 + 1, 128 + 15]
    for process in processes:
        await process.close()
    assert (await container.run("echo", "alive"))[1] == b"alive\n"


async def test_a_socket_far_down_is_reached(start: Callable[[Path], Container], tmp_path: Path) -> None:
    folder = tmp_path / ("d" * 60) / ("e" * 60)
    folder.mkdir(parents=True)
    container = start(folder / "init.sock")
    assert len(os.fsencode(container.path)) > 108
    assert (await container.client.hello()).version == 2


async def test_when_the_workspace_ends_everyone_is_told(container: Container) -> None:
    process = await container.begin("sleep", "100")
    container.kill()
    with pytest.raises(Temporary) as failure:
        await asyncio.wait_for(process.wait(), 20)
    assert failure.value.code == "connection_lost"
    await process.close()
    with pytest.raises(Temporary) as failure:
        await container.client.hello()
    assert failure.value.code == "init_gone"
