"""What the machine has: cores, memory, disks, routes. Read below a root folder, like every fact."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

from fairwater.domain.units import GIB, KIB, format_bytes
from fairwater.ports.agent import Fact


def read(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return None


def route(root: Path) -> Fact:
    rows = [line.split() for line in (read(root / "proc/net/route") or "").splitlines()[1:]]
    device = next((row[0] for row in rows if len(row) > 7 and row[1] == row[7] == "00000000"), None)
    if device is None:
        cost = "workspaces reach nothing outside of this machine"
        return Fact("network", "degraded", "no default route", cost, "connect the machine to a network")
    mtu = read(root / f"sys/class/net/{device}/mtu")
    return Fact("network", "ok", f"default route by {device}, MTU {mtu or 'unknown'}")


def ipv6(root: Path) -> Fact:
    rows = [line.split() for line in (read(root / "proc/net/ipv6_route") or "").splitlines()]
    if any(row[0] == "0" * 32 and row[1] == "00" and row[-1] != "lo" for row in rows if len(row) >= 10):
        return Fact("IPv6", "ok", "default route")
    cost = "workspaces reach IPv4 addresses only"
    return Fact("IPv6", "degraded", "no default route", cost, "fine where nothing needs IPv6")


def machine(root: Path) -> Fact:
    cores = len(re.findall(r"^processor\s*:", read(root / "proc/cpuinfo") or "", re.MULTILINE))
    memory = re.search(r"^MemTotal:\s*(\d+) kB", read(root / "proc/meminfo") or "", re.MULTILINE)
    if not cores or not memory:
        return Fact("machine", "missing", "unknown", "density cannot be planned", "mount /proc")
    size = int(memory[1]) * KIB
    value = f"{cores} cores, {format_bytes(size)} of memory"
    if size < 2 * GIB:
        return Fact("machine", "degraded", value, "hardly room for one workspace", "use a machine with 4 GiB or more")
    return Fact("machine", "ok", value)


def disk_space(root: Path) -> Fact:
    place = next(path for path in (root / "var/lib/fairwater", root / "var/lib", root) if path.exists())
    found = os.statvfs(place)
    free = found.f_bavail * found.f_frsize
    value = f"{format_bytes(free)} free at {place}"
    if free < 10 * GIB:
        return Fact("disk space", "degraded", value, "few workspaces fit", "free some, or give another --data-dir")
    return Fact("disk space", "ok", value)


def devices(root: Path) -> Iterator[Fact]:
    """The disks; no disk found is an answer of its own."""
    found = 0
    blocks = root / "sys/block"
    for path in sorted(blocks.iterdir()) if blocks.is_dir() else ():
        sectors = read(path / "size")
        if path.name.startswith(("loop", "ram", "zram", "sr", "fd")) or not sectors or int(sectors) == 0:
            continue
        found += 1
        scheduler = re.search(r"\[([^\]]+)\]", read(path / "queue/scheduler") or "")
        kind = {"0": "solid state", "1": "rotating"}.get(read(path / "queue/rotational") or "", "unknown kind")
        name = scheduler[1] if scheduler else "unknown"
        yield Fact(f"disk {path.name}", "ok", f"{format_bytes(int(sectors) * 512)}, {kind}, scheduler {name}")
    if not found:
        yield Fact("disks", "degraded", "none found", "disk IO cannot be limited on the disk itself", "mount /sys")
