"""The Linux calls that Python's `os` does not have, each as thin as it can be.

Decides nothing. Every function raises OSError with the call's errno; flags carry the kernel's names.
Numbers are those of the unified table (x86_64 and arm64 agree on all of them).
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import struct
import subprocess
import threading
from collections.abc import Callable, Iterator
from fcntl import ioctl
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")

_libc = ctypes.CDLL(None, use_errno=True)
_syscall = _libc.syscall
_syscall.restype = ctypes.c_long

_SYS_OPEN_TREE, _SYS_MOVE_MOUNT, _SYS_OPENAT2, _SYS_MOUNT_SETATTR = 428, 429, 437, 442

AT_FDCWD, AT_EMPTY_PATH, AT_RECURSIVE = -100, 0x1000, 0x8000
OPEN_TREE_CLONE, OPEN_TREE_CLOEXEC = 1, os.O_CLOEXEC
MOVE_MOUNT_F_EMPTY_PATH, MOVE_MOUNT_T_EMPTY_PATH = 0x04, 0x40
MOUNT_ATTR_RDONLY, MOUNT_ATTR_NOSUID, MOUNT_ATTR_NODEV, MOUNT_ATTR_NOEXEC = 0x1, 0x2, 0x4, 0x8
MOUNT_ATTR_IDMAP = 0x00100000
MS_NOSUID, MS_NODEV, MS_NOATIME, MS_BIND, MS_REC = 0x2, 0x4, 0x400, 0x1000, 0x4000
MS_PRIVATE, MS_SLAVE = 0x40000, 0x80000
MNT_DETACH = 2
CLONE_FS, CLONE_NEWNS, CLONE_NEWNET, CLONE_NEWUSER = 0x200, 0x20000, 0x40000000, 0x10000000
RESOLVE_NO_XDEV, RESOLVE_NO_MAGICLINKS, RESOLVE_NO_SYMLINKS, RESOLVE_BENEATH, RESOLVE_IN_ROOT = 1, 2, 4, 8, 16


def _check(result: int, what: str) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")
    return result


def openat2(dirfd: int, path: str | bytes, flags: int, mode: int = 0, resolve: int = 0) -> int:
    """openat2(2): a descriptor for `path` below `dirfd`, resolved under the rules in `resolve`."""
    how = struct.pack("=QQQ", flags | os.O_CLOEXEC, mode, resolve)
    raw = os.fsencode(path)
    return _check(_syscall(_SYS_OPENAT2, dirfd, raw, how, len(how)), f"openat2 {os.fsdecode(raw)}")


def open_tree(path: str | Path, flags: int = OPEN_TREE_CLONE) -> int:
    """open_tree(2): a detached copy of the mount at `path`, as a descriptor."""
    raw = os.fsencode(path)
    return _check(_syscall(_SYS_OPEN_TREE, AT_FDCWD, raw, flags | OPEN_TREE_CLOEXEC), f"open_tree {path}")


def mount_setattr(fd: int, attributes: int, userns: int = 0, *, recursive: bool = False) -> None:
    """mount_setattr(2) on a detached mount; with MOUNT_ATTR_IDMAP, `userns` is a user namespace's descriptor."""
    attr = struct.pack("=QQQQ", attributes, 0, 0, userns)
    flags = AT_EMPTY_PATH | (AT_RECURSIVE if recursive else 0)
    _check(_syscall(_SYS_MOUNT_SETATTR, fd, b"", flags, attr, len(attr)), "mount_setattr")


def move_mount(fd: int, target: str | Path | int) -> None:
    """move_mount(2): puts a detached mount at `target`, a path or descriptor, in the calling thread's namespace."""
    if isinstance(target, int):
        at, raw, flags = target, b"", MOVE_MOUNT_F_EMPTY_PATH | MOVE_MOUNT_T_EMPTY_PATH
    else:
        at, raw, flags = AT_FDCWD, os.fsencode(target), MOVE_MOUNT_F_EMPTY_PATH
    _check(_syscall(_SYS_MOVE_MOUNT, fd, b"", at, raw, flags), f"move_mount {target}")


def mount(source: str | Path, target: str | Path, kind: str, flags: int = 0, data: str = "") -> None:
    result = _libc.mount(
        os.fsencode(source), os.fsencode(target), kind.encode(), ctypes.c_ulong(flags), data.encode() or None
    )
    _check(result, f"mount {kind} {source} at {target}")


def umount(target: str | Path, flags: int = 0) -> None:
    _check(_libc.umount2(os.fsencode(target), flags), f"umount {target}")


def keep_only_here() -> None:
    """pivot_root(2): makes the mount at the current folder the root of this thread's mount namespace, which is to be
    its own and private, and lets go of every other mount in it."""
    _check(_libc.pivot_root(b".", b"."), "pivot_root")
    umount(".", MNT_DETACH)  # the former root, which is now on top of the new one


def sync_file_system(path: str | Path) -> None:
    """syncfs(2): everything written to the file system at `path` is on disk afterwards."""
    with opened(path) as fd:
        _check(_libc.syncfs(fd), f"syncfs {path}")


def setns(fd: int, kind: int) -> None:
    _check(_libc.setns(fd, kind), "setns")


def unshare(flags: int) -> None:
    _check(_libc.unshare(flags), "unshare")


def in_namespaces(work: Callable[[], T], *, mount_ns: int | None = None, net_ns: int | None = None) -> T:
    """Runs `work` in a throwaway thread that has entered the given namespaces (descriptors); blocks until it is done.

    A thread that entered a mount namespace cannot be trusted with anything else, so none is ever reused.
    """
    outcome: list[T] = []
    failure: list[BaseException] = []

    def run() -> None:
        try:
            if net_ns is not None:
                setns(net_ns, CLONE_NEWNET)
            if mount_ns is not None:
                unshare(CLONE_FS)
                setns(mount_ns, CLONE_NEWNS)
            outcome.append(work())
        except BaseException as error:  # noqa: BLE001 - carried to the caller's thread and raised there
            failure.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join()
    if failure:
        raise failure[0]
    return outcome[0]


@contextlib.contextmanager
def opened(path: str | Path, flags: int = os.O_RDONLY) -> Iterator[int]:
    fd = os.open(path, flags | os.O_CLOEXEC)
    try:
        yield fd
    finally:
        os.close(fd)


def is_mount(path: Path) -> bool:
    """Whether something is mounted at `path`: by mount id, since a bind mount has the device of what it shows."""
    try:
        return _mount_id(path) != _mount_id(path.parent)
    except FileNotFoundError:
        return False


def _mount_id(path: Path) -> str:
    with opened(path, os.O_PATH) as fd:
        lines = Path(f"/proc/thread-self/fdinfo/{fd}").read_text().splitlines()
    return next(line for line in lines if line.startswith("mnt_id:"))


@contextlib.contextmanager
def held_namespaces(*options: str) -> Iterator[int]:
    """A process that holds new namespaces, made by unshare(1) with `options`; yields its pid, ends it afterwards.

    Python cannot make a user namespace itself, since that takes a process of one thread.
    """
    holder = subprocess.Popen(
        ["unshare", *options, "cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env={"PATH": os.defpath}
    )
    assert holder.stdin is not None
    assert holder.stdout is not None
    try:
        # cat echoes only once unshare has done its work.
        os.write(holder.stdin.fileno(), b"x")
        if os.read(holder.stdout.fileno(), 1) != b"x":
            raise OSError(f"unshare {' '.join(options)} failed")
        yield holder.pid
    finally:
        holder.stdin.close()
        holder.stdout.close()
        holder.wait()


def start_time(pid: int, proc: Path = Path("/proc")) -> int | None:
    """When process `pid` began, in clock ticks since boot: tells a process from a later one of the same pid."""
    try:
        stat = (proc / str(pid) / "stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    fields = stat[stat.rindex(")") + 2 :].split()
    return None if fields[0] in {"Z", "X"} else int(fields[19])


_LOOP_CTL_GET_FREE, _LOOP_CONFIGURE, _LOOP_CLR_FD, _LOOP_SET_CAPACITY = 0x4C82, 0x4C0A, 0x4C01, 0x4C07
_LO_FLAGS_AUTOCLEAR, _LO_FLAGS_DIRECT_IO = 4, 16
_EBUSY, _EINVAL = 16, 22


@contextlib.contextmanager
def loop_device(backing: Path, *, direct_io: bool = True) -> Iterator[str]:
    """A loop device over `backing`; yields its path. Whatever is mounted from it keeps it beyond the context.

    It frees itself when its last user is gone. Direct IO keeps a limit on the disk below in force and saves a second
    copy in the page cache; a file system that cannot do direct IO gets buffered IO instead.
    """
    with opened(backing, os.O_RDWR) as file:
        loop = -1
        for _ in range(64):
            with opened("/dev/loop-control", os.O_RDWR) as control:
                device = f"/dev/loop{ioctl(control, _LOOP_CTL_GET_FREE)}"
            loop = os.open(device, os.O_RDWR | os.O_CLOEXEC)
            flags = _LO_FLAGS_AUTOCLEAR | (_LO_FLAGS_DIRECT_IO if direct_io else 0)
            try:
                ioctl(loop, _LOOP_CONFIGURE, _loop_config(file, flags, str(backing)))
                break
            except OSError as error:
                os.close(loop)
                loop = -1
                if error.errno == _EINVAL and direct_io:
                    direct_io = False
                elif error.errno != _EBUSY:  # busy: somebody else took the number in between
                    raise
        if loop < 0:
            raise OSError(_EBUSY, "no loop device could be had in 64 tries")
    try:
        yield device
    finally:
        os.close(loop)


def _loop_config(fd: int, flags: int, name: str) -> bytes:
    # struct loop_config: fd, block_size, struct loop_info64 (232 bytes), reserved[8]
    info = struct.pack("=QQQQQIIII64s64s32sQQ", 0, 0, 0, 0, 0, 0, 0, 0, flags, os.fsencode(name)[-63:], b"", b"", 0, 0)
    return struct.pack("=II", fd, 0) + info + bytes(64)


def set_loop_capacity(device: str) -> None:
    """Makes the loop device as large as its file has become."""
    with opened(device, os.O_RDWR) as loop:
        ioctl(loop, _LOOP_SET_CAPACITY)


def loop_backing(device: str, sys: Path = Path("/sys")) -> str | None:
    """The file behind a loop device, None where it is free."""
    try:
        return (sys / "block" / Path(device).name / "loop/backing_file").read_text().rstrip("\n")
    except FileNotFoundError:
        return None
    except OSError as error:
        if error.errno != errno.ENODEV:  # it is being freed at this moment
            raise
        return None
