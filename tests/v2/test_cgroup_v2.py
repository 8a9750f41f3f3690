"""Fairwater's node on a machine with cgroup v2 alone, as most users have it; this machine may have another layout.

A machine is booted in QEMU, once, and a choice of the node's tests is run inside it. Each is reported here by its name.
"""

from __future__ import annotations

import contextlib
import os
import sys
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from tools.v2.machine import Machine, MachineFailed, booted
from tools.v2.parts import missing_parts

pytestmark = pytest.mark.root

CHECKOUT = Path(__file__).resolve().parents[2]
WITHIN_S = 240
NODE = "tests/node/workspace"
CHOSEN = (
    "tests/v2/inside.py::test_the_layout_is_found_as_version_2",
    "tests/v2/inside.py::test_controllers_are_handed_down_to_the_sandboxes_groups",
    "tests/v2/inside.py::test_limits_are_written_and_read_back",
    "tests/v2/inside.py::test_a_group_is_put_behind_others_that_want_a_processor",
    "tests/v2/inside.py::test_what_a_pulls_group_writes_to_the_images_disk_is_held_to_its_rate",
    "tests/v2/inside.py::test_a_workspace_is_in_one_group_that_holds_its_limits",
    "tests/v2/inside.py::test_commands_run_in_the_workspaces_group",
    "tests/v2/inside.py::test_a_memory_hog_is_killed_and_its_workspace_lives",
    "tests/v2/inside.py::test_a_fork_bomb_meets_its_workspaces_limit",
    "tests/v2/inside.py::test_a_stop_removes_the_workspaces_group_with_all_in_it",
    "tests/v2/inside.py::test_swap_adds_nothing_to_a_workspaces_memory",
    f"{NODE}/test_isolation.py::test_the_workspace_sees_only_its_own_processes",
    f"{NODE}/test_isolation.py::test_every_namespace_is_its_own",
    f"{NODE}/test_isolation.py::test_the_processor_limit_is_felt",
    f"{NODE}/test_recovery.py::test_a_restarted_agent_finds_what_runs",
)
LEFT = r"""
find /sys/fs/cgroup -name 'fairwater*'
grep -h fairwater /proc/self/mountinfo
ls /sys/class/net | grep '^fw'
cat /sys/block/loop*/loop/backing_file 2>/dev/null
true
"""


@pytest.fixture(scope="session")
def machine() -> Iterator[Machine]:
    reason = missing_parts()
    if reason:
        pytest.skip(reason)
    with booted([CHECKOUT, Path(sys.prefix), Path(sys.base_prefix)], WITHIN_S) as machine:
        yield machine


@pytest.fixture(scope="session")
def verdicts(machine: Machine) -> Mapping[str, str]:
    """What came of each chosen test inside the machine: an empty text where it passed, else what pytest said."""
    report = "/run/report.xml"
    command = [sys.executable, "-P", "-m", "pytest", "-p", "no:cacheprovider", f"--junitxml={report}", *CHOSEN]
    environment = {name: os.environ[name] for name in ("PYTHONPATH",) if name in os.environ}
    done = machine.run(command, cwd=CHECKOUT, environment=environment, within_s=WITHIN_S)
    text = machine.run(["cat", report]).output
    if not text.startswith("<?xml"):
        pytest.fail(f"no report from the machine: {done.output}\n--- console\n{machine.console()}", pytrace=False)
    return read_verdicts(text)


def read_verdicts(report: str) -> dict[str, str]:
    """By name of the test, from pytest's report: what is wrong, empty for nothing. A skipped test counts as wrong."""
    found: dict[str, str] = {}
    for case in ElementTree.fromstring(report).iter("testcase"):
        troubles = [f"{trouble.tag}: {trouble.get('message')}\n{trouble.text or ''}" for trouble in case
                    if trouble.tag in {"failure", "error", "skipped"}]  # fmt: skip
        name = f"{case.get('classname', '').replace('.', '/')}.py::{case.get('name')}"
        found[name] = found.get(name, "") + "\n".join(troubles)
    return found


def test_the_machine_has_cgroup_v2_and_nothing_else(machine: Machine) -> None:
    done = machine.run(["sed", "-n", r"s/.* - \(cgroup2\?\) .*/\1/p", "/proc/self/mountinfo"])
    assert done.output.split() == ["cgroup2"]


@pytest.mark.parametrize("name", CHOSEN, ids=lambda name: name.rpartition("/")[2])
def test_inside(machine: Machine, verdicts: Mapping[str, str], name: str) -> None:
    trouble = verdicts.get(name, "it was not run")
    if trouble:
        pytest.fail(f"{trouble}\n--- console of the machine\n{machine.console()}", pytrace=False)


def test_nothing_of_fairwater_is_left_in_the_machine(machine: Machine, verdicts: Mapping[str, str]) -> None:
    assert machine.run(["sh", "-c", LEFT]).output == ""


def test_a_command_in_the_machine_gives_its_status_and_both_streams(machine: Machine) -> None:
    done = machine.run(["sh", "-c", "echo out; echo trouble >&2; exit 7"])
    assert (done.status, done.output.splitlines()) == (7, ["out", "trouble"])


def test_the_machine_cannot_write_to_the_hosts_files_nor_see_its_cgroups(machine: Machine) -> None:
    script = """
        mkdir /run/host && mount -t virtiofs host /run/host && mount -o remount,rw /run/host || exit 9
        ls /run/host/etc/passwd && ls /run/host/proc /run/host/sys && touch /run/host/etc/mine
    """
    done = machine.run(["sh", "-c", script])
    assert done.status == 1
    assert "/run/host/etc/mine" in done.output
    assert "Read-only file system" in done.output
    assert not Path("/etc/mine").exists()


def test_a_machine_that_does_not_boot_in_time_is_ended_and_leaves_nothing(machine: Machine) -> None:
    before = parts_of_machines()
    with pytest.raises(MachineFailed, match="booting: did not end in time"), booted(within_s=1):
        pass
    assert parts_of_machines() == before


def parts_of_machines() -> frozenset[str]:
    """Processes and folders of every machine that is there."""
    found = {str(path) for path in Path("/var/tmp").glob("fw-v2-*")}
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # ended meanwhile
            if b"fw-v2-" in (process / "cmdline").read_bytes():
                found.add(process.name)
    return frozenset(found)
