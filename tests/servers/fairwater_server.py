"""A Fairwater server as a process of its own, of this version or of another's source, spoken to by its unix socket."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2

from .address import free_port

_BEGINS_WITHIN_S = 30.0
_RUN = "import sys, fairwater; print(fairwater.__path__[0], file=sys.stderr); from fairwater.cli.main import run; run()"
KEY = "00" * 32


@dataclass
class ServerProcess:
    process: subprocess.Popen[bytes]
    folder: Path
    client: httpx2.Client

    def get(self, path: str) -> Any:
        answer = self.client.get(path)
        assert answer.status_code == 200, (answer.status_code, answer.text)
        return answer.json()

    def create(self, name: str, **headers: str) -> dict[str, Any]:
        body = {"context_url": "https://example.org/team/repo", "name": name}
        answer = self.client.post("/api/v1/workspaces", json=body, headers=headers)
        assert answer.status_code == 201, (answer.status_code, answer.text)
        document: dict[str, Any] = answer.json()
        return document

    def post(self, path: str, **body: Any) -> None:
        answer = self.client.post(f"/api/v1/{path}", json=body)
        assert answer.status_code < 300, (answer.status_code, answer.text)

    def set_variable(self, **body: Any) -> None:
        answer = self.client.put("/api/v1/users/me/variables", json=body)
        assert answer.status_code < 300, (answer.status_code, answer.text)

    def delete(self, path: str) -> None:
        answer = self.client.delete(f"/api/v1/{path}")
        assert answer.status_code < 300, (answer.status_code, answer.text)

    def phases(self) -> dict[str, str]:
        return {item["name"]: item["phase"] for item in self.get("/api/v1/workspaces?limit=100")["items"]}

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def end(self) -> int:
        """In order; how long that may take is bounded."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(20)

    def source(self) -> Path:
        """The folder of the package that it runs, as the process itself says."""
        return Path([line for line in self.log().splitlines() if line.startswith("/")][-1])

    def log(self) -> str:
        return (self.folder / "log").read_text()


@contextmanager
def server_process(
    folder: Path,
    database_url: str,
    *,
    source: Path | None = None,
    node_socket: Path | None = None,
    master_key: str = KEY,
) -> Iterator[ServerProcess]:
    """Runs until the end of the block. `source` is the `src` folder of another version; `node_socket`, an agent's."""
    (folder / "run").mkdir(parents=True, exist_ok=True)
    if node_socket is not None and not (folder / "run/node.sock").is_symlink():
        (folder / "run/node.sock").symlink_to(node_socket)
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("FAIRWATER_")},
        "FAIRWATER_SERVER_DATABASE_URL": database_url,
        "FAIRWATER_SERVER_LISTEN": f"127.0.0.1:{free_port('127.0.0.1')}",
        "FAIRWATER_LIMITS_START_INTERVAL": "1ms",
        "FAIRWATER_LIMITS_START_BURST": "1000",
        "FAIRWATER_LIMITS_PARALLEL": "1000",
    }
    if source is not None:
        environment["PYTHONPATH"] = str(source)
    if source is None or (source / "fairwater/store/vault.py").exists():
        environment["FAIRWATER_SERVER_MASTER_KEY"] = master_key
    with (folder / "log").open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-c", _RUN, "server", "run", "--data-dir", str(folder)],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )
    transport = httpx2.HTTPTransport(uds=str(folder / "run/server.sock"))
    with httpx2.Client(transport=transport, base_url="http://server", timeout=20) as client:
        running = ServerProcess(process, folder, client)
        try:
            _wait(running)
            yield running
        finally:
            if process.poll() is None:
                process.terminate()
                try:
                    process.wait(20)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()


def _wait(running: ServerProcess) -> None:
    give_up = time.monotonic() + _BEGINS_WITHIN_S
    while True:
        with socket.socket(socket.AF_UNIX) as probe:
            if probe.connect_ex(str(running.folder / "run/server.sock")) == 0:
                break
        if running.process.poll() is not None or time.monotonic() > give_up:
            raise RuntimeError(f"the server did not start: {running.log()}")
        time.sleep(0.05)
    assert running.client.get("/healthz").status_code == 200
