"""What `fairwater up` makes sure of before it starts anything.

One Fairwater a data directory, a layout this version knows, a free port, an unprivileged user that can reach what is
its own. Each check raises `Permanent`, saying what is in the way and what to do.
"""

from __future__ import annotations

import fcntl
import json
import os
import pwd
import shutil
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from fairwater.data_dir import FORMAT, DataDir
from fairwater.domain.failure import Permanent
from fairwater.settings_values import Address

_ENDING_S = 45.0
"""How long the parts of a supervisor that was killed may take to end."""


@dataclass(frozen=True, slots=True)
class Account:
    """The system user that the server runs as."""

    name: str
    uid: int
    gid: int


def check_format(data: DataDir) -> None:
    """Refuses a data directory that a newer version has written."""
    try:
        text = data.format.read_text(encoding="ascii").strip()
    except FileNotFoundError:
        return
    except (OSError, UnicodeDecodeError) as error:
        raise Permanent(f"{data.format} cannot be read: {error}", code="bad_data_dir") from None
    if not text.isdigit():
        raise Permanent(f"{data.format} holds {text[:20]!r} instead of a number: restore it", code="bad_data_dir")
    if int(text) > FORMAT:
        raise Permanent(
            f"{data.root} was written by a newer Fairwater (format {text}; this version knows up to {FORMAT}): "
            "run that version again, or give another directory with --data-dir",
            code="newer_data_dir",
        )


def lock(data: DataDir, listen: Address, tell: Callable[[str], None]) -> int:
    """Takes the data directory for this process and returns the open lock; its parts inherit it.

    Waits for the parts of a supervisor that was killed. Raises Permanent: `data_dir_in_use`.
    """
    descriptor = os.open(data.lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    ends, told = time.monotonic() + _ENDING_S, False
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except BlockingIOError:
            holder = _holder(descriptor)
        if holder.get("pid") and not _alive(int(holder["pid"])) and time.monotonic() < ends:
            if not told:
                tell("an earlier Fairwater was killed; waiting for its server and agent to end")
            told = True
            time.sleep(0.2)
            continue
        os.close(descriptor)
        who = f"process {holder['pid']}, on {holder['listen']}" if holder.get("pid") else "another process"
        raise Permanent(
            f"a Fairwater runs on {data.root} already ({who}): use that one, stop it with "
            f"kill {holder.get('pid', 'PID')}, or give this one another --data-dir and --listen",
            code="data_dir_in_use",
        )
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, json.dumps({"pid": os.getpid(), "listen": str(listen)}).encode(), 0)
    return descriptor


def _holder(descriptor: int) -> dict[str, str]:
    try:
        held = json.loads(os.pread(descriptor, 1024, 0))
        return {"pid": str(int(held["pid"])), "listen": str(held["listen"])}
    except (ValueError, KeyError, TypeError):
        return {}


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def check_port(address: Address) -> None:
    """Raises Permanent: `port_in_use`, `cannot_listen`."""
    family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((address.host, address.port))
            probe.listen(1)
        except OSError as error:
            if error.errno == 98:  # EADDRINUSE
                raise Permanent(
                    f"port {address.port} of {address.host} is in use by another program: choose another with "
                    f"--listen {Address(address.host, _next(address.port))}",
                    code="port_in_use",
                ) from None
            raise Permanent(
                f"cannot listen on {address}: {error.strerror or error}; choose another with --listen HOST:PORT",
                code="cannot_listen",
            ) from None


def _next(port: int) -> int:
    return port + 1 if port < 65_535 else port - 1


def ensure_account(name: str, tell: Callable[[str], None]) -> Account:
    """The system user `name`, made where there is none: no home, no login. Raises Permanent: `no_user`."""
    try:
        entry = pwd.getpwnam(name)
    except KeyError:
        tell(f"making the system user {name}, which the server runs as")
        shell = shutil.which("nologin", path="/usr/sbin:/sbin:/usr/bin") or "/bin/false"
        command = ["useradd", "--system", "--user-group", "--no-create-home", "--home-dir", "/nonexistent"]
        made = subprocess.run([*command, "--shell", shell, name], capture_output=True, text=True, check=False)
        if made.returncode:
            raise Permanent(f"cannot make the user {name}: {made.stderr.strip()}", code="no_user") from None
        entry = pwd.getpwnam(name)
    if entry.pw_uid == 0:
        raise Permanent(f"the user {name} is root: name another as server.user", code="no_user")
    return Account(name, entry.pw_uid, entry.pw_gid)


def lay_out(data: DataDir, account: Account | None) -> None:
    """Makes the folders, each owned and closed as `data_dir` says. `account` None: all is this user's own."""
    uid, gid = (account.uid, account.gid) if account else (os.getuid(), os.getgid())
    try:
        data.root.mkdir(mode=0o755, parents=True, exist_ok=True)
        if os.geteuid() == 0 and data.root.stat().st_uid != 0:
            raise Permanent(
                f"{data.root} belongs to {data.root.owner()}, who could put files of their own in the agent's place: "
                "give a folder of root's as --data-dir",
                code="bad_data_dir",
            )
        _folder(data.server, 0o700, uid, gid)
        _folder(data.node, 0o700, os.getuid(), os.getgid())
        # The server makes its socket here; the sticky bit keeps it from replacing the agent's.
        _folder(data.run, 0o1775, os.getuid(), gid)
        _folder(data.logs, 0o750, os.getuid(), os.getgid())
    except OSError as error:
        raise Permanent(
            f"cannot prepare {error.filename or data.root}: {error.strerror}; give another --data-dir",
            code="bad_data_dir",
        ) from None


def mark_format(data: DataDir) -> None:
    """Writes the layout's number, so that an older version can refuse it."""
    draft = data.root / f"format.{os.getpid()}"
    draft.write_text(f"{FORMAT}\n", encoding="ascii")
    draft.replace(data.format)


def _folder(path: Path, mode: int, uid: int, gid: int) -> None:
    path.mkdir(mode=0o700, exist_ok=True)
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        os.fchown(descriptor, uid, gid)
        os.fchmod(descriptor, mode)
    finally:
        os.close(descriptor)


def check_reach(data: DataDir, account: Account) -> None:
    """That the server's user can enter the data directory, and run this Python. Raises Permanent: `out_of_reach`."""
    for folder in (data.root, *data.root.parents):
        found = folder.stat()
        if not found.st_mode & stat.S_IXOTH and found.st_uid != account.uid:
            raise Permanent(
                f"the user {account.name} cannot enter {folder}, so the server cannot reach {data.root}: "
                "choose another place with --data-dir, such as /var/lib/fairwater",
                code="out_of_reach",
            )
    check = [sys.executable, "-I", "-c", "import fairwater.cli.main"]
    try:
        subprocess.run(check, user=account.uid, group=account.gid, extra_groups=[], cwd="/", check=True,
                       stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)  # fmt: skip
    except (OSError, subprocess.CalledProcessError):
        raise Permanent(
            f"the user {account.name} cannot run {sys.executable}, so the server cannot start: "
            "install Fairwater where all can read it (make up uses /opt/fairwater)",
            code="out_of_reach",
        ) from None
