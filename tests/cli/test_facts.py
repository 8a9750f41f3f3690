from __future__ import annotations

from pathlib import Path

import pytest

from fairwater.node.facts import node_facts, why_not_isolated
from fairwater.ports.agent import Fact

HYBRID = """30 25 0:26 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu
31 25 0:27 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory
32 25 0:28 / /sys/fs/cgroup/pids rw - cgroup cgroup rw,pids
33 25 0:29 / /sys/fs/cgroup/blkio rw - cgroup cgroup rw,blkio
34 25 0:30 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw
"""


@pytest.fixture
def machine(tmp_path: Path) -> Path:
    """A made-up machine that offers everything."""
    files = {
        "proc/sys/kernel/osrelease": "6.8.0-test",
        "proc/self/mountinfo": "30 25 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n",
        "proc/self/ns/user": "",
        "proc/sys/user/max_user_namespaces": "1000",
        "proc/filesystems": "nodev\tproc\nnodev\toverlay\n\tbtrfs\n",
        "proc/sys/kernel/seccomp/actions_avail": "kill_process trap errno allow",
        "proc/pressure/cpu": "some avg10=0.00",
        "proc/net/route": "Iface Destination Gateway Flags RefCnt Use Metric Mask MTU\n"
        "eth0 00000000 0100000A 0003 0 0 0 00000000 0 0 0\n",
        "proc/net/ipv6_route": f"{'0' * 32} 00 {'0' * 32} 00 {'1' * 32} 00000400 1 0 1 eth0\n",
        "proc/cpuinfo": "processor\t: 0\nprocessor\t: 1\n",
        "proc/meminfo": "MemTotal:       16777216 kB\n",
        "sys/fs/cgroup/cgroup.controllers": "cpuset cpu io memory pids",
        "sys/class/net/eth0/mtu": "1400",
        "sys/block/sda/size": "2097152",
        "sys/block/sda/queue/rotational": "0",
        "sys/block/sda/queue/scheduler": "none [mq-deadline] bfq",
        "sys/block/loop0/size": "100",
        "dev/loop-control": "",
        "usr/lib/x86_64-linux-gnu/libnftables.so.1": "",
        "usr/bin/crun": "",
        "usr/bin/git": "",
        "usr/bin/git-lfs": "",
        "usr/bin/skopeo": "",
        "usr/sbin/mkfs.btrfs": "",
    }
    for name, text in files.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        path.chmod(0o755)
    return tmp_path


def fact(machine: Path, name: str) -> Fact:
    return next(one for one in node_facts(machine) if one.name == name)


def test_a_machine_that_offers_everything_runs_workspaces_isolated(machine: Path) -> None:
    facts = node_facts(machine)
    assert why_not_isolated(facts) == ()
    assert {one.level for one in facts if one.name != "disk space"} == {"ok"}
    assert fact(machine, "cgroups").value == "v2"
    assert fact(machine, "network").value == "default route by eth0, MTU 1400"
    assert fact(machine, "machine").value == "2 cores, 16 GiB of memory"
    assert fact(machine, "disk sda").value == "1 GiB, solid state, scheduler mq-deadline"


def test_a_hybrid_layout_is_degraded_and_its_controllers_are_those_of_v1(machine: Path) -> None:
    (machine / "sys/fs/cgroup/cgroup.controllers").unlink()
    (machine / "proc/self/mountinfo").write_text(HYBRID)
    assert fact(machine, "cgroups").value == "hybrid (limits on v1)"
    assert fact(machine, "cgroup controllers").value == "cpu, memory, pids, io"
    assert why_not_isolated(node_facts(machine)) == ()


@pytest.mark.parametrize(
    ("path", "content", "name"),
    [
        ("sys/fs/cgroup/cgroup.controllers", "cpu io", "cgroup controllers"),
        ("proc/sys/user/max_user_namespaces", "0", "user namespaces"),
        ("proc/self/ns/user", None, "user namespaces"),
        ("proc/filesystems", "\tbtrfs\n", "overlay"),
        ("dev/loop-control", None, "volumes"),
        ("usr/bin/crun", None, "runtime"),
        ("proc/sys/kernel/seccomp/actions_avail", None, "seccomp"),
        ("usr/lib/x86_64-linux-gnu/libnftables.so.1", None, "firewall"),
    ],
)
def test_what_isolation_needs_is_missed_with_its_cost_and_a_remedy(
    machine: Path, path: str, content: str | None, name: str
) -> None:
    if content is None:
        (machine / path).unlink()
    else:
        (machine / path).write_text(content)
    found = fact(machine, name)
    assert found.level == "missing"
    assert found.cost
    assert found.remedy
    assert why_not_isolated(node_facts(machine)) == (name,)


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("proc/pressure/cpu", "pressure"),
        ("proc/net/route", "network"),
        ("proc/net/ipv6_route", "IPv6"),
        ("usr/sbin/mkfs.btrfs", "volumes"),
        ("sys/block/sda/size", "disks"),
    ],
)
def test_what_only_costs_something_is_degraded(machine: Path, path: str, name: str) -> None:
    (machine / path).unlink()
    found = fact(machine, name)
    assert (found.level, bool(found.cost)) == ("degraded", True)
    assert why_not_isolated(node_facts(machine)) == ()


def test_an_old_kernel_has_no_idmapped_layers(machine: Path) -> None:
    (machine / "proc/sys/kernel/osrelease").write_text("5.10.0")
    assert why_not_isolated(node_facts(machine)) == ("kernel", "idmapped mounts")


def test_nothing_that_can_be_read_is_missing_and_never_fine(tmp_path: Path) -> None:
    facts = {one.name: one.level for one in node_facts(tmp_path)}
    assert facts["kernel"] == facts["cgroups"] == facts["machine"] == "missing"
    assert facts["disks"] == facts["pressure"] == "degraded"


@pytest.mark.root
def test_on_this_machine_the_trials_leave_nothing_behind() -> None:
    score = Path("/proc/self/oom_score_adj").read_text()
    mounts = Path("/proc/self/mountinfo").read_text()
    levels = {one.name: one.level for one in node_facts()}
    assert levels["idmapped mounts"] == "ok"
    assert Path("/proc/self/oom_score_adj").read_text() == score
    assert Path("/proc/self/mountinfo").read_text() == mounts
