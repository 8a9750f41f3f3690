"""What the machine with pure cgroup v2 is made of: a kernel, an initramfs, a disk with this machine's programs.

Decides what the guest gets of the host; refuses to know how it is run. The disk is kept, under a name that tells what
went in, below `HOME`; a second use costs nothing.
"""

from __future__ import annotations

import fcntl
import hashlib
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

HOME = Path("/opt/fairwater/v2")
HERE = Path(__file__).parent
VIRTIOFSD = (Path("/usr/libexec/virtiofsd"), Path("/usr/lib/qemu/virtiofsd"))
BOOT_MODULES = ("virtio_pci", "virtio_blk", "virtio_console", "virtiofs", "overlay")
"""What the initramfs needs; everything else is loaded as on any machine, when it is first used."""

USR = ("bin", "sbin", "lib64", "lib/x86_64-linux-gnu", "lib/python3", "lib/python3.*", "lib/git-core", "libexec",
       "local/bin", "share/git-core", "share/zoneinfo")  # fmt: skip
USR_FILE_MAX = "16M"
"""The programs that Fairwater and its tests use are all smaller; compilers' and browsers' parts are not."""
USR_WITHOUT = ("*.a", "*/x86_64-linux-gnu/dri/*", "*/libLLVM*")
USR_DISK_BYTES = 4 << 30
SCRATCH_DISK_BYTES = 8 << 30


class Unavailable(Exception):
    """The machine cannot be had here; the text says what is missing."""


@dataclass(frozen=True, slots=True)
class Parts:
    """Files to boot from. `usr` is a disk image that may only be read."""

    qemu: Path
    virtiofsd: Path
    kernel: Path
    initramfs: Path
    usr: Path


def missing_parts() -> str | None:
    """Why the machine cannot be had here; None where it can."""
    programs = ("qemu-system-x86_64", "busybox", "mkfs.ext4", "modprobe", "setpriv", "unshare", "tar")
    missing = [name for name in programs if not shutil.which(name)]
    missing += [] if any(path.exists() for path in VIRTIOFSD) else ["virtiofsd"]
    missing += [] if (HOME / "kernel/modules.ready").exists() else ["a kernel (tools/v2/kernel.sh fetches it)"]
    return f"needs {', '.join(missing)}: run make test as root, which sees to it" if missing else None


def prepare_parts(folder: Path) -> Parts:
    """Makes what is not there yet; the initramfs goes into `folder`. A first time takes about half a minute.

    Raises:
        Unavailable: with the reason.
    """
    reason = missing_parts()
    if reason:
        raise Unavailable(reason)
    root = (HOME / "kernel").resolve()
    kernel = next((root / "boot").glob("vmlinuz-*"))
    version = kernel.name.removeprefix("vmlinuz-")
    qemu = shutil.which("qemu-system-x86_64")
    assert qemu is not None
    return Parts(
        qemu=Path(qemu),
        virtiofsd=next(path for path in VIRTIOFSD if path.exists()),
        kernel=kernel,
        initramfs=_make_initramfs(folder, root, version),
        usr=_usr_disk(root),
    )


def _make_initramfs(folder: Path, root: Path, version: str) -> Path:
    with tempfile.TemporaryDirectory(dir=folder) as name:
        tree = Path(name)
        for part in ("bin", "dev", "proc", "sys", "modules"):
            (tree / part).mkdir()
        busybox = shutil.which("busybox")
        assert busybox is not None
        shutil.copy(busybox, tree / "bin/busybox")
        for script in ("init.sh", "commands.sh"):
            shutil.copy(HERE / script, tree / script)
        (tree / "init.sh").rename(tree / "init")
        (tree / "init").chmod(0o755)
        order = _modules_in_order(root, version)
        for module in order:
            shutil.copy(module, tree / "modules")
        (tree / "modules/order").write_text("".join(f"{module.name}\n" for module in order))
        target = folder / "initramfs"
        _run("sh", "-c", 'cd "$0" && find . | busybox cpio -o -H newc >"$1"', str(tree), str(target))
        return target


def _modules_in_order(root: Path, version: str) -> list[Path]:
    """The files of `BOOT_MODULES` and what they need, each after what it needs."""
    found: dict[Path, None] = {}
    for module in BOOT_MODULES:
        lines = _run("modprobe", "--dirname", str(root), "--set-version", version, "--show-depends", module)
        for line in lines.splitlines():
            if line.startswith("insmod "):
                found[Path(line.split()[1])] = None
    return list(found)


def _modules(root: Path) -> Path:
    """The folder of modules by version, wherever the package has it."""
    return next(path for path in (root / "lib/modules", root / "usr/lib/modules") if path.is_dir())


def _usr_disk(kernel: Path) -> Path:
    """An ext4 image with the programs of this machine's `/usr` and the modules of `kernel`."""
    installed = _run("dpkg-query", "--show", "--showformat", "${binary:Package} ${Version}\\n")
    inputs = (installed, kernel.name, repr((USR, USR_FILE_MAX, USR_WITHOUT, USR_DISK_BYTES)), _FILL)
    disk = HOME / f"usr-{hashlib.sha256(repr(inputs).encode()).hexdigest()[:16]}.img"
    with open(HOME / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # two runs of the tests may begin together
        if not disk.exists():
            for older in HOME.glob("usr-*"):
                older.unlink()
            aside = disk.with_suffix(".new")
            make_disk(aside, USR_DISK_BYTES)
            unwanted = " ".join(f"! -path '{pattern}'" for pattern in USR_WITHOUT)
            folders = " ".join(USR)
            script = _FILL.format(folders=folders, size=USR_FILE_MAX, unwanted=unwanted)
            _run("unshare", "--mount", "--propagation", "private", "sh", "-euc", script, aside, _modules(kernel))
            aside.rename(disk)
    return disk


# The mount is in a namespace that ends with the shell: nothing of it stays behind, however this ends.
_FILL = """
mount -t tmpfs tmpfs /mnt
mkdir /mnt/usr
mount -o loop "$0" /mnt/usr
cd /usr
find {folders} '(' -type d -o -type l -o -type f -size -{size} ')' {unwanted} -print0 2>/dev/null |
    tar --create --no-recursion --null --files-from - --file - | tar --extract --directory /mnt/usr --file -
cp -a "$1" /mnt/usr/lib/modules
umount /mnt/usr
"""


def make_disk(path: Path, size: int) -> None:
    """A sparse file with an empty ext4 file system."""
    with open(path, "wb") as file:
        file.truncate(size)
    _run("mkfs.ext4", "-q", "-F", "-O", "^has_journal", "-m", "0", str(path))


def _run(*command: str | Path) -> str:
    words: Sequence[str] = [str(word) for word in command]
    done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=120)
    if done.returncode:
        raise Unavailable(f"{words[0]} failed: {done.stderr.strip()[-600:]}")
    return done.stdout
