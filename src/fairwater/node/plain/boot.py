"""Which boot of the machine this is: what was there before another one is gone."""

from __future__ import annotations

from pathlib import Path


def boot_id(proc: Path = Path("/proc")) -> str:
    """The id that the kernel draws at each boot."""
    return (proc / "sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
