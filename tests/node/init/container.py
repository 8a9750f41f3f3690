"""Starts fairwater-init as PID 1 of new namespaces, the way an OCI runtime would: a script for `conftest.py`.

Its own user namespace with ids from `base`, a tight set of capabilities, no new privileges, descriptor 3 the listener.
Says `ready` and waits for a line while its parent writes the id maps; then says the pid of the new PID 1.
"""

import ctypes
import os
import sys

NEWNS, NEWUTS, NEWIPC, NEWUSER, NEWPID = 0x20000, 0x4000000, 0x8000000, 0x10000000, 0x20000000
REC, PRIVATE, NOSUID, NODEV, NOEXEC = 0x4000, 0x40000, 2, 4, 8
KEPT = {0, 1, 3, 4, 5, 6, 7, 8, 10, 13, 18}
"""CHOWN DAC_OVERRIDE FOWNER FSETID KILL SETGID SETUID SETPCAP NET_BIND_SERVICE NET_RAW SYS_CHROOT"""
CAPBSET_DROP, SET_NO_NEW_PRIVS, SET_PDEATHSIG = 24, 38, 1

libc = ctypes.CDLL(None, use_errno=True)


def check(result: int) -> None:
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def main() -> None:
    program, listener = int(sys.argv[1]), int(sys.argv[2])
    check(libc.unshare(NEWUSER))
    print("ready", flush=True)
    sys.stdin.readline()
    os.setresgid(0, 0, 0)
    os.setgroups([])
    os.setresuid(0, 0, 0)
    check(libc.unshare(NEWNS | NEWUTS | NEWIPC | NEWPID))
    pid = os.fork()
    if pid:
        print(pid, flush=True)
        os.waitpid(pid, 0)
        return
    check(libc.prctl(SET_PDEATHSIG, 9, 0, 0, 0))
    check(libc.mount(b"none", b"/", None, REC | PRIVATE, None))
    check(libc.mount(b"proc", b"/proc", b"proc", NOSUID | NODEV | NOEXEC, None))
    check(libc.mount(b"devpts", b"/dev/pts", b"devpts", NOSUID | NOEXEC, b"newinstance,ptmxmode=0666,mode=0620"))
    os.dup2(listener, 3)
    for capability in range(41):
        if capability not in KEPT:
            check(libc.prctl(CAPBSET_DROP, capability, 0, 0, 0))
    check(libc.prctl(SET_NO_NEW_PRIVS, 1, 0, 0, 0))
    os.execve(program, ["fairwater-init"], {})


main()
