"""The OCI runtime configuration of a sandbox.

Decides what a workspace is shut off from: namespaces of its own, few capabilities, a seccomp profile, no new
privileges, masked paths. Its first process is the init that waits to be told what to run.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fairwater.node import seccomp
from fairwater.node.cgroups import CPU_PERIOD_US, Limits

INIT_PATH = "/run/fairwater/init"
CREDENTIAL_HELPER_PATH = "/run/fairwater/git-credential-fairwater"
"""The same program, which is git's credential helper by this name."""
SERVICE_PATH = "/run/fairwater/service"
"""A folder in which the agent offers what serves the workspace."""
RUN_BYTES = 64 * 1024**2
"""The size of `/run`."""
IDS = 65536
"""How many user and group ids each sandbox has."""

CAPABILITIES = (
    "CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FOWNER", "CAP_FSETID", "CAP_KILL", "CAP_NET_BIND_SERVICE", "CAP_SETGID",
    "CAP_SETPCAP", "CAP_SETUID", "CAP_SYS_CHROOT",
)  # fmt: skip
"""What root *inside* a sandbox may do, to its own files and processes only. No CAP_SYS_ADMIN, CAP_SYS_PTRACE,
CAP_NET_ADMIN, CAP_NET_RAW, CAP_MKNOD."""

MASKED = (
    "/proc/acpi", "/proc/asound", "/proc/bus", "/proc/diskstats", "/proc/fs", "/proc/interrupts", "/proc/irq",
    "/proc/kcore", "/proc/keys", "/proc/kmsg", "/proc/latency_stats", "/proc/partitions", "/proc/sched_debug",
    "/proc/scsi", "/proc/sysrq-trigger", "/proc/timer_list", "/proc/timer_stats", "/sys/block", "/sys/class/block",
    "/sys/dev/block", "/sys/devices/virtual/block", "/sys/devices/virtual/dmi", "/sys/devices/virtual/powercap",
    "/sys/firmware", "/sys/fs", "/sys/kernel", "/sys/power",
)  # fmt: skip
"""Among them the block devices: their names and backing files would tell of the neighbours."""
READ_ONLY = ("/proc/sys",)
MOUNT_POINTS = ("/proc", "/dev", "/sys", "/run", "/tmp", "/workspace")  # noqa: S108 - the sandbox's own
"""Folders that every root must have, whatever the image."""


@dataclass(frozen=True, slots=True)
class BundleSpec:
    """What differs from sandbox to sandbox. `binds` are read-only; paths are the machine's, targets the sandbox's."""

    root: Path
    init: Path
    service: Path
    user_namespace: Path
    network_namespace: Path
    first_id: int
    cgroup: str
    limits: Limits
    binds: tuple[tuple[Path, str], ...]
    files: Mapping[str, Path]
    tmp_bytes: int


def configuration(spec: BundleSpec) -> dict[str, Any]:
    """`config.json` of the bundle, as the OCI runtime specification 1.0 has it."""
    mapping = [{"containerID": 0, "hostID": spec.first_id, "size": IDS}]
    return {
        "ociVersion": "1.0.2",
        "hostname": "workspace",
        "root": {"path": str(spec.root), "readonly": False},
        "process": {
            "terminal": False,
            "cwd": "/",
            "args": [INIT_PATH],
            "env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"],
            "user": {"uid": 0, "gid": 0},
            "noNewPrivileges": True,
            "capabilities": {
                "bounding": list(CAPABILITIES),
                "effective": list(CAPABILITIES),
                "permitted": list(CAPABILITIES),
                "inheritable": [],
                "ambient": [],
            },
        },
        "mounts": _mounts(spec),
        "linux": {
            "namespaces": [
                *({"type": kind} for kind in ("pid", "mount", "ipc", "uts", "cgroup")),
                {"type": "user", "path": str(spec.user_namespace)},
                {"type": "network", "path": str(spec.network_namespace)},
            ],
            "uidMappings": mapping,
            "gidMappings": mapping,
            "cgroupsPath": spec.cgroup,
            "resources": {
                "cpu": {"period": CPU_PERIOD_US, "quota": spec.limits.cpu_quota_us or -1},
                "memory": {"limit": spec.limits.memory or -1},
                "pids": {"limit": spec.limits.processes or -1},
            },
            "maskedPaths": list(MASKED),
            "readonlyPaths": list(READ_ONLY),
            "rootfsPropagation": "private",
            "seccomp": seccomp.profile(),
        },
    }


def _mounts(spec: BundleSpec) -> list[dict[str, Any]]:
    pts = ("newinstance", "ptmxmode=0666", "mode=0620", "gid=5")
    return [
        _mount("proc", "/proc", "nodev", "noexec"),
        _mount("tmpfs", "/dev", "strictatime", "mode=755", "size=64k"),
        _mount("devpts", "/dev/pts", "noexec", *pts),
        _mount("tmpfs", "/dev/shm", "nodev", "mode=1777", f"size={spec.tmp_bytes}"),  # noqa: S108 - the sandbox's own
        _mount("mqueue", "/dev/mqueue", "nodev", "noexec"),
        _mount("sysfs", "/sys", "nodev", "noexec", "ro"),
        _mount("tmpfs", "/run", "nodev", "mode=755", f"size={RUN_BYTES}"),
        _mount("tmpfs", "/tmp", "nodev", "mode=1777", f"size={spec.tmp_bytes}"),  # noqa: S108 - the sandbox's own
        _bind(spec.init, INIT_PATH),
        _bind(spec.init, CREDENTIAL_HELPER_PATH),
        _bind(spec.service, SERVICE_PATH),
        *(_bind(source, target) for source, target in spec.binds),
        *(_bind(source, target) for target, source in spec.files.items()),
    ]


def _mount(kind: str, target: str, *options: str) -> dict[str, Any]:
    return {"destination": target, "type": kind, "source": kind, "options": ["nosuid", *options]}


def _bind(source: Path, target: str) -> dict[str, Any]:
    options = ["bind", "ro", "nosuid", "nodev"]
    return {"destination": target, "type": "bind", "source": str(source), "options": options}
