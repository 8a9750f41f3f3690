"""A whole Fairwater as `fairwater up` runs it, used from the command line."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from tests.servers.databases import postgres as postgres
from tests.servers.databases import postgres_url as postgres_url

FAIRWATER = str(Path(sys.executable).parent / "fairwater")
UP_WITHIN_S = 60.0
SETTINGS = {
    "FAIRWATER_LIMITS_START_INTERVAL": "1ms",
    "FAIRWATER_NODE_PARKED": "2",
    "FAIRWATER_NODE_STOP_GRACE_S": "3s",
    "FAIRWATER_CLASSES_STANDARD_DISK": "1GiB",
}


@dataclass
class Installation:
    """One data directory and the `fairwater up` on it."""

    data_dir: Path
    port: int
    repository: Path
    up: subprocess.Popen[bytes] | None = None
    ups: list[subprocess.Popen[bytes]] = field(default_factory=list)
    settings: dict[str, str] = field(default_factory=dict)

    def environment(self) -> dict[str, str]:
        return {
            "PATH": os.environ["PATH"],
            "HOME": str(self.data_dir),
            "FAIRWATER_DATA_DIR": str(self.data_dir),
            **SETTINGS,
            **self.settings,
        }

    def start(self, *arguments: str) -> None:
        """Starts `fairwater up` and waits until it says how to stop it."""
        log = self.data_dir.with_suffix(".log")
        command = [FAIRWATER, "up", "--listen", f"127.0.0.1:{self.port}", *arguments]
        with open(log, "wb") as output:
            self.up = subprocess.Popen(
                command, stdout=output, stderr=output, env=self.environment(), start_new_session=True
            )
        self.ups.append(self.up)
        until(lambda: "Ctrl-C" in log.read_text() or self.up is None or self.up.poll() is not None, log.read_text)
        assert self.up.poll() is None, log.read_text()

    def said(self) -> str:
        return self.data_dir.with_suffix(".log").read_text()

    def run(self, *arguments: str, stdin: bytes = b"", within_s: float = 60) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [FAIRWATER, *arguments], input=stdin, capture_output=True, env=self.environment(), timeout=within_s,
            check=False,
        )  # fmt: skip
        return subprocess.CompletedProcess(arguments, done.returncode, done.stdout.decode(), done.stderr.decode())

    def json(self, *arguments: str) -> Any:
        done = self.run(*arguments, "--json")
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    def exec(self, workspace: str, script: str) -> str:
        done = self.run("ws", "exec", workspace, "--", "sh", "-c", script)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def part(self, name: str) -> int:
        """The pid of the supervised server or node agent."""
        assert self.up is not None
        children = [path.read_text() for path in Path(f"/proc/{self.up.pid}/task").glob("*/children")]
        for pid in " ".join(children).split():
            if name.encode() in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0"):
                return int(pid)
        raise AssertionError(f"no part {name} runs")

    def interrupt(self) -> int:
        """Ctrl-C, and the exit status."""
        assert self.up is not None
        self.up.send_signal(signal.SIGINT)
        return self.up.wait(60)

    def end(self) -> None:
        for up in self.ups:
            if up.poll() is None:
                up.send_signal(signal.SIGTERM)
                up.wait(60)


def until(condition: Callable[[], object], what: Callable[[], str] | str, within_s: float = UP_WITHIN_S) -> None:
    deadline = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline, what if isinstance(what, str) else what()
        time.sleep(0.05)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@pytest.fixture
def installation() -> Iterator[Installation]:
    folder = Path(tempfile.mkdtemp(prefix="fw-", dir="/var/tmp"))
    folder.chmod(0o755)
    repository = folder / "origin" / "project"
    repository.mkdir(parents=True)
    git = ["git", "-C", str(repository), "-c", "user.name=T", "-c", "user.email=t@example.org"]
    subprocess.run([*git, "init", "-q", "--initial-branch=main"], check=True)
    (repository / "README").write_text("hello\n")
    subprocess.run([*git, "add", "."], check=True)
    subprocess.run([*git, "commit", "-qm", "first"], check=True)
    made = Installation(folder / "data", free_port(), repository)
    yield made
    if made.ups and made.ups[-1].poll() is not None and (made.data_dir / "node/runs").exists():
        running = [path for path in (made.data_dir / "node/runs").glob("*.json") if '"ended"' not in path.read_text()]
        if running:  # a test that failed in between: bring it down in order
            made.start()
    made.end()
    shutil.rmtree(folder)
