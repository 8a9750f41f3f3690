"""A machine with pure cgroup v2 under QEMU, without KVM: boots in seconds, runs commands, and is gone afterwards.

It sees this machine's files, read-only, and writes to memory and to a disk that is thrown away. It has no network but
its own. Whatever happens to the process that booted it, no part of it goes on.
"""

from __future__ import annotations

import base64
import contextlib
import secrets
import shlex
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tools.v2.parts import SCRATCH_DISK_BYTES, Parts, make_disk, prepare_parts

MEMORY = "3G"
CONSOLE_SHOWN_CHARACTERS = 6000


class MachineFailed(Exception):
    """It did not boot, did not answer in time or ended; the text holds the end of its console."""


@dataclass(frozen=True, slots=True)
class Completed:
    """What came of a command; `output` is both streams together."""

    status: int
    output: str


class Machine:
    """A machine that has booted. See `booted`."""

    def __init__(self, channel: socket.socket, mark: str, console: Path, until: float) -> None:
        self._channel = channel
        self._mark = mark.encode()
        self._console = console
        self._until = until
        self._rest = b""

    def run(
        self, command: Sequence[str | Path], *, cwd: Path = Path("/"), environment: Mapping[str, str] | None = None,
        within_s: float = 60,
    ) -> Completed:  # fmt: skip
        """Runs `command` as root, without input. Python takes about ten times as long as on the host.

        Raises:
            MachineFailed: it did not end within `within_s`, or not before the machine's own time was over.
        """
        variables = " ".join(f"{name}={shlex.quote(value)}" for name, value in (environment or {}).items())
        script = f"cd {shlex.quote(str(cwd))} && {variables} exec {shlex.join(map(str, command))}"
        self._channel.settimeout(10)
        self._channel.sendall(base64.b64encode(script.encode()) + b"\n")
        output, status = self._told(time.monotonic() + within_s, shlex.join(map(str, command)))
        return Completed(int(status), output.decode(errors="replace").removesuffix("\n"))

    def console(self) -> str:
        """The end of what the kernel and the first process said."""
        return self._console.read_text(errors="replace")[-CONSOLE_SHOWN_CHARACTERS:]

    def await_boot(self) -> None:
        self._told(self._until, "booting")

    def _told(self, until: float, what: str) -> tuple[bytes, str]:
        """What comes before the next mark, and the word after the mark."""
        until = min(until, self._until)
        while True:
            before, mark, after = self._rest.partition(self._mark + b" ")
            word, newline, rest = after.partition(b"\n")
            if mark and newline:
                self._rest = rest
                return before, word.decode().strip()
            left = until - time.monotonic()
            try:
                if left <= 0:
                    raise TimeoutError
                self._channel.settimeout(left)
                data = self._channel.recv(65536)
            except TimeoutError:
                raise self._failed(f"{what}: did not end in time") from None
            if not data:
                raise self._failed(f"{what}: the machine ended")
            self._rest += data

    def _failed(self, what: str) -> MachineFailed:
        said = self._rest.decode(errors="replace")[-CONSOLE_SHOWN_CHARACTERS:]
        return MachineFailed(f"{what}\n--- output so far\n{said}\n--- console\n{self.console()}")


@contextlib.contextmanager
def booted(shown: Sequence[Path] = (), within_s: float = 240) -> Iterator[Machine]:
    """Boots a machine (about 10 s), and ends it and all that belongs to it afterwards, at the latest after `within_s`.

    It sees the file system at `/`; `shown` are further folders to be seen, where they may lie on other file systems.

    Raises:
        Unavailable: there is nothing to boot from; MachineFailed: it did not boot.
    """
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="fw-v2-", dir="/var/tmp")))
        parts = prepare_parts(folder)
        scratch = folder / "scratch.img"
        make_disk(scratch, SCRATCH_DISK_BYTES)
        files, channel, console, log = (folder / name for name in ("files", "channel", "console", "log"))
        mark, until = secrets.token_hex(16), time.monotonic() + within_s
        output = stack.enter_context(open(log, "wb"))
        for path, command in (
            (files, _file_server(parts, folder, files, shown)),
            (channel, _emulator(parts, scratch, files, channel, console, mark, within_s, shown)),
        ):
            # The kernel ends them with this process, should it be killed.
            bound = ["setpriv", "--pdeathsig", "KILL", *map(str, command)]
            process = subprocess.Popen(bound, stdin=subprocess.DEVNULL, stdout=output, stderr=output)
            stack.callback(_end, process)
            _await_socket(path, process, log)
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(str(channel))
            machine = Machine(connection, mark, console, until)
            machine.await_boot()
            scratch.unlink()  # what is written to it is given back when QEMU ends, however it ends
            yield machine


def _file_server(parts: Parts, folder: Path, listening: Path, shown: Sequence[Path]) -> list[str | Path]:
    """The program that shows this machine's files. In a mount namespace of its own they are read-only, and nothing
    mounted on top of them is among them: no cgroups, no /proc, no /dev."""
    root = folder / "root"
    root.mkdir()
    script = 'root=$1; shift; mount --bind / "$root"; mount -o remount,bind,ro "$root"\n'
    for path in {path.resolve() for path in shown}:
        quoted = shlex.quote(str(path))
        script += f'mount --bind {quoted} "$root"{quoted}; mount -o remount,bind,ro "$root"{quoted}\n'
    script += 'exec "$@"'
    options = f"source={root},sandbox=chroot,cache=always"
    return [
        "unshare", "--mount", "--propagation", "private", "sh", "-euc", script, "sh", root,
        parts.virtiofsd, f"--socket-path={listening}", "-o", options, "--rlimit-nofile=0",
    ]  # fmt: skip


def _emulator(
    parts: Parts,
    scratch: Path,
    files: Path,
    channel: Path,
    console: Path,
    mark: str,
    within_s: float,
    shown: Sequence[Path],
) -> list[str | Path]:
    kernel_line = (
        "console=ttyS0 loglevel=7 panic=-1 nokaslr mitigations=off psi=1 cgroup_no_v1=all "
        f"fairwater.mark={mark} fairwater.seconds={within_s:.0f} "
        f"fairwater.shown={':'.join(str(path.resolve()) for path in shown)}"
    )
    return [
        parts.qemu, "-nodefaults", "-no-user-config", "-no-reboot", "-display", "none", "-nic", "none",
        "-machine", "q35,memory-backend=memory", "-accel", "tcg,thread=multi", "-cpu", "max,la57=off", "-smp", "2",
        "-m", MEMORY, "-object", f"memory-backend-memfd,id=memory,size={MEMORY},share=on",
        "-kernel", parts.kernel, "-initrd", parts.initramfs, "-append", kernel_line,
        "-chardev", f"file,id=console,path={console}", "-serial", "chardev:console",
        "-chardev", f"socket,id=files,path={files}", "-device", "vhost-user-fs-pci,chardev=files,tag=host",
        "-drive", f"file={parts.usr},format=raw,if=virtio,readonly=on",
        "-drive", f"file={scratch},format=raw,if=virtio,cache=unsafe",
        "-chardev", f"socket,id=channel,path={channel},server=on,wait=off",
        "-device", "virtio-serial-pci", "-device", "virtserialport,chardev=channel,name=fairwater",
    ]  # fmt: skip


def _await_socket(path: Path, process: subprocess.Popen[bytes], log: Path) -> None:
    until = time.monotonic() + 20
    while not path.exists():
        if process.poll() is not None or time.monotonic() > until:
            raise MachineFailed(f"no socket at {path}: {log.read_text(errors='replace')[-2000:]}")
        time.sleep(0.02)


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(5)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def main() -> int:
    """python -m tools.v2.machine COMMAND… : runs one command in a machine, prints its output, ends with its status."""
    with booted([Path.cwd(), Path(sys.prefix)]) as machine:
        done = machine.run(sys.argv[1:], cwd=Path.cwd(), within_s=200)
        print(done.output)
        if done.status:
            print(machine.console(), file=sys.stderr)
        return done.status


if __name__ == "__main__":
    sys.exit(main())
