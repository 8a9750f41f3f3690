"""What can only be found out by trying it on the running machine; each trial leaves everything as it was."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
from pathlib import Path

from fairwater.node import linux

_FOLDERS = ("usr/local/sbin", "usr/local/bin", "usr/sbin", "usr/bin", "sbin", "bin")


def is_real(root: Path) -> bool:
    """Whether `root` is the running machine's own."""
    return root == Path("/")


def find_program(root: Path, name: str) -> Path | None:
    """The program `name` below `root`; on the real root by PATH too, or by its own path."""
    if is_real(root):
        found = shutil.which(name)
        if found:
            return Path(found)
    candidates = (root / folder / name for folder in _FOLDERS)
    return next((path for path in candidates if os.access(path, os.X_OK)), None)


def version(program: Path) -> str | None:
    """The first line of `--version`, as far as it says a version; None where the program does not say."""
    try:
        done = subprocess.run(
            [program, "--version"], capture_output=True, text=True, timeout=5, check=True, stdin=subprocess.DEVNULL
        )
    except (OSError, subprocess.SubprocessError):
        return None
    found = re.search(r"\d+\.\d+[\w.+-]*", done.stdout)
    return found[0] if found else None


def idmapped_mount() -> str | None:
    """None where a mount can be shown under other ids, else why not. The mount tried is attached nowhere."""
    try:
        with linux.held_namespaces("--user") as pid:
            for kind in ("uid_map", "gid_map"):
                Path(f"/proc/{pid}/{kind}").write_text("0 100000 65536\n", encoding="ascii")
            tree = linux.open_tree("/")
            try:
                with linux.opened(f"/proc/{pid}/ns/user") as userns:
                    linux.mount_setattr(tree, linux.MOUNT_ATTR_IDMAP, userns)
            finally:
                os.close(tree)
    except OSError as error:
        return error.strerror or str(error)
    return None


def lower_oom_score() -> bool:
    """Whether this process may lower its own score for the kernel's out-of-memory killer."""
    path = Path("/proc/self/oom_score_adj")
    try:
        before = int(path.read_text(encoding="ascii"))
        path.write_text(str(max(-1000, before - 1)), encoding="ascii")
        with contextlib.suppress(OSError):
            path.write_text(str(before), encoding="ascii")
    except (OSError, ValueError):
        return False
    return True
