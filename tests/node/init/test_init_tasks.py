"""Tasks: commands in a terminal that outlive the agent, their logs and how they ended."""

from __future__ import annotations

import array
import asyncio
import ctypes
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from fairwater.domain.failure import Permanent, Temporary
from fairwater.node.init_client import TASK_LOG_KEPT, TASK_LOG_MAX, InitClient
from fairwater.node.init_messages import Answer, Command, Request, command_request, parse_reply, request
from fairwater.ports.process import TerminalSize

from .conftest import PATH, Container, becomes

pytestmark = pytest.mark.root


@dataclass
class Tasks:
    """Starts tasks in a container, with their files in `folder`."""

    container: Container
    folder: Path

    def log(self, number: int = 0) -> bytes:
        return (self.folder / f"{number}.log").read_bytes()

    def status(self, number: int = 0) -> str:
        return (self.folder / f"{number}.status").read_text()

    async def start(self, *arguments: str, number: int = 0, uid: int = 1000, cwd: str = "/tmp") -> bool:
        command = Command(arguments, {"PATH": PATH, "A": "b"}, cwd, uid, uid)
        flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
        log = os.open(self.folder / f"{number}.log", flags, 0o600)
        status = os.open(self.folder / f"{number}.status", flags & ~os.O_APPEND, 0o600)
        try:
            return await self.container.client.start_task(number, command, log=log, status=status)
        finally:
            os.close(log)
            os.close(status)

    async def ends(self, number: int = 0) -> int:
        await becomes(lambda: self.status(number).endswith("\n"))
        return int(self.status(number))

    def keeper(self) -> int:
        """The pid, as on the machine, of the one keeper there is."""
        [pid] = [pid for pid in self.container.children if Path(f"/proc/{pid}/comm").read_text() == "fairwater-task\n"]
        return int(pid)


@pytest.fixture
def tasks(container: Container, tmp_path: Path) -> Tasks:
    (tmp_path / "tasks").mkdir()
    return Tasks(container, tmp_path / "tasks")


def fields(pid: int) -> dict[str, str]:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return dict(line.split(":\t", 1) for line in lines if ":\t" in line)


async def test_a_task_runs_in_a_terminal_as_its_user_and_leaves_its_output_and_status(tasks: Tasks) -> None:
    code = "tty; stty size; id -u; pwd; echo $A; echo error >&2; cat /proc/self/oom_score_adj; exit 7"
    assert await tasks.start("sh", "-c", code, cwd="/usr/lib")
    assert await tasks.ends() == 7
    terminal, *rest = tasks.log().decode().split("\r\n")
    assert terminal.startswith("/dev/pts/")
    assert rest == ["24 120", "1000", "/usr/lib", "b", "error", "300", ""]
    assert tasks.status() == "7\n"
    await tasks.container.childless()


async def test_output_is_whole_and_in_order_when_the_status_is_there(tasks: Tasks) -> None:
    assert await tasks.start("seq", "200000")
    assert await tasks.ends() == 0
    assert tasks.log() == b"".join(b"%d\r\n" % number for number in range(1, 200001))


async def test_what_was_printed_last_is_in_the_log_before_the_status_is_there(tasks: Tasks, shared: Path) -> None:
    gate = shared / "gate"
    os.mkfifo(gate)
    gate.chmod(0o666)
    for number in range(20):
        await tasks.start("sh", "-c", f"read x <{gate}; exec seq 1200", number=number)
        keeper = tasks.keeper()
        os.kill(keeper, signal.SIGSTOP)
        gate.write_text("go\n")
        [command] = Path(f"/proc/{keeper}/task/{keeper}/children").read_text().split()
        await becomes(lambda pid=int(command): fields(pid)["State"].startswith("Z"))  # type: ignore[misc]
        os.kill(keeper, signal.SIGCONT)
        deadline = time.monotonic() + 20
        while not tasks.status(number):  # without a pause: the log is looked at at once
            assert time.monotonic() < deadline
        assert tasks.log(number).endswith(b"\r\n1200\r\n")
        await tasks.container.childless()


async def test_a_log_that_holds_something_is_appended_to(tasks: Tasks) -> None:
    (tasks.folder / "0.log").write_bytes(b"before\n")
    await tasks.start("echo", "after")
    assert await tasks.ends() == 0
    assert tasks.log() == b"before\nafter\r\n"


async def test_a_task_ended_by_a_signal_has_a_shells_status(tasks: Tasks) -> None:
    await tasks.start("sh", "-c", "kill -SEGV $$")
    assert await tasks.ends() == 128 + 11


async def test_a_number_starts_once_whoever_asks_and_whenever(tasks: Tasks) -> None:
    assert await tasks.start("sh", "-c", "read x")
    assert not await tasks.start("echo", "twice")
    tasks.container.client = InitClient(tasks.container.path)  # another agent
    assert not await tasks.start("echo", "twice")
    await tasks.container.client.terminate()
    assert await tasks.ends() == 128 + 15
    await tasks.container.childless()
    assert not await tasks.start("echo", "twice")
    assert await tasks.start("echo", "another", number=1)
    assert await tasks.ends(1) == 0
    assert tasks.log() == b""


@pytest.mark.parametrize(
    ("arguments", "cwd", "code"),
    [
        (("no-such-command",), "/", "command_not_found"),
        (("/etc/passwd",), "/", "not_executable"),
        (("true",), "/no/such/folder", "bad_cwd"),
    ],
)
async def test_a_task_that_cannot_start_says_why_and_may_be_tried_again(
    tasks: Tasks, arguments: tuple[str, ...], cwd: str, code: str
) -> None:
    for _ in range(2):
        with pytest.raises(Permanent) as failure:
            await tasks.start(*arguments, cwd=cwd)
        assert failure.value.code == code
    await tasks.container.childless()
    assert (tasks.log(), tasks.status()) == (b"", "")
    assert await tasks.start("true")
    assert await tasks.ends() == 0


async def test_a_task_lives_on_when_the_agent_is_killed(tasks: Tasks, shared: Path) -> None:
    code = (
        "import asyncio, pathlib, sys, os\n"
        "from fairwater.node.init_client import InitClient\n"
        "from fairwater.node.init_messages import Command\n"
        "async def main():\n"
        "    path, folder, gate = map(pathlib.Path, sys.argv[1:])\n"
        "    log = os.open(folder / '0.log', os.O_RDWR | os.O_CREAT)\n"
        "    status = os.open(folder / '0.status', os.O_RDWR | os.O_CREAT)\n"
        "    script = f'echo begun; cat {gate}; echo ended; exit 3'\n"
        "    print(await InitClient(path).start_task(0, Command(('/bin/sh', '-c', script),\n"
        "        {'PATH': '/bin'}), log=log, status=status), flush=True)\n"
        "    await asyncio.sleep(100)\n"
        "asyncio.run(main())\n"
    )
    gate = shared / "gate"
    os.mkfifo(gate)
    gate.chmod(0o666)
    agent = await asyncio.create_subprocess_exec(
        sys.executable, "-c", code, tasks.container.path, tasks.folder, gate, stdout=subprocess.PIPE
    )
    assert agent.stdout is not None
    assert await agent.stdout.readline() == b"True\n"
    await becomes(lambda: tasks.log() == b"begun\r\n")
    agent.kill()
    await agent.wait()
    assert tasks.status() == ""
    gate.write_text("through the gate\n")
    assert await tasks.ends() == 3
    assert tasks.log() == b"begun\r\nthrough the gate\r\nended\r\n"


async def test_a_client_that_leaves_at_once_has_started_its_task_all_the_same(tasks: Tasks) -> None:
    message = command_request(
        Request.TASK, Command(("/bin/sh", "-c", "exit 5"), {"PATH": PATH}), number=9, terminal=TerminalSize(24, 120)
    )
    for name in ("9.log", "9.status"):
        (tasks.folder / name).touch()
    with (
        (tasks.folder / "9.log").open("rb+") as log,
        (tasks.folder / "9.status").open("rb+") as status,
        socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as connection,
    ):
        connection.connect(str(tasks.container.path))
        rights = array.array("i", [log.fileno(), status.fileno()])
        connection.sendmsg([message], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)])
    assert await tasks.ends(9) == 5
    assert not await tasks.start("true", number=9)


async def test_a_task_with_nothing_on_its_terminal_open_runs_on_and_may_open_it_again(tasks: Tasks) -> None:
    await tasks.start("bash", "-c", "t=$(tty); exec <&- >&- 2>&-; sleep 0.2; echo again >$t; exit 4")
    assert await tasks.ends() == 4
    assert tasks.log() == b"again\r\n"


async def test_what_a_task_leaves_behind_is_heard_after_its_status(tasks: Tasks, shared: Path) -> None:
    gate = shared / "gate"
    os.mkfifo(gate)
    gate.chmod(0o666)
    await tasks.start("sh", "-c", f"trap '' HUP; {{ read x <{gate}; echo $x; }} & echo now")
    assert await tasks.ends() == 0
    assert tasks.log() == b"now\r\n"
    gate.write_text("later\n")
    await tasks.container.childless()
    assert tasks.log() == b"now\r\nlater\r\n"
    assert tasks.status() == "0\n"


# ---------------------------------------------------------------- logs


async def test_a_log_is_cut_to_its_end_and_never_grows_past_its_bound(tasks: Tasks) -> None:
    lines = 3_000_000
    begun = await tasks.start("seq", str(lines))
    assert begun
    largest = 0

    def over() -> bool:
        nonlocal largest
        largest = max(largest, len(tasks.log()))
        return tasks.status().endswith("\n")

    await becomes(over, 60)
    whole = b"".join(b"%d\r\n" % number for number in range(1, lines + 1))
    log = tasks.log()
    assert TASK_LOG_KEPT <= len(log) <= TASK_LOG_MAX
    assert whole.endswith(log)
    assert (len(whole) - len(log)) % TASK_LOG_KEPT == 0  # so that one who follows it knows where they are
    assert TASK_LOG_KEPT < largest <= TASK_LOG_MAX


async def test_a_log_beyond_its_bound_already_is_cut_first(tasks: Tasks) -> None:
    (tasks.folder / "0.log").write_bytes(b"a" * TASK_LOG_MAX + b"b" * TASK_LOG_KEPT)
    await tasks.start("echo", "end")
    await tasks.ends()
    assert tasks.log() == b"b" * TASK_LOG_KEPT + b"end\r\n"


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MiB."""
    libc = ctypes.CDLL(None, use_errno=True)
    folder = tmp_path / "small"
    folder.mkdir()
    assert libc.mount(b"tmpfs", os.fsencode(folder), b"tmpfs", 0, b"size=1m") == 0
    yield folder
    assert libc.umount2(os.fsencode(folder), 2) == 0


async def test_a_full_disk_stops_no_task_and_the_status_is_written_once_there_is_room(
    container: Container, small_disk: Path, shared: Path
) -> None:
    tasks = Tasks(container, small_disk)
    done = shared / "done"
    await tasks.start("sh", "-c", f"seq 1000000; touch {done}; exit 6")
    await becomes(done.exists)
    assert tasks.log().startswith(b"1\r\n2\r\n")
    assert (1 << 20) - 2 * 4096 <= len(tasks.log()) <= 1 << 20
    (small_disk / "0.log").write_bytes(b"")  # as one who makes room
    assert await tasks.ends() == 6
    await container.childless()


async def test_a_status_that_finds_no_room_does_not_hold_up_the_end(container: Container, small_disk: Path) -> None:
    tasks = Tasks(container, small_disk)
    await tasks.start("sh", "-c", "seq 1000000")
    keeper = tasks.keeper()
    await becomes(lambda: not Path(f"/proc/{keeper}/task/{keeper}/children").read_text())
    assert tasks.status() == ""
    await container.client.terminate()
    await container.childless()


async def test_a_log_that_is_no_file_gets_nothing_and_the_task_runs(tasks: Tasks) -> None:
    (tasks.folder / "0.log").symlink_to("/dev/null")
    await tasks.start("seq", "1000000")
    assert await tasks.ends() == 0


# ---------------------------------------------------------------- the end


async def test_termination_ends_tasks_and_all_that_runs_in_them(tasks: Tasks) -> None:
    await tasks.start("sleep", "100")
    # They ignore SIGTERM, and the second has jobs of its own, one of them in the foreground.
    await tasks.start("sh", "-c", "trap '' TERM; echo ready; sleep 100; sleep 100", number=1)
    await tasks.start("bash", "-c", "set -m; trap '' TERM; (echo ready; sleep 100; sleep 100)", number=2)
    await tasks.start("sh", "-c", "echo ready; kill -STOP $$; sleep 100", number=3)
    await becomes(lambda: all(tasks.log(number) == b"ready\r\n" for number in (1, 2, 3)))
    await tasks.container.client.terminate()
    assert await tasks.ends(0) in (128 + 1, 128 + 15)  # whichever signal the kernel gives it first
    assert await tasks.ends(1) == 128 + 1
    assert await tasks.ends(2) == 128 + 1
    assert await tasks.ends(3) in (128 + 1, 128 + 15)
    await tasks.container.childless()


async def test_a_shell_at_its_prompt_ends_like_one_whose_terminal_is_closed(tasks: Tasks) -> None:
    await tasks.start("bash", "--norc", "-i")
    await becomes(lambda: b"$ " in tasks.log())
    await tasks.container.client.terminate()
    assert await tasks.ends() == 128 + 1


async def test_a_killed_keeper_hangs_its_command_up_and_the_first_process_says_so(tasks: Tasks) -> None:
    await tasks.start("sleep", "100")
    keeper = tasks.keeper()
    inside = fields(keeper)["NSpid"].split()[-1]
    assert (await tasks.container.run("sh", "-c", f"kill -9 {inside}"))[0] != 0
    assert tasks.status() == ""
    os.kill(keeper, signal.SIGKILL)  # only root of the container can, or the kernel for want of memory
    assert await tasks.ends() == 128 + 9
    await tasks.container.childless()


async def test_a_keeper_killed_after_the_end_leaves_the_status_as_it_is(tasks: Tasks) -> None:
    await tasks.start("sh", "-c", "trap '' HUP; sleep 100 & exit 2")
    assert await tasks.ends() == 2
    os.kill(tasks.keeper(), signal.SIGKILL)
    await becomes(lambda: len(tasks.container.children) == 1)  # what was left behind, adopted
    assert tasks.status() == "2\n"


# ---------------------------------------------------------------- hostile


async def test_a_keeper_has_no_more_than_it_needs(tasks: Tasks) -> None:
    await tasks.start("sleep", "100")
    keeper = tasks.keeper()
    await becomes(lambda: fields(keeper)["CapPrm"].strip() == f"{1 << 5:016x}")  # CAP_KILL
    assert fields(keeper)["CapEff"].strip() == f"{1 << 5:016x}"
    opened = {entry.name: str(entry.readlink()) for entry in Path(f"/proc/{keeper}/fd").iterdir()}
    assert opened.pop("0") == str(tasks.folder / "0.log")
    assert opened.pop("1") == str(tasks.folder / "0.status")
    assert sorted(opened.values())[0].startswith("/dev/pts/")
    assert sorted(opened.values())[1].endswith("ptmx")
    assert sorted(opened.values())[2:] == ["anon_inode:[signalfd]"]
    pid = fields(keeper)["NSpid"].split()[-1]
    for entry in ("fd", "root", "cwd", "map_files"):
        assert (await tasks.container.run("ls", f"/proc/{pid}/{entry}/", uid=0))[0] != 0
    assert (await tasks.container.run("cat", f"/proc/{pid}/mem", uid=0))[2].endswith(b"Permission denied\n")


async def test_a_task_has_nothing_of_its_keepers(tasks: Tasks) -> None:
    code = (
        "import os; print(sorted(int(n) for n in os.listdir('/proc/self/fd'))[:3], os.getsid(0) == os.getpid(), "
        "[l for l in open('/proc/self/status') if l.startswith(('CapPrm', 'SigBlk', 'SigIgn', 'NoNewPrivs'))])"
    )
    await tasks.start("/usr/bin/python3", "-I", "-S", "-c", code)
    assert await tasks.ends() == 0
    text = tasks.log().decode()
    assert "[0, 1, 2] True" in text
    assert text.count("0000000000000000") == 2  # CapPrm, SigBlk
    assert "NoNewPrivs:\\t1" in text


async def test_every_number_may_be_used_at_once_and_all_end(tasks: Tasks) -> None:
    started = await asyncio.gather(
        *(tasks.start("sh", "-c", f"echo {number}; exit {number}", number=number) for number in range(64))
    )
    assert all(started)
    assert [await tasks.ends(number) for number in range(64)] == list(range(64))
    assert [tasks.log(number) for number in range(64)] == [b"%d\r\n" % number for number in range(64)]
    await tasks.container.childless()
    await becomes(lambda: len(list(Path(f"/proc/{tasks.container.pid}/fd").iterdir())) == 7)


async def test_the_same_number_asked_for_at_once_starts_once(tasks: Tasks) -> None:
    async def ask() -> bool | str:
        try:
            return await tasks.start("sh", "-c", "echo run")
        except Temporary as failure:
            return failure.code

    answers = await asyncio.gather(*(ask() for _ in range(50)))
    assert answers.count(True) == 1
    assert set(answers) <= {True, False, "busy"}
    await tasks.ends()
    await tasks.container.childless()
    assert tasks.log() == b"run\r\n"


async def test_a_fork_bomb_in_one_task_leaves_the_others_and_the_first_process_alone(tasks: Tasks) -> None:
    await tasks.start("bash", "-c", "ulimit -u 30; bomb() { bomb | bomb & }; bomb; exec sleep 100", number=0, uid=2000)
    await becomes(lambda: b"fork" in tasks.log(0))
    assert await tasks.start("sh", "-c", "echo well", number=1)
    assert await tasks.ends(1) == 0
    assert tasks.log(1) == b"well\r\n"
    assert (await tasks.container.client.hello()).version == 2


async def test_a_task_that_never_stops_printing_is_held_to_its_bound_and_ends_when_asked(tasks: Tasks) -> None:
    await tasks.start("sh", "-c", "trap 'exit 8' TERM; while :; do echo yes yes yes; done")
    await becomes(lambda: len(tasks.log()) > 1 << 20)
    await tasks.container.client.terminate()
    assert await tasks.ends() in (8, 128 + 1)
    assert len(tasks.log()) <= TASK_LOG_MAX


async def test_an_agent_of_the_first_version_is_answered_as_it_knows(container: Container) -> None:
    for said, answered in ((0, 1), (1, 1), (2, 2), (3, 2), (2**31 - 1, 2), (-5, 1)):
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as connection:
            connection.connect(str(container.path))
            connection.send(request(Request.HELLO, number=said))
            reply = parse_reply(connection.recv(100))
            assert (reply.kind, reply.value) == (Answer.HELLO, answered)
