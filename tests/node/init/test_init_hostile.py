"""What workspace processes and broken clients do to PID 1, and that it goes on."""

from __future__ import annotations

import array
import asyncio
import contextlib
import os
import random
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from fairwater.domain.failure import Temporary
from fairwater.node.init_messages import (
    MESSAGE_MAX,
    REPLY,
    REQUEST,
    Answer,
    Command,
    Request,
    Where,
    command_request,
    parse_reply,
    request,
)
from fairwater.ports.process import TerminalSize

from .conftest import Container, becomes, finish

pytestmark = pytest.mark.root


def connect(container: Container) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    connection.connect(str(container.path))  # waits for a place in the queue: with a time limit it would not
    connection.settimeout(20)
    return connection


@contextlib.contextmanager
def nothing() -> Iterator[int]:
    descriptor = os.open(os.devnull, os.O_RDWR)
    yield descriptor
    os.close(descriptor)


def fds_of(container: Container) -> int:
    return len(list(Path(f"/proc/{container.pid}/fd").iterdir()))


async def at_rest(container: Container) -> None:
    """Waits until PID 1 holds nothing but three streams, the listener, the signals, and /dev and /dev/pts."""
    await becomes(lambda: fds_of(container) == 7)


def state_of(container: Container) -> dict[str, str]:
    lines = Path(f"/proc/{container.pid}/status").read_text().splitlines()
    return dict(line.split(":\t", 1) for line in lines if ":\t" in line)


MALFORMED = {
    "short": b"x" * (REQUEST.size - 1),
    "unknown kind": REQUEST.pack(99, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0),
    "hello with more": request(Request.HELLO) + b"more",
    "no strings": REQUEST.pack(Request.EXEC, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0),
    "many arguments": REQUEST.pack(Request.EXEC, 0, 0, 0, 0, 0, 0, 2**32 - 1, 0, 0, 0, 0) + b"/\0a\0",
    "many groups": REQUEST.pack(Request.EXEC, 0, 0, 0, 0, 0, 2**30, 1, 0, 0, 0, 0) + b"/\0a\0",
    "groups beyond the end": REQUEST.pack(Request.EXEC, 0, 0, 0, 0, 0, 32, 1, 0, 0, 0, 0) + b"/\0a\0",
    "more behind": command_request(Request.EXEC, Command(("true",))) + b"\0",
    "not ended": command_request(Request.EXEC, Command(("true",)))[:-1],
    "user -1": REQUEST.pack(Request.EXEC, 0, 0, 0, 2**32 - 1, 0, 0, 1, 0, 0, 0, 0) + b"/\0true\0",
    "unknown flag": REQUEST.pack(Request.EXEC, 2, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0) + b"/\0true\0",
    "nothing to execute": REQUEST.pack(Request.EXEC, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0) + b"/\0",
    "run 0": command_request(Request.LAUNCH, Command(()), run=0),
    "terminal at launch": command_request(Request.LAUNCH, Command(()), run=1, terminal=TerminalSize()),
    "task without a terminal": command_request(Request.TASK, Command(("true",))),
    "task -1": command_request(Request.TASK, Command(("true",)), number=-1, terminal=TerminalSize()),
    "task 64": command_request(Request.TASK, Command(("true",)), number=64, terminal=TerminalSize()),
    "task 2147483647": command_request(Request.TASK, Command(("true",)), number=2**31 - 1, terminal=TerminalSize()),
    "task of three files": command_request(Request.TASK, Command(("true",)), terminal=TerminalSize()),
    "signal 0": request(Request.SIGNAL, number=0),
    "signal 4096": request(Request.SIGNAL, number=4096),
    "too large": b"x" * (MESSAGE_MAX + 1),
}


@pytest.mark.parametrize("name", MALFORMED)
@pytest.mark.parametrize("streams", [0, 1, 3])
async def test_a_malformed_message_is_refused_and_its_connection_closed(
    container: Container, name: str, streams: int
) -> None:
    with connect(container) as connection, nothing() as null:
        rights = array.array("i", [null] * streams)
        connection.sendmsg([MALFORMED[name]], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)] if streams else [])
        reply = parse_reply(connection.recv(100))
        assert (reply.kind, reply.where) == (Answer.ERROR, Where.PROTOCOL)
        assert connection.recv(100) == b""
        await at_rest(container)
    assert (await container.run("echo", "well"))[1] == b"well\n"


async def test_noise_does_no_harm(container: Container) -> None:
    seeded = random.Random(2)
    valid = command_request(Request.EXEC, Command(("true",), {"A": "b"}))
    for _ in range(3000):
        with connect(container) as connection:
            message = bytearray(valid if seeded.random() < 0.7 else seeded.randbytes(seeded.randrange(1, 300)))
            for _ in range(seeded.randrange(1, 4)):
                message[seeded.randrange(len(message))] = seeded.randrange(256)
            if message[0] == Request.TERMINATE:
                continue
            connection.send(message)
    await at_rest(container)
    assert (await container.run("echo", "well"))[1] == b"well\n"


async def test_noise_in_what_starts_a_task_does_no_harm(container: Container, shared: Path) -> None:
    seeded = random.Random(5)
    valid = command_request(Request.TASK, Command(("true",), {"PATH": "/bin"}), terminal=TerminalSize())
    with (shared / "log").open("wb+") as log, (shared / "status").open("wb+") as status:
        rights = array.array("i", [log.fileno(), status.fileno()])
        for _ in range(1000):
            message = bytearray(valid)
            message[16] = seeded.randrange(70)  # the task's number
            for _ in range(seeded.randrange(3)):
                message[seeded.randrange(len(message))] = seeded.randrange(256)
            if message[0] != Request.TERMINATE:
                with connect(container) as connection:
                    connection.sendmsg([message], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)])
    await container.childless()
    await at_rest(container)
    assert (await container.run("echo", "well"))[1] == b"well\n"


@pytest.mark.parametrize("count", [1, 2, 4, 200])
async def test_a_flood_of_descriptors_is_closed(container: Container, count: int) -> None:
    for message in (command_request(Request.EXEC, Command(("true",))), request(Request.HELLO), b"junk"):
        with connect(container) as connection, nothing() as null:
            rights = array.array("i", [null] * count)
            connection.sendmsg([message], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)])
            assert parse_reply(connection.recv(100)).where == Where.PROTOCOL
    await at_rest(container)


async def test_a_crowd_of_silent_connections_keeps_nobody_out(container: Container) -> None:
    crowd = [connect(container) for _ in range(300)]
    try:
        assert (await container.client.hello()).version == 2
        assert (await container.run("echo", "well"))[1] == b"well\n"
        # Those who waited longest were told and sent away; the newest are still served.
        assert parse_reply(crowd[0].recv(100)).where == Where.BUSY
        crowd[-1].send(request(Request.HELLO))
        assert parse_reply(crowd[-1].recv(100)).kind == Answer.HELLO
    finally:
        for connection in crowd:
            connection.close()
    await at_rest(container)


async def test_too_many_commands_are_refused_while_control_stays_open(container: Container) -> None:
    started = [await container.begin("sleep", "100") for _ in range(224)]
    with pytest.raises(Temporary) as failure:
        await container.begin("sleep", "100")
    assert failure.value.code == "busy"
    await container.client.hello()
    await container.client.terminate()
    async with asyncio.timeout(20):
        assert {await process.wait() for process in started} == {128 + 15}
    for process in started:
        await process.close()
    await at_rest(container)


async def test_clients_that_leave_in_the_middle_leave_nothing_behind(container: Container) -> None:
    message = command_request(Request.EXEC, Command(("/bin/sleep", "100")))
    terminal = command_request(Request.EXEC, Command(("/bin/sleep", "100")), terminal=TerminalSize())
    for number in range(200):
        with connect(container) as connection, nothing() as null:
            if number % 2:
                connection.send(terminal)
            else:
                rights = array.array("i", [null] * 3)
                connection.sendmsg([message], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)])
            if number % 3 == 0:
                connection.recv(100)
    await at_rest(container)
    await container.childless()


async def test_a_client_killed_in_the_middle_hangs_its_command_up(container: Container) -> None:
    code = (
        "import asyncio, pathlib, sys\n"
        "from fairwater.node.init_client import InitClient\n"
        "from fairwater.node.init_messages import Command\n"
        "async def main():\n"
        "    await InitClient(pathlib.Path(sys.argv[1])).exec(Command(('/bin/sleep', '100')))\n"
        "    print('begun', flush=True)\n"
        "    await asyncio.sleep(100)\n"
        "asyncio.run(main())\n"
    )
    agent = await asyncio.create_subprocess_exec(
        sys.executable, "-c", code, str(container.path), stdout=subprocess.PIPE
    )
    assert agent.stdout is not None
    assert await agent.stdout.readline() == b"begun\n"
    agent.kill()
    await agent.wait()
    await container.childless()


async def test_ten_thousand_orphans_are_reaped(container: Container) -> None:
    code = (
        "import os\n"
        "for _ in range(10000):\n"
        "    pid = os.fork()\n"
        "    if pid == 0:\n"
        "        if os.fork() == 0: os._exit(0)\n"
        "        os._exit(0)\n"
        "    os.waitpid(pid, 0)\n"
        "print('done')\n"
    )
    process = await container.begin("/usr/bin/python3", "-I", "-c", code)
    collecting = asyncio.ensure_future(finish(process))
    while not collecting.done():
        await container.client.hello()  # and PID 1 answers all the while
        await asyncio.sleep(0.05)
    assert await collecting == (0, b"done\n", b"")
    await container.childless()


PRYING = r"""
import ctypes, os
libc = ctypes.CDLL(None, use_errno=True)
tried = {}
def attempt(name, work):
    try:
        work()
        tried[name] = "done"
    except OSError as error:
        tried[name] = type(error).__name__
def call(result):
    if result < 0:
        raise OSError(ctypes.get_errno(), "")
attempt("ptrace", lambda: call(libc.ptrace(16, 1, 0, 0)))
attempt("seize", lambda: call(libc.ptrace(0x4206, 1, 0, 0)))
attempt("fd folder", lambda: os.listdir("/proc/1/fd"))
attempt("fd 3", lambda: os.readlink("/proc/1/fd/3"))
attempt("memory", lambda: open("/proc/1/mem", "r+b"))
attempt("maps", lambda: open("/proc/1/maps").read())
attempt("environment", lambda: open("/proc/1/environ").read())
attempt("program", lambda: open("/proc/1/exe", "rb"))
attempt("root", lambda: os.listdir("/proc/1/root"))
attempt("cwd", lambda: os.listdir("/proc/1/cwd"))
buffer = (ctypes.c_char * 8)()
class Part(ctypes.Structure):
    _fields_ = [("base", ctypes.c_void_p), ("size", ctypes.c_size_t)]
here, there = Part(ctypes.addressof(buffer), 8), Part(0x400000, 8)
attempt("read memory", lambda: call(libc.process_vm_readv(1, ctypes.byref(here), 1, ctypes.byref(there), 1, 0)))
pidfd = os.pidfd_open(1)
attempt("take fd 3", lambda: call(libc.syscall(438, pidfd, 3, 0)))
print({name: how for name, how in tried.items() if how != "PermissionError"})
"""


@pytest.mark.parametrize("uid", [1000, 0])
async def test_no_process_inside_can_look_into_or_take_over_the_first(container: Container, uid: int) -> None:
    assert await finish(await container.begin("/usr/bin/python3", "-I", "-c", PRYING, uid=uid)) == (0, b"{}\n", b"")
    assert Path(f"/proc/{container.pid}/fd").stat().st_uid == 0  # of the machine, not of the container


@pytest.mark.parametrize("uid", [1000, 0])
async def test_no_signal_from_inside_ends_or_stops_the_first(container: Container, uid: int) -> None:
    code = "for n in $(seq 1 64); do [ $n = 15 ] || kill -$n 1; done 2>/dev/null; echo sent"
    assert (await container.run("bash", "-c", code, uid=uid))[1] == b"sent\n"
    assert (await container.client.hello()).version == 2
    assert state_of(container)["State"].startswith("S")


async def test_a_termination_signal_is_passed_on(container: Container) -> None:
    process = await container.begin("sleep", "100")
    for number in (signal.SIGINT, signal.SIGQUIT, signal.SIGHUP, signal.SIGTSTP, signal.SIGPIPE):
        os.kill(container.pid, number)
    await container.client.hello()
    assert (await container.run("echo", "well"))[1] == b"well\n"
    os.kill(container.pid, signal.SIGTERM)
    assert await asyncio.wait_for(process.wait(), 20) == 128 + 15
    await process.close()
    assert (await container.client.hello()).version == 2


async def test_nobody_inside_is_answered_even_where_the_path_can_be_reached(container: Container, shared: Path) -> None:
    """The path is out of reach in a sandbox; were it not, PID 1 would still tell who is inside."""
    way = shared / "init.sock"
    os.link(container.path, way)
    way.chmod(0o777)
    code = (
        "import socket, sys\n"
        "s = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)\n"
        "s.connect(sys.argv[1])\n"
        "s.send(bytes.fromhex(sys.argv[2]))\n"
        "print(len(s.recv(100)))\n"
    )
    hello = request(Request.HELLO).hex()
    for uid in (1000, 0):
        begun = await container.begin("/usr/bin/python3", "-I", "-c", code, str(way), hello, uid=uid)
        status, out, err = await finish(begun)
        assert b"reset" in err.lower() or b"broken pipe" in err.lower() or out == b"0\n", (status, out, err)
        assert out in (b"", b"0\n")
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as outside:
        outside.connect(str(way))
        outside.send(request(Request.HELLO))
        assert len(outside.recv(100)) == REPLY.size


async def test_root_inside_that_lowers_its_limits_does_not_stop_reaping(container: Container) -> None:
    code = "import resource; resource.prlimit(1, resource.RLIMIT_NOFILE, (5, 5))"
    process = await container.begin("/usr/bin/python3", "-I", "-c", code, uid=0)
    assert (await finish(process))[0] == 0
    container.client = type(container.client)(container.path, answer_within_s=0.5)
    with pytest.raises(Temporary):
        await container.client.hello()
    await container.childless()
    before = int(Path(f"/proc/{container.pid}/stat").read_text().rpartition(")")[2].split()[11])
    with pytest.raises(Temporary):
        await container.client.hello()
    ticks = int(Path(f"/proc/{container.pid}/stat").read_text().rpartition(")")[2].split()[11]) - before
    assert ticks < 20  # of 50 in that half second: it does not spin


async def test_a_replaced_terminal_device_does_not_hold_the_first(container: Container) -> None:
    # /dev/pts has a ptmx that nobody can replace; it is what PID 1 uses.
    process = await container.begin("sh", "-c", "rm -f /dev/pts/ptmx; ls /dev/pts/ptmx", uid=0)
    assert (await finish(process))[1] == b"/dev/pts/ptmx\n"
    begun = await container.begin("tty", terminal=TerminalSize())
    assert b"/dev/pts/" in (await finish(begun))[1]


async def test_its_memory_does_not_grow(container: Container) -> None:
    for _ in range(20):
        await container.run("true")
    before = state_of(container)["VmRSS"]
    for _ in range(300):
        await container.run("true")
    assert state_of(container)["VmRSS"] == before


def test_outside_of_a_container_it_refuses_to_run(init_program: Path) -> None:
    done = subprocess.run([init_program], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "PID 1" in done.stderr
