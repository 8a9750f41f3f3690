"""Limits in every layout of control groups, on made-up trees: where they are written, and that they are read back."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from fairwater.domain.failure import Permanent, Temporary
from fairwater.domain.units import GIB, MIB, Bytes
from fairwater.domain.workspaces.classes import WorkspaceClass
from fairwater.node.cgroups import Cgroups, Layout, Limits, limits_of

LIMITS = Limits(cpu_quota_us=150_000, memory=512 * MIB, processes=100)
NO_LIMITS = Limits(None, None, None)
GROUP = "slot-1"


class Tree:
    """A made-up `/sys/fs/cgroup` and the mountinfo that tells of it."""

    def __init__(self, folder: Path) -> None:
        self.root = folder / "cgroup"
        self.mountinfo = folder / "mountinfo"
        self.root.mkdir()
        self._lines = ["22 1 0:21 / / rw,relatime shared:1 - ext4 /dev/vda rw"]

    def v2(self, name: str = "", controllers: str = "cpuset cpu io memory hugetlb pids") -> Path:
        mount = self._mount(name, "cgroup2", "rw")
        (mount / "cgroup.controllers").write_text(controllers + "\n")
        (mount / "cgroup.subtree_control").write_text("\n")
        return mount

    def v1(self, *controllers: str) -> Path:
        return self._mount(",".join(controllers), "cgroup", ",".join(("rw", *controllers)))

    def add_line(self, line: str) -> None:
        self._lines.append(line)

    def open(self) -> Cgroups:
        self.mountinfo.write_text("\n".join(self._lines) + "\n")
        return Cgroups("fairwater-0", self.root, self.mountinfo)

    def _mount(self, name: str, kind: str, options: str) -> Path:
        mount = self.root / name
        mount.mkdir(exist_ok=True)
        self.add_line(f"{30 + len(self._lines)} 22 0:30 / {mount} rw,nosuid shared:9 - {kind} {kind} {options}")
        return mount


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    return Tree(tmp_path)


def v2_only(tree: Tree) -> dict[str, Path]:
    mount = tree.v2()
    return dict.fromkeys(("cpu", "memory", "pids"), mount / "fairwater-0" / GROUP)


def v1_only(tree: Tree) -> dict[str, Path]:
    cpu = tree.v1("cpu", "cpuacct")
    return {
        "cpu": cpu / "fairwater-0" / GROUP,
        "memory": tree.v1("memory") / "fairwater-0" / GROUP,
        "pids": tree.v1("pids") / "fairwater-0" / GROUP,
    }


def hybrid(tree: Tree) -> dict[str, Path]:
    tree.v2("unified", "hugetlb")
    return v1_only(tree)


Lay = Callable[[Tree], dict[str, Path]]
LAYOUTS = pytest.mark.parametrize("lay", [v2_only, v1_only, hybrid])


@pytest.mark.parametrize(
    ("lay", "layout", "hidden"),
    [(v2_only, Layout.V2, False), (v1_only, Layout.V1, False), (hybrid, Layout.HYBRID, True)],
)
def test_the_layout_is_found(tree: Tree, lay: Lay, layout: Layout, hidden: bool) -> None:
    lay(tree)
    cgroups = tree.open()
    assert cgroups.layout is layout
    assert cgroups.v2_to_hide == (tree.root / "unified" if hidden else None)


def no_tree(tree: Tree) -> None:
    return


def only_cpu(tree: Tree) -> None:
    tree.v1("cpu", "cpuacct")


def a_v2_tree_of_no_use(tree: Tree) -> None:
    tree.v2("unified", "hugetlb")


def v2_without_pids(tree: Tree) -> None:
    tree.v2("", "cpu memory")


@pytest.mark.parametrize("lay", [no_tree, only_cpu, a_v2_tree_of_no_use, v2_without_pids])
def test_a_machine_without_the_controllers_is_refused_with_what_was_found(
    tree: Tree, lay: Callable[[Tree], None]
) -> None:
    lay(tree)
    with pytest.raises(Permanent, match="cpu, memory and pids are needed") as refused:
        tree.open()
    assert refused.value.code == "no_cgroups"
    assert ("cpu, cpuacct" in refused.value.message) == (lay is only_cpu)


def test_a_mount_without_a_source_does_no_harm(tree: Tree) -> None:
    """`mount -t tmpfs "" /mnt` leaves the field empty."""
    tree.add_line("90 22 0:90 / /mnt rw,relatime - tmpfs  rw,size=4k")
    v2_only(tree)
    assert tree.open().layout is Layout.V2


def test_controllers_are_handed_down_in_a_version_2_tree(tree: Tree) -> None:
    mount = tree.v2()
    (mount / "fairwater-0").mkdir()
    (mount / "cgroup.subtree_control").write_text("cpu\n")
    (mount / "fairwater-0/cgroup.subtree_control").write_text("\n")
    tree.open().prepare()
    assert (mount / "cgroup.subtree_control").read_text() == "+memory +pids"
    assert (mount / "fairwater-0/cgroup.subtree_control").read_text() == "+cpu +memory +pids"


@pytest.mark.parametrize("lay", [v1_only, hybrid])
def test_the_parent_group_is_made_in_every_version_1_tree(tree: Tree, lay: Lay) -> None:
    folders = lay(tree)
    tree.open().prepare()
    assert all(folder.parent.is_dir() for folder in folders.values())


@LAYOUTS
def test_limits_are_written_where_the_layout_has_them(tree: Tree, lay: Lay) -> None:
    folders = lay(tree)
    for folder in folders.values():
        folder.mkdir(parents=True, exist_ok=True)
    cgroups = tree.open()
    cgroups.limit(GROUP, LIMITS)
    if cgroups.layout is Layout.V2:
        written = {"cpu": "cpu.max", "memory": "memory.max", "pids": "pids.max"}
        expected = {"cpu": "150000 100000", "memory": str(512 * MIB), "pids": "100"}
    else:
        written = {"cpu": "cpu.cfs_quota_us", "memory": "memory.limit_in_bytes", "pids": "pids.max"}
        expected = {"cpu": "150000", "memory": str(512 * MIB), "pids": "100"}
    assert {name: (folders[name] / file).read_text() for name, file in written.items()} == expected
    assert cgroups.read(GROUP) == LIMITS


@LAYOUTS
def test_no_limit_is_written_and_read_as_none(tree: Tree, lay: Lay) -> None:
    for folder in lay(tree).values():
        folder.mkdir(parents=True, exist_ok=True)
    cgroups = tree.open()
    cgroups.limit(GROUP, LIMITS)
    cgroups.limit(GROUP, NO_LIMITS)
    assert cgroups.read(GROUP) == NO_LIMITS


def test_the_largest_number_of_pages_is_no_limit(tree: Tree) -> None:
    folders = v1_only(tree)
    for folder in folders.values():
        folder.mkdir(parents=True, exist_ok=True)
    cgroups = tree.open()
    cgroups.limit(GROUP, LIMITS)
    (folders["memory"] / "memory.limit_in_bytes").write_text("9223372036854771712\n")
    assert cgroups.read(GROUP).memory is None


@pytest.mark.parametrize("name", ["cpu", "memory", "pids"])
@LAYOUTS
def test_a_limit_that_the_kernel_ignores_is_not_taken_for_applied(
    tree: Tree, lay: Lay, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Defence under test: what was written is read back."""
    folders = lay(tree)
    for folder in folders.values():
        folder.mkdir(parents=True, exist_ok=True)
    cgroups = tree.open()
    cgroups.limit(GROUP, NO_LIMITS)
    files = {
        "cpu": {"cpu.max", "cpu.cfs_quota_us"},
        "memory": {"memory.max", "memory.limit_in_bytes"},
        "pids": {"pids.max"},
    }
    write = Path.write_text

    def ignoring(path: Path, value: str) -> int:
        return len(value) if path.name in files[name] else write(path, value)

    monkeypatch.setattr(Path, "write_text", ignoring)
    with pytest.raises(Temporary, match=f"group /fairwater-0/{GROUP}: asked for .*the kernel shows") as refused:
        cgroups.limit(GROUP, LIMITS)
    assert refused.value.code == "limit_not_applied"


@LAYOUTS
def test_a_limit_that_the_kernel_refuses_is_temporary_and_names_the_file(tree: Tree, lay: Lay) -> None:
    folders = lay(tree)
    for folder in folders.values():
        folder.mkdir(parents=True, exist_ok=True)
    cgroups = tree.open()
    (folders["pids"] / "pids.max").mkdir()
    with pytest.raises(Temporary, match=r"pids\.max: '100' was refused") as refused:
        cgroups.limit(GROUP, LIMITS)
    assert refused.value.code == "limit_not_applied"


def test_what_is_swapped_out_is_not_beyond_the_limit(tree: Tree) -> None:
    """`memory.max` does not count it."""
    folder = v2_only(tree)["memory"]
    folder.mkdir(parents=True)
    (folder / "memory.swap.max").write_text("max\n")
    cgroups = tree.open()
    cgroups.limit(GROUP, LIMITS)
    assert (folder / "memory.swap.max").read_text() == "0"
    cgroups.limit(GROUP, NO_LIMITS)
    assert (folder / "memory.swap.max").read_text() == "max"


def test_a_quota_over_another_period_is_not_taken_for_applied(tree: Tree) -> None:
    """150 ms in each 50 ms are three cores, not one and a half."""
    folder = v2_only(tree)["cpu"]
    folder.mkdir(parents=True)
    cgroups = tree.open()
    cgroups.limit(GROUP, LIMITS)
    (folder / "cpu.max").write_text("150000 50000\n")
    assert cgroups.read(GROUP) != LIMITS


def test_limits_of_a_class_are_what_the_kernel_can_show() -> None:
    page = os.sysconf("SC_PAGE_SIZE")
    odd = WorkspaceClass("odd", cpu_cores=0.001, memory=Bytes(GIB + 1), processes=7, disk=Bytes(GIB))
    assert limits_of(odd) == Limits(cpu_quota_us=1000, memory=GIB, processes=7)
    assert GIB % page == 0
    assert limits_of(WorkspaceClass("two", 2, Bytes(GIB), 7, Bytes(GIB))).cpu_quota_us == 200_000


@LAYOUTS
def test_processes_are_counted_and_a_missing_group_has_none(tree: Tree, lay: Lay) -> None:
    folders = lay(tree)
    cgroups = tree.open()
    assert cgroups.processes(GROUP) == 0
    folders["pids"].mkdir(parents=True)
    (folders["pids"] / "pids.current").write_text("12\n")
    assert cgroups.processes(GROUP) == 12


@pytest.mark.parametrize("lay", [v1_only, hybrid])
def test_a_group_left_in_one_tree_alone_is_found(tree: Tree, lay: Lay) -> None:
    folders = lay(tree)
    folders["memory"].mkdir(parents=True)
    assert tree.open().groups() == (GROUP,)


@LAYOUTS
def test_a_group_is_removed_with_all_that_was_made_below_it(tree: Tree, lay: Lay) -> None:
    folders = lay(tree)
    for folder in folders.values():
        (folder / "inner" / "innermost").mkdir(parents=True, exist_ok=True)
        (folder / "beside").mkdir(exist_ok=True)
        (folder.parent / "slot-2").mkdir(exist_ok=True)
    cgroups = tree.open()
    assert cgroups.groups() == (GROUP, "slot-2")
    for _ in range(2):
        cgroups.remove(GROUP)
        assert cgroups.groups() == ("slot-2",)
    assert not any(folder.exists() for folder in folders.values())


@LAYOUTS
def test_a_group_that_is_still_in_use_is_not_taken_for_removed(tree: Tree, lay: Lay) -> None:
    folders = lay(tree)
    folders["cpu"].mkdir(parents=True)
    (folders["cpu"] / "held").write_text("a folder that is not empty, for a group with processes")
    cgroups = tree.open()
    with pytest.raises(OSError, match="not empty"):
        cgroups.remove(GROUP)
    assert cgroups.groups() == (GROUP,)


@LAYOUTS
def test_the_parent_group_goes_at_the_end_unless_something_is_in_it(tree: Tree, lay: Lay) -> None:
    folders = lay(tree)
    for folder in folders.values():
        folder.mkdir(parents=True, exist_ok=True)
    cgroups = tree.open()
    cgroups.shutdown()
    assert cgroups.groups() == (GROUP,)
    cgroups.remove(GROUP)
    cgroups.shutdown()
    assert not any(folder.parent.exists() for folder in folders.values())
