"""What this machine offers to workspaces, and what each gap costs.

Decides the level of each fact: `ok`, `degraded` (workspaces run isolated, with something less), `missing`. A fact that
cannot be read is missing, never fine. Everything is read below a root folder, so that a made-up tree can be judged;
what can only be tried (idmapped mounts, lowering a score) is tried on the real root alone.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from fairwater.node import fact_resources as resources
from fairwater.node import fact_trials as trials
from fairwater.node.fact_resources import read
from fairwater.ports.agent import Fact

OK, DEGRADED, MISSING = "ok", "degraded", "missing"
NEEDED_FOR_ISOLATION = (
    "privilege", "kernel", "cgroup controllers", "user namespaces", "idmapped mounts", "overlay", "volumes", "runtime",
    "seccomp", "firewall",
)  # fmt: skip
_OLDEST = (5, 19)
"""Overlay file systems take idmapped layers since Linux 5.19."""


def node_facts(root: Path = Path("/"), runtime: str = "crun") -> tuple[Fact, ...]:
    """Every fact of the machine whose file system begins at `root`. Takes some ten milliseconds."""
    return (
        _privilege(root),
        _kernel(root),
        *_cgroups(root),
        _user_namespaces(root),
        _idmapped_mounts(root),
        _file_system(root),
        _volumes(root),
        _runtime(root, runtime),
        _seccomp(root),
        _firewall(root),
        _program(root, "git", "git", "repositories cannot be cloned", "apt-get install git"),
        _optional(root, "large files", "git-lfs", "files kept by Git LFS stay pointers"),
        _optional(root, "images", "skopeo", "workspaces have this machine's programs only: no OCI images"),
        _pressure(root),
        resources.route(root),
        resources.ipv6(root),
        resources.machine(root),
        resources.disk_space(root),
        _oom_score(root),
        *resources.devices(root),
    )


def why_not_isolated(facts: tuple[Fact, ...]) -> tuple[str, ...]:
    """The names of what is missing for isolated workspaces; none means that they can run."""
    levels = {fact.name: fact.level for fact in facts}
    return tuple(name for name in NEEDED_FOR_ISOLATION if levels.get(name, MISSING) == MISSING)


def _privilege(root: Path) -> Fact:
    if trials.is_real(root) and os.geteuid() != 0:
        cost = "workspaces are plain processes of this user: nothing is isolated, nothing is limited"
        return Fact("privilege", MISSING, f"user {os.geteuid()}", cost, "run fairwater up as root")
    return Fact("privilege", OK, "root")


def _kernel(root: Path) -> Fact:
    release = read(root / "proc/sys/kernel/osrelease")
    found = re.match(r"(\d+)\.(\d+)", release or "")
    if release is None or not found:
        return Fact("kernel", MISSING, "unknown", "nothing can be said of this machine", "mount /proc")
    if (int(found[1]), int(found[2])) < _OLDEST:
        wanted = ".".join(map(str, _OLDEST))
        cost = "no idmapped mounts below overlay file systems"
        return Fact("kernel", MISSING, f"Linux {release}", cost, f"use Linux {wanted} or newer")
    return Fact("kernel", OK, f"Linux {release}")


def _cgroups(root: Path) -> Iterator[Fact]:
    """The layout of the control groups, and which of the controllers a workspace's limits need are there."""
    unified = read(root / "sys/fs/cgroup/cgroup.controllers")
    mounts = [line.split(" - ", 1) for line in (read(root / "proc/self/mountinfo") or "").splitlines()]
    kinds = [rest[1].split() for rest in mounts if len(rest) == 2]
    v1 = {option for kind in kinds if kind[:1] == ["cgroup"] for option in kind[-1].split(",")}
    if unified is not None:
        controllers = set(unified.split())
        yield Fact("cgroups", OK, "v2")
    elif v1:
        controllers = {"io" if name == "blkio" else name for name in v1}
        name = "hybrid (limits on v1)" if any(kind[:1] == ["cgroup2"] for kind in kinds) else "v1"
        cost = "limits on disk IO do not bind below a group, nor buffered writes"
        yield Fact("cgroups", DEGRADED, name, cost, "boot with systemd.unified_cgroup_hierarchy=1")
    else:
        controllers = set()
        yield Fact("cgroups", MISSING, "none", "workspaces cannot be limited or ended as a whole", "mount cgroup2")
    known = [name for name in ("cpu", "memory", "pids", "io", "cpuset") if name in controllers]
    needed = [name for name in ("cpu", "memory", "pids") if name not in known]
    value = ", ".join(known) or "none"
    if needed:
        remedy = f"enable {', '.join(needed)} in the kernel (on some machines: cgroup_enable=memory)"
        yield Fact("cgroup controllers", MISSING, value, f"no limit on {', '.join(needed)}", remedy)
    elif "io" not in known:
        yield Fact("cgroup controllers", DEGRADED, value, "no limit on disk IO", "use a kernel with BLK_CGROUP")
    else:
        yield Fact("cgroup controllers", OK, value)


def _user_namespaces(root: Path) -> Fact:
    most = read(root / "proc/sys/user/max_user_namespaces")
    if most is None or not (root / "proc/self/ns/user").exists():
        cost = "root in a workspace would be root on the machine"
        return Fact("user namespaces", MISSING, "none", cost, "use a kernel with USER_NS")
    if not most.isdigit() or int(most) == 0:
        cost = "root in a workspace would be root on the machine"
        return Fact("user namespaces", MISSING, "switched off", cost, "sysctl user.max_user_namespaces=10000")
    return Fact("user namespaces", OK, f"at most {most}")


def _idmapped_mounts(root: Path) -> Fact:
    if not trials.is_real(root):
        old = _kernel(root).level != OK
        return Fact("idmapped mounts", MISSING if old else OK, "not tried, by the kernel's version")
    error = trials.idmapped_mount()
    if error is not None:
        cost = "images and volumes cannot be shown under a workspace's own ids"
        return Fact(
            "idmapped mounts", MISSING, error, cost, "run as root, on Linux 5.19 or newer, on ext4, xfs or btrfs"
        )
    return Fact("idmapped mounts", OK, "tried")


def _file_systems(root: Path) -> set[str]:
    known = {line.split()[-1] for line in (read(root / "proc/filesystems") or "").splitlines() if line.split()}
    release = read(root / "proc/sys/kernel/osrelease") or "none"
    for name in ("overlay", "btrfs"):
        folder = "overlayfs" if name == "overlay" else name
        if any((root / f"lib/modules/{release}/kernel/fs/{folder}").glob(f"{name}.ko*")):
            known.add(name)
    return known


def _file_system(root: Path) -> Fact:
    if "overlay" in _file_systems(root):
        return Fact("overlay", OK, "overlayfs")
    return Fact("overlay", MISSING, "none", "images cannot be shared between workspaces", "modprobe overlay")


def _volumes(root: Path) -> Fact:
    loop = (root / "dev/loop-control").exists()
    btrfs = "btrfs" in _file_systems(root) and trials.find_program(root, "mkfs.btrfs") is not None
    if not loop:
        cost = "no hard quota and no IO figures for a workspace's content"
        return Fact("volumes", MISSING, "no loop devices", cost, "modprobe loop")
    if not btrfs:
        cost = "no snapshots of a workspace's content that cost only what changed"
        return Fact("volumes", DEGRADED, "loop devices, no btrfs", cost, "apt-get install btrfs-progs; modprobe btrfs")
    return Fact("volumes", OK, "btrfs on loop devices")


def _runtime(root: Path, runtime: str) -> Fact:
    fact = _program(root, "runtime", runtime, "workspaces cannot be isolated", f"apt-get install {runtime}")
    return Fact(fact.name, fact.level, f"{runtime}: {fact.value}", fact.cost, fact.remedy)


def _program(root: Path, name: str, program: str, cost: str, remedy: str) -> Fact:
    path = trials.find_program(root, program)
    if path is None:
        return Fact(name, MISSING, "not installed", cost, remedy)
    version = trials.version(path) if trials.is_real(root) else None
    return Fact(name, OK, version or str(path))


def _optional(root: Path, name: str, program: str, cost: str) -> Fact:
    fact = _program(root, name, program, cost, f"apt-get install {program}")
    return replace(fact, level=DEGRADED) if fact.level == MISSING else fact


def _seccomp(root: Path) -> Fact:
    actions = read(root / "proc/sys/kernel/seccomp/actions_avail")
    if actions is None or "errno" not in actions.split():
        cost = "system calls of workspaces cannot be filtered"
        return Fact("seccomp", MISSING, "none", cost, "use a kernel with SECCOMP_FILTER")
    return Fact("seccomp", OK, "filters")


def _firewall(root: Path) -> Fact:
    folders = ("usr/lib", "usr/lib64", "usr/local/lib", "lib")
    found = [path for folder in folders for path in [*(root / folder).glob("libnftables.so.1*"),
                                                     *(root / folder).glob("*/libnftables.so.1*")]]  # fmt: skip
    if not found:
        cost = "workspaces could reach one another, this machine's services and the cloud's metadata"
        return Fact("firewall", MISSING, "no libnftables", cost, "apt-get install libnftables1")
    return Fact("firewall", OK, "nftables")


def _pressure(root: Path) -> Fact:
    if read(root / "proc/pressure/cpu") is None:
        cost = "pressure, and so who starves whom, cannot be seen"
        return Fact("pressure", DEGRADED, "no PSI", cost, "boot with psi=1")
    return Fact("pressure", OK, "PSI")


def _oom_score(root: Path) -> Fact:
    if trials.is_real(root) and not trials.lower_oom_score():
        cost = "when memory runs out, the kernel may end the agent before a workspace"
        return Fact("OOM score", DEGRADED, "cannot be lowered", cost, "grant CAP_SYS_RESOURCE")
    return Fact("OOM score", OK, "can be lowered" if trials.is_real(root) else "not tried")
