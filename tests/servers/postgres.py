"""A real PostgreSQL of the machine, for tests: as a user without rights, in a temporary folder, for a session.

It does not wait for the disk unless asked to be `durable`, which a test that kills it may stand: what was written is in
the machine's memory.
"""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from urllib.parse import quote

import psycopg

USER = "fairwater"
TEMPLATE = "fairwater_template"
_BEGINS_WITHIN_S = 30.0
_HASTY = {"fsync": "off", "full_page_writes": "off"}
_OPTIONS = {
    "max_connections": "200",
    "shared_buffers": "64MB",
    "log_min_messages": "fatal",
}


def programs() -> Path | None:
    """The folder of the newest PostgreSQL that Debian has installed."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: float(path.parts[-3]))
    return found[-1].parent if found else None


def why_no_postgres() -> str | None:
    """Why there is none for tests here, None where there is."""
    if programs() is None:
        return "PostgreSQL is not installed (Debian: postgresql-15)"
    if os.geteuid() == 0 and _account() is None:
        return "PostgreSQL does not run as root, and there is no account 'postgres' or 'nobody'"
    if os.geteuid() == 0 and shutil.which("setpriv") is None:
        return "setpriv is not installed"
    return None


@dataclass
class Cluster:
    """One running server. `process` is its first process, which all others end with."""

    folder: Path
    port: int
    durable: bool = False
    process: subprocess.Popen[bytes] | None = None
    _numbers: Iterator[int] = field(default_factory=count)

    def start(self) -> None:
        """Returns once it answers."""
        binaries = programs()
        assert binaries is not None
        wanted = _OPTIONS if self.durable else _OPTIONS | _HASTY
        options = [word for name, value in wanted.items() for word in ("-c", f"{name}={value}")]
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(
                [
                    *_unprivileged(),
                    str(binaries / "postgres"),
                    *("-D", str(self.folder / "data"), "-k", str(self.folder), "-h", "127.0.0.1", "-p", str(self.port)),
                    *options,
                ],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=log,
                start_new_session=True,
            )
        give_up = time.monotonic() + _BEGINS_WITHIN_S
        while True:
            try:
                psycopg.connect(self.conninfo("postgres"), connect_timeout=2).close()
            except psycopg.OperationalError:
                if self.process.poll() is not None or time.monotonic() > give_up:
                    raise RuntimeError(f"PostgreSQL did not start: {(self.folder / 'log').read_text()}") from None
                time.sleep(0.05)
            else:
                return

    def pids(self) -> list[int]:
        """The first process and its children: one for each connection, and those that tidy up."""
        assert self.process is not None
        first = self.process.pid
        return [first, *(int(pid) for pid in Path(f"/proc/{first}/task/{first}/children").read_text().split())]

    def halt(self) -> None:
        """It answers nobody any more, and closes nothing."""
        for pid in self.pids():
            os.kill(pid, signal.SIGSTOP)

    def go_on(self) -> None:
        for pid in self.pids():
            os.kill(pid, signal.SIGCONT)

    def kill(self) -> None:
        """All of it, at once; nothing is written any more."""
        assert self.process is not None
        for pid in self.pids():
            os.kill(pid, signal.SIGKILL)
        self.process.wait()

    def stop(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
            try:
                self.process.wait(10)
            except subprocess.TimeoutExpired:
                self.kill()

    def conninfo(self, database: str) -> str:
        return f"host=127.0.0.1 port={self.port} user={USER} dbname={database}"

    def url(self, database: str, *, by_socket: bool = False) -> str:
        if by_socket:
            return f"postgresql://{USER}@/{database}?host={quote(str(self.folder), safe='')}&port={self.port}"
        return f"postgresql://{USER}@127.0.0.1:{self.port}/{database}"

    def create(self, template: str = "template0") -> str:
        """The URL of a new database."""
        name = f"test_{next(self._numbers)}"
        with psycopg.connect(self.conninfo("postgres"), autocommit=True) as connection:
            connection.execute(f'CREATE DATABASE "{name}" TEMPLATE "{template}"')
        return self.url(name)

    def drop(self, url: str) -> None:
        name = url.rpartition("/")[2]
        with psycopg.connect(self.conninfo("postgres"), autocommit=True) as connection:
            connection.execute(f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)')

    def rename(self, url: str, name: str) -> None:
        with psycopg.connect(self.conninfo("postgres"), autocommit=True) as connection:
            connection.execute(f'ALTER DATABASE "{url.rpartition("/")[2]}" RENAME TO "{name}"')


@contextmanager
def cluster(*, durable: bool = False) -> Iterator[Cluster]:
    """A running server of its own, gone at the end."""
    binaries = programs()
    assert binaries is not None
    # Directly below the folder for temporary files: the path of a socket must be short, and the folders above open.
    folder = Path(tempfile.mkdtemp(prefix="fairwater-postgres-"))
    running = Cluster(folder, _free_port(), durable)
    try:
        account = _account()
        if os.geteuid() == 0 and account is not None:
            os.chown(folder, account.pw_uid, account.pw_gid)
        subprocess.run(
            [
                *_unprivileged(),
                str(binaries / "initdb"),
                *("-D", str(folder / "data"), "-U", USER, "-A", "trust", "-E", "UTF8", "--locale=C", "--no-sync"),
            ],
            check=True,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            cwd=folder,
        )
        running.start()
        yield running
    finally:
        running.stop()
        shutil.rmtree(folder, ignore_errors=True)


def _account() -> pwd.struct_passwd | None:
    for name in ("postgres", "nobody"):
        try:
            return pwd.getpwnam(name)
        except KeyError:
            continue
    return None


def _unprivileged() -> list[str]:
    """PostgreSQL refuses to run as root."""
    account = _account()
    if os.geteuid() != 0 or account is None:
        return []
    identity = [f"--reuid={account.pw_uid}", f"--regid={account.pw_gid}", "--clear-groups"]
    # It ends with the test run, even where that is killed.
    return ["setpriv", *identity, "--pdeathsig=KILL", "--"]


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
