"""Control groups of sandboxes: version 2, version 1, and the hybrid of both.

Decides where a limit is written in each layout and reads back what the kernel made of it; refuses to know how large a
limit should be. The mount points are found, never assumed, and left as they are.
"""

from __future__ import annotations

import contextlib
import errno
import os
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from fairwater.domain.failure import Permanent, Temporary
from fairwater.domain.workspaces.classes import WorkspaceClass

CPU_PERIOD_US = 100_000
CONTROLLERS = ("cpu", "memory", "pids")


class Layout(StrEnum):
    V2 = "v2"
    V1 = "v1"
    HYBRID = "hybrid"  # version 1 does the work, a version 2 tree beside it has no controllers of use


@dataclass(frozen=True, slots=True)
class Limits:
    """What the kernel holds a group to. `cpu_quota_us` is per period of 100 ms; None stands for no limit."""

    cpu_quota_us: int | None
    memory: int | None
    processes: int | None


def limits_of(workspace_class: WorkspaceClass) -> Limits:
    page = os.sysconf("SC_PAGE_SIZE")
    return Limits(
        cpu_quota_us=max(1000, int(workspace_class.cpu_cores * CPU_PERIOD_US)),
        memory=workspace_class.memory // page * page,
        processes=workspace_class.processes,
    )


class Cgroups:
    """The groups below `base` (such as `fairwater-0`), one for each sandbox."""

    def __init__(self, base: str, root: Path = Path("/sys/fs/cgroup"), mountinfo: Path = Path("/proc/self/mountinfo")):
        self.base = base
        self._v2, self._v1 = _mount_points(mountinfo, root)
        if self._v2 is not None and set(CONTROLLERS) <= set(_words(self._v2 / "cgroup.controllers")):
            self.layout = Layout.V2
        elif set(CONTROLLERS) <= set(self._v1):
            self.layout = Layout.HYBRID if self._v2 else Layout.V1
        else:
            found = ", ".join(sorted(self._v1)) or "none"
            raise Permanent(
                f"cgroups: the controllers cpu, memory and pids are needed, found on version 1: {found}, and no "
                "version 2 tree with all of them below " + str(root),
                code="no_cgroups",
            )

    @property
    def v2_to_hide(self) -> Path | None:
        """On hybrid, the version 2 mount point: crun refuses the layout while it sees it."""
        return self._v2 if self.layout is Layout.HYBRID else None

    def prepare(self) -> None:
        """Makes the parent group and hands its controllers down to the sandboxes' groups."""
        if self.layout is Layout.V2:
            assert self._v2 is not None
            for folder in (self._v2, self._v2 / self.base):
                folder.mkdir(exist_ok=True)
                missing = set(CONTROLLERS) - set(_words(folder / "cgroup.subtree_control"))
                if missing:
                    self._hand_down(folder, missing)
        else:
            for folder in self._folders(""):
                folder.mkdir(exist_ok=True)

    @staticmethod
    def _hand_down(folder: Path, controllers: set[str]) -> None:
        words = " ".join(f"+{name}" for name in sorted(controllers))
        try:
            (folder / "cgroup.subtree_control").write_text(words)
        except OSError as error:
            why = "processes are in it" if error.errno == errno.EBUSY else error.strerror
            raise Permanent(
                f"{folder}: {words} cannot be handed down to the sandboxes' groups, because {why}: run the agent on "
                "the machine itself, not in a container with a cgroup tree of its own",
                code="cgroups_not_delegated",
            ) from error

    def path(self, group: str) -> str:
        """The group's path as an OCI runtime wants it."""
        return f"/{self.base}/{group}"

    def limit(self, group: str, limits: Limits) -> None:
        """Writes the limits and reads them back.

        Raises:
            Temporary: `limit_not_applied`, where the kernel shows something else afterwards.
        """
        if self.layout is Layout.V2:
            folder = self._folder("cpu", group)
            cpu = "max" if limits.cpu_quota_us is None else str(limits.cpu_quota_us)
            _write(folder / "cpu.max", f"{cpu} {CPU_PERIOD_US}")
            _write(folder / "memory.max", _or_max(limits.memory))
            if (folder / "memory.swap.max").exists():  # not there where the kernel has no swap
                # memory.max does not count what is swapped out: a workspace could have all of the machine's swap.
                _write(folder / "memory.swap.max", "max" if limits.memory is None else "0")
            _write(folder / "pids.max", _or_max(limits.processes))
        else:
            cpu_folder = self._folder("cpu", group)
            _write(cpu_folder / "cpu.cfs_period_us", str(CPU_PERIOD_US))
            _write(cpu_folder / "cpu.cfs_quota_us", str(-1 if limits.cpu_quota_us is None else limits.cpu_quota_us))
            self._limit_memory_v1(self._folder("memory", group), limits.memory)
            _write(self._folder("pids", group) / "pids.max", _or_max(limits.processes))
        shown = self.read(group)
        if shown != limits:
            raise Temporary(
                f"group {self.path(group)}: asked for {limits}, but the kernel shows {shown}", code="limit_not_applied"
            )

    def yield_processors(self, group: str) -> None:
        """Puts the group behind all others that want a processor, to a tenth of a workspace's weight."""
        name, weight = ("cpu.weight", "10") if self.layout is Layout.V2 else ("cpu.shares", "102")
        _write(self._folder("cpu", group) / name, weight)

    @staticmethod
    def _limit_memory_v1(folder: Path, memory: int | None) -> None:
        """Memory, and memory with swap, to the same: the second may never be below the first, at no moment."""
        value = "-1" if memory is None else str(memory)
        names = ["memory.limit_in_bytes"]
        with_swap = folder / "memory.memsw.limit_in_bytes"
        if with_swap.exists():  # not there where the kernel does not count swap
            rises = memory is None or memory > (_limit(with_swap.read_text()) or 1 << 62)
            names.insert(0 if rises else 1, with_swap.name)
        for name in names:
            _write(folder / name, value)

    def read(self, group: str) -> Limits:
        """The limits in force, as the kernel shows them."""
        if self.layout is Layout.V2:
            folder = self._folder("cpu", group)
            cpu, period_us = _words(folder / "cpu.max")
            memory, processes = (folder / "memory.max").read_text(), (folder / "pids.max").read_text()
        else:
            cpu = (self._folder("cpu", group) / "cpu.cfs_quota_us").read_text()
            period_us = "" if _limit(cpu) is None else (self._folder("cpu", group) / "cpu.cfs_period_us").read_text()
            memory = (self._folder("memory", group) / "memory.limit_in_bytes").read_text()
            processes = (self._folder("pids", group) / "pids.max").read_text()
        quota_us = _limit(cpu)
        per_period = None if quota_us is None else quota_us * CPU_PERIOD_US // int(period_us)
        return Limits(per_period, _limit(memory), _limit(processes))

    def processes(self, group: str) -> int:
        """How many tasks the group holds; 0 where it does not exist."""
        try:
            return int((self._folder("pids", group) / "pids.current").read_text())
        except FileNotFoundError:
            return 0

    def groups(self) -> tuple[str, ...]:
        """The sandboxes' groups that exist in any of the trees."""
        names: set[str] = set()
        for folder in self._folders(""):
            if folder.is_dir():
                names.update(entry.name for entry in folder.iterdir() if entry.is_dir())
        return tuple(sorted(names))

    def remove(self, group: str) -> None:
        """Removes the group and what a workspace made below it. Raises OSError (EBUSY) while processes are in it."""
        for folder in self._folders(group):
            _remove_tree(folder)

    def shutdown(self) -> None:
        """Removes the parent group, where it is empty."""
        for folder in self._folders(""):
            with contextlib.suppress(OSError):
                folder.rmdir()

    def _folder(self, controller: str, group: str) -> Path:
        mount = self._v2 if self.layout is Layout.V2 else self._v1[controller]
        assert mount is not None
        return mount / self.base / group

    def _folders(self, group: str) -> list[Path]:
        mounts = {self._v2} if self.layout is Layout.V2 else set(self._v1.values())
        return [mount / self.base / group for mount in sorted(filter(None, mounts))]


def _mount_points(mountinfo: Path, root: Path) -> tuple[Path | None, dict[str, Path]]:
    """The version 2 mount below `root`, and the version 1 mounts by controller."""
    v2: Path | None = None
    v1: dict[str, Path] = {}
    for line in mountinfo.read_text().splitlines():
        left, _, right = line.partition(" - ")
        where, (kind, _, options) = Path(left.split(" ")[4]), right.split(" ", 2)  # the source may be empty
        if kind == "cgroup2" and where.is_relative_to(root):
            v2 = v2 or where
        elif kind == "cgroup":
            for option in options.split(","):
                v1.setdefault(option.removeprefix("name="), where)
    known = {
        "cpu",
        "cpuacct",
        "cpuset",
        "memory",
        "pids",
        "blkio",
        "devices",
        "freezer",
        "systemd",
        "net_cls",
        "perf_event",
    }
    return v2, {name: where for name, where in v1.items() if name in known}


def _remove_tree(folder: Path) -> None:
    if not folder.is_dir():
        return
    for entry in list(folder.iterdir()):
        if entry.is_dir():
            _remove_tree(entry)
    with contextlib.suppress(FileNotFoundError):
        folder.rmdir()


def _words(path: Path) -> list[str]:
    return path.read_text().split()


def _or_max(value: int | None) -> str:
    return "max" if value is None else str(value)


def _limit(text: str) -> int | None:
    text = text.strip()
    # Version 1 shows "no memory limit" as the largest number of pages.
    return None if text in {"max", "-1"} or int(text) > 1 << 60 else int(text)


def _write(path: Path, value: str) -> None:
    try:
        path.write_text(value)
    except OSError as error:
        raise Temporary(f"{path}: {value!r} was refused: {error.strerror}", code="limit_not_applied") from error
