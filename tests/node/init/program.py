"""The static program that is PID 1 of a workspace, and git's credential helper there: built as it is installed."""

from __future__ import annotations

import subprocess
from pathlib import Path

_SOURCE = Path(__file__).parents[3] / "src/fairwater/node/init/init.c"


def build_init(folder: Path) -> Path:
    program = folder / "fairwater-init"
    flags = ["-O2", "-static", "-std=c11", "-Wall", "-Wextra", "-Werror"]
    built = subprocess.run(["cc", *flags, "-o", program, _SOURCE], capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr
    program.chmod(0o711)  # not to be read in the container
    return program
