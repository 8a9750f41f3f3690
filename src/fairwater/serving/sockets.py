"""Listening sockets: a unix socket in place of a stale one, and TCP.

Decides when a socket file may be replaced: only if nobody answers on it. Refuses to know what is served on them.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import stat
from pathlib import Path

from fairwater.domain.failure import Permanent

BACKLOG = 512
_PATH_BYTES_MAX = 107
"""sockaddr_un.sun_path holds 108 bytes with its final zero (unix(7))."""
_PROBE_S = 1.0


def bind_unix(path: Path, *, mode: int = 0o600, owner: tuple[int, int] | None = None) -> socket.socket:
    """A listening unix socket at `path` with permission bits `mode`, owned by `owner` (uid, gid) where given.

    A socket file left behind by a dead process is replaced. The bits are in force before the file can be connected
    to at its final name.

    Raises:
        Permanent: `socket_path` (too long, or another kind of file is there), `already_running` (somebody listens).
    """
    if len(os.fsencode(path)) + len(".new") > _PATH_BYTES_MAX:
        raise Permanent(f"{path}: a unix socket's path has at most 103 bytes; use a shorter folder", code="socket_path")
    _refuse_if_taken(path)
    fresh = path.with_name(path.name + ".new")
    with contextlib.suppress(FileNotFoundError):
        fresh.unlink()
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        listener.bind(os.fspath(fresh))
        if owner is not None:
            os.chown(fresh, *owner)
        fresh.chmod(mode)
        listener.listen(BACKLOG)
        fresh.replace(path)
    except OSError as error:
        listener.close()
        raise Permanent(f"cannot listen on {path}: {error.strerror or error}", code="socket_path") from error
    listener.setblocking(False)
    return listener


def _refuse_if_taken(path: Path) -> None:
    try:
        kind = path.lstat().st_mode
    except FileNotFoundError:
        return
    except OSError as error:
        raise Permanent(f"cannot listen on {path}: {error.strerror or error}", code="socket_path") from error
    if not stat.S_ISSOCK(kind):
        raise Permanent(f"{path} is there and is no socket; move it away", code="socket_path")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(_PROBE_S)
        try:
            probe.connect(os.fspath(path))
        except (ConnectionRefusedError, FileNotFoundError):
            return
        except OSError:
            pass  # full backlog, no permission: somebody is there
    raise Permanent(f"another process listens on {path}; stop it first, or use another folder", code="already_running")


def remove_unix(listener: socket.socket, path: Path, identity: tuple[int, int]) -> None:
    """Removes the file at `path` if it still has `identity` (device, inode) and is not a successor's; closes."""
    with contextlib.suppress(FileNotFoundError):
        found = path.lstat()
        if (found.st_dev, found.st_ino) == identity:
            path.unlink()
    listener.close()


def bind_tcp(host: str, port: int) -> socket.socket:
    """A listening TCP socket; port 0 takes a free one.

    Raises:
        Permanent: `port_in_use`, `bad_listen_address`.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except (OSError, UnicodeError) as error:
        raise Permanent(f"cannot listen on {host}:{port}: {error}", code="bad_listen_address") from error
    listener = socket.socket(family, kind, protocol)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        if error.errno == errno.EADDRINUSE:
            raise Permanent(
                f"port {port} of {host} is in use by another program; stop it, or listen elsewhere",
                code="port_in_use",
            ) from error
        raise Permanent(
            f"cannot listen on {host}:{port}: {error.strerror or error}", code="bad_listen_address"
        ) from error
    listener.setblocking(False)
    return listener
