"""A Fairwater of its own for a benchmark: server and agent as `fairwater up` runs them, on a data directory aside."""

from __future__ import annotations

import http.client
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=120)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))


@dataclass
class Stack:
    """The API as the local administrator, over a connection that is kept."""

    data_dir: Path
    agent_pid: int
    server_pid: int

    def __post_init__(self) -> None:
        self._connection = _UnixConnection(self.data_dir / "run/server.sock")

    def call(self, method: str, path: str, body: object = None, *, raw: bool = False) -> Any:
        headers = {"Content-Type": "application/json"} if body is not None else {}
        self._connection.request(method, f"/api/v1{path}", json.dumps(body) if body is not None else None, headers)
        response = self._connection.getresponse()
        data = response.read()
        if response.status >= 300:
            raise RuntimeError(f"{method} {path}: {response.status} {data.decode()[:500]}")
        return data if raw else json.loads(data) if data else None

    def create(self, url: str, *, start: bool = True, command: list[str] | None = None, name: str | None = None) -> str:
        body = {"context_url": url, "start": start, "command": command, "name": name}
        return str(self.call("POST", "/workspaces", body)["id"])

    def start(self, workspace: str) -> None:
        self.call("POST", f"/workspaces/{workspace}/start", {})

    def stop(self, workspace: str, *, force: bool = False) -> None:
        self.call("POST", f"/workspaces/{workspace}/stop", {"force": force})

    def delete(self, workspace: str) -> None:
        self.call("DELETE", f"/workspaces/{workspace}")

    def wait(self, workspace: str, *phases: str, within_s: float = 60) -> dict[str, Any]:
        deadline = time.monotonic() + within_s
        while True:
            found: dict[str, Any] = self.call("GET", f"/workspaces/{workspace}")
            if found["phase"] in phases:
                return found
            if found["phase"] == "failed" or time.monotonic() > deadline:
                raise RuntimeError(f"{workspace} is {found['phase']} ({found['reason']}), not {'/'.join(phases)}")
            time.sleep(0.005)

    def file(self, workspace: str, path: str) -> bytes:
        return bytes(self.call("GET", f"/workspaces/{workspace}/files/{path}", raw=True))


@contextmanager
def running(settings: Mapping[str, str], file_root: Path, port: int = 7190) -> Iterator[Stack]:
    """`settings` are `FAIRWATER_…` variables. Everything is gone afterwards."""
    data_dir = Path(tempfile.mkdtemp(prefix="fw-bench-", dir="/var/tmp"))
    data_dir.chmod(0o755)
    log = data_dir / "up.log"
    environment = {"PATH": os.environ["PATH"], **settings}
    command = [
        str(Path(sys.executable).parent / "fairwater"), "up", "--data-dir", str(data_dir), "--listen",
        f"127.0.0.1:{port}", "--file-root", str(file_root),
    ]  # fmt: skip
    with open(log, "wb") as output:
        up = subprocess.Popen(command, stdout=output, stderr=output, env=environment, start_new_session=True)
    try:
        deadline = time.monotonic() + 60
        while "ready" not in log.read_text():
            if up.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"fairwater up did not come up:\n{log.read_text()}")
            time.sleep(0.05)
        yield Stack(data_dir, _child(up.pid, "node"), _child(up.pid, "server"))
    finally:
        up.send_signal(signal.SIGINT)
        try:
            up.wait(180)
        except subprocess.TimeoutExpired:
            os.killpg(up.pid, signal.SIGKILL)
            up.wait()
        shutil.rmtree(data_dir)


def _child(parent: int, part: str) -> int:
    """The pid of the supervisor's child that runs `fairwater PART run`."""
    for pid in Path(f"/proc/{parent}/task/{parent}/children").read_text().split():
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        if part.encode() in words:
            return int(pid)
    raise RuntimeError(f"no child of {parent} runs the {part}")
