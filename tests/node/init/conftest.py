"""PID 1 for real: built once, then started in namespaces of its own for each test that asks for `container`."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from tests.node.init.program import build_init

from fairwater.node.init_client import InitClient
from fairwater.node.init_messages import Command, Request, request
from fairwater.node.init_process import InitProcess
from fairwater.ports.process import Channel, TerminalSize

HOST_IDS = 300_000
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


@dataclass
class Container:
    """PID 1 in its namespaces: `pid` is its number on the machine."""

    path: Path
    pid: int
    client: InitClient
    launcher: subprocess.Popen[str]

    async def run(self, *arguments: str, uid: int = 1000) -> tuple[int, bytes, bytes]:
        """Runs a command to its end: status, stdout, stderr."""
        return await finish(await self.begin(*arguments, uid=uid))

    async def begin(
        self,
        *arguments: str,
        uid: int = 1000,
        cwd: str = "/tmp",
        environment: dict[str, str] | None = None,
        groups: tuple[int, ...] = (),
        terminal: TerminalSize | None = None,
    ) -> InitProcess:
        variables = {"PATH": PATH} if environment is None else environment
        return await self.client.exec(Command(arguments, variables, cwd, uid, uid, groups), terminal)

    @property
    def children(self) -> list[str]:
        """The pids, as on the machine, of PID 1's children."""
        return Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text().split()

    async def childless(self) -> None:
        """Waits until PID 1 has no child left."""
        await becomes(lambda: not self.children)

    def kill(self) -> None:
        os.kill(self.pid, signal.SIGKILL)
        self.launcher.communicate(timeout=20)


async def becomes(condition: Callable[[], bool], within_s: float = 30) -> None:
    """Waits until the machine shows `condition`, which it does not announce."""
    async with asyncio.timeout(within_s):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.01)


async def finish(process: InitProcess, *inputs: bytes) -> tuple[int, bytes, bytes]:
    """Writes the inputs and the end of input, takes all output and the status."""
    for data in (*inputs, b""):
        await process.write(data)
    streams = {Channel.STDOUT: bytearray(), Channel.STDERR: bytearray()}
    async for channel, data in process.output():
        streams[channel] += data
    status = await process.wait()
    await process.close()
    return status, bytes(streams[Channel.STDOUT]), bytes(streams[Channel.STDERR])


@pytest.fixture(scope="session")
def init_program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_init(tmp_path_factory.mktemp("init"))


def start_container(program: Path, path: Path) -> Container:
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener, program.open("rb") as file:
        folder = os.open(path.parent, os.O_PATH)
        listener.bind(f"/proc/self/fd/{folder}/{path.name}")
        os.close(folder)
        listener.listen(512)
        script = Path(__file__).with_name("container.py")
        launcher = subprocess.Popen(
            [sys.executable, "-I", "-S", script, str(file.fileno()), str(listener.fileno())],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            pass_fds=(file.fileno(), listener.fileno()),
        )
        assert launcher.stdin is not None
        assert launcher.stdout is not None
        assert launcher.stdout.readline() == "ready\n"
        for kind in ("uid_map", "gid_map"):
            Path(f"/proc/{launcher.pid}/{kind}").write_text(f"0 {HOST_IDS} 65536\n")
        launcher.stdin.write("go\n")
        launcher.stdin.flush()
        pid = int(launcher.stdout.readline())
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as first:  # answered once it is itself
        first.settimeout(20)
        folder = os.open(path.parent, os.O_PATH)
        first.connect(f"/proc/self/fd/{folder}/{path.name}")
        os.close(folder)
        first.send(request(Request.HELLO))
        assert first.recv(100)
    return Container(path, pid, InitClient(path, host_ids=HOST_IDS), launcher)


@pytest.fixture
def start(init_program: Path) -> Iterator[Callable[[Path], Container]]:
    started: list[Container] = []

    def begin(path: Path) -> Container:
        started.append(start_container(init_program, path))
        return started[-1]

    yield begin
    for container in started:
        if container.launcher.poll() is None:
            container.kill()


@pytest.fixture
def container(start: Callable[[Path], Container], tmp_path: Path) -> Container:
    return start(tmp_path / "init.sock")


@pytest.fixture
def shared() -> Iterator[Path]:
    """A folder that the workspace's users may write to: pytest's own are for root alone."""
    with tempfile.TemporaryDirectory(prefix="fairwater-test-") as name:
        Path(name).chmod(0o777)
        yield Path(name)
