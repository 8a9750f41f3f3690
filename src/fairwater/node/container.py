"""A slot's container and namespaces, made and removed by an OCI runtime."""

from __future__ import annotations

import os
import socket
import subprocess
from pathlib import Path

from fairwater.domain.failure import Temporary
from fairwater.node import linux
from fairwater.node.bundle import IDS


def make_namespaces(base: int, user_ns: Path, net_ns: Path) -> None:
    """A user namespace with ids from `base`, and a network namespace that it owns, kept by a bind mount each."""
    with linux.held_namespaces("--user", "--net") as holder:
        for name in ("uid_map", "gid_map"):
            Path(f"/proc/{holder}/{name}").write_text(f"0 {base} {IDS}\n")
        for kind, path in (("user", user_ns), ("net", net_ns)):
            path.touch(mode=0o600)
            linux.mount(f"/proc/{holder}/ns/{kind}", path, "none", linux.MS_BIND)


def run_container(runtime: str, hide: Path | None, number: int, folder: Path) -> int:
    """Starts the container of a slot, its first process holding the listening control socket; returns that one's pid.

    `hide` is a mount that the runtime must not see (`Cgroups.v2_to_hide`).

    Raises:
        Temporary: `park_failed`, with the runtime's own words.
    """
    control = folder / "control"
    control.unlink(missing_ok=True)
    listener = _listen(control)
    errors = folder / "runtime.log"
    command = [
        *_runtime(runtime, folder), "run", "--detach",
        "--preserve-fds", "1", "--pid-file", str(folder / "pid"), "--bundle", str(folder / "bundle"), f"fw{number}",
    ]  # fmt: skip
    if hide is not None:
        script = 'umount "$0" && exec "$@"'
        command = ["unshare", "--mount", "--propagation", "private", "sh", "-c", script, str(hide), *command]
    try:
        log = os.open(errors, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        actions = [
            (os.POSIX_SPAWN_OPEN, 0, "/dev/null", os.O_RDONLY, 0),
            (os.POSIX_SPAWN_DUP2, log, 1),
            (os.POSIX_SPAWN_DUP2, log, 2),
            (os.POSIX_SPAWN_DUP2, listener.fileno(), 3),
        ]
        try:
            child = os.posix_spawnp(command[0], command, {"PATH": os.defpath}, file_actions=actions)
        finally:
            os.close(log)
        _, status = os.waitpid(child, 0)
    finally:
        listener.close()
    if status:
        detail = errors.read_text(errors="replace").strip()[-400:]
        raise Temporary(f"slot {number}: {runtime} failed: {detail}", code="park_failed", delay_s=1)
    return int((folder / "pid").read_text())


def _runtime(runtime: str, folder: Path) -> list[str]:
    """The runtime with the options it takes before its command; groups are made by path, without systemd's help."""
    groups = ["--cgroup-manager", "cgroupfs"] if Path(runtime).name == "crun" else []
    return [runtime, "--root", str(folder / "runtime"), *groups]


def delete_container(runtime: str, number: int, folder: Path) -> None:
    """Removes what the runtime knows of slot `number`, its processes too; fine when there is nothing."""
    if not (folder / "runtime").exists():
        return
    subprocess.run(
        [*_runtime(runtime, folder), "delete", "--force", f"fw{number}"], capture_output=True, check=False, timeout=30,
        env={"PATH": os.defpath},
    )  # fmt: skip


def _listen(path: Path) -> socket.socket:
    """A listening socket at `path`; by way of the folder's descriptor, since a socket's path holds 107 bytes only."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        with linux.opened(path.parent, os.O_RDONLY | os.O_DIRECTORY) as folder:
            listener.bind(f"/proc/self/fd/{folder}/{path.name}")
        listener.listen(64)
    except BaseException:
        listener.close()
        raise
    return listener
