"""What a workspace is shut off from, as the OCI runtime is told it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from fairwater.node import seccomp
from fairwater.node.bundle import IDS, MOUNT_POINTS, BundleSpec, configuration
from fairwater.node.cgroups import Limits

SPEC = BundleSpec(
    root=Path("/run/fairwater/0/slots/1/root"),
    init=Path("/opt/fairwater/libexec/fairwater-init"),
    service=Path("/run/fairwater/0/slots/1/service"),
    user_namespace=Path("/run/fairwater/0/slots/1/user"),
    network_namespace=Path("/run/netns/fw0-1"),
    first_id=1_000_000,
    cgroup="/fairwater-0/slot-1",
    limits=Limits(100_000, 1 << 30, 100),
    binds=((Path("/usr"), "/usr"),),
    files={"/etc/hosts": Path("/run/fairwater/0/slots/1/hosts")},
    tmp_bytes=1 << 28,
)
NEVER = {
    "CAP_SYS_ADMIN", "CAP_SYS_PTRACE", "CAP_NET_ADMIN", "CAP_NET_RAW", "CAP_MKNOD", "CAP_SYS_MODULE", "CAP_SYS_RAWIO",
    "CAP_SYS_BOOT", "CAP_SYS_TIME", "CAP_SYS_RESOURCE", "CAP_BPF", "CAP_PERFMON", "CAP_DAC_READ_SEARCH", "CAP_SYSLOG",
    "CAP_AUDIT_CONTROL", "CAP_CHECKPOINT_RESTORE", "CAP_SETFCAP",
}  # fmt: skip


@pytest.fixture
def config() -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads(json.dumps(configuration(SPEC)))
    return loaded


def names_of(rule: dict[str, Any]) -> set[str]:
    return set(rule["names"])


def test_no_privilege_can_be_gained(config: dict[str, Any]) -> None:
    assert config["process"]["noNewPrivileges"] is True
    capabilities = config["process"]["capabilities"]
    assert set(capabilities) == {"bounding", "effective", "permitted", "inheritable", "ambient"}
    assert not NEVER & {name for held in capabilities.values() for name in held}
    assert capabilities["inheritable"] == capabilities["ambient"] == []


def test_every_namespace_is_the_workspace_s_own(config: dict[str, Any]) -> None:
    namespaces = {entry["type"]: entry.get("path") for entry in config["linux"]["namespaces"]}
    assert set(namespaces) == {"pid", "mount", "ipc", "uts", "cgroup", "user", "network"}
    assert namespaces["user"] == str(SPEC.user_namespace)
    assert namespaces["network"] == str(SPEC.network_namespace)


def test_ids_inside_are_others_outside(config: dict[str, Any]) -> None:
    for kind in ("uidMappings", "gidMappings"):
        assert config["linux"][kind] == [{"containerID": 0, "hostID": SPEC.first_id, "size": IDS}]


@pytest.mark.parametrize(
    "path",
    ["/proc/kcore", "/proc/keys", "/proc/kmsg", "/proc/sysrq-trigger", "/proc/timer_list", "/proc/partitions",
     "/proc/diskstats", "/sys/firmware", "/sys/kernel", "/sys/block", "/sys/fs", "/sys/devices/virtual/powercap"],
)  # fmt: skip
def test_what_tells_of_the_machine_is_masked(config: dict[str, Any], path: str) -> None:
    assert path in config["linux"]["maskedPaths"]


def test_the_kernel_s_settings_are_read_only(config: dict[str, Any]) -> None:
    assert "/proc/sys" in config["linux"]["readonlyPaths"]
    mounts = {mount["destination"]: mount for mount in config["mounts"]}
    assert "ro" in mounts["/sys"]["options"]


def test_nothing_that_is_mounted_gives_set_user_ids_and_nothing_of_the_machine_is_writable(
    config: dict[str, Any],
) -> None:
    for mount in config["mounts"]:
        assert "nosuid" in mount["options"], mount
        if mount["type"] == "bind":
            assert {"ro", "nodev"} <= set(mount["options"]), mount
    assert "/sys/fs/cgroup" not in {mount["destination"] for mount in config["mounts"]}
    assert config["linux"]["rootfsPropagation"] == "private"


def test_the_service_s_folder_and_git_s_credential_helper_are_there(config: dict[str, Any]) -> None:
    mounts = {mount["destination"]: mount for mount in config["mounts"]}
    assert mounts["/run/fairwater/service"]["source"] == str(SPEC.service)
    assert mounts["/run/fairwater/git-credential-fairwater"]["source"] == str(SPEC.init)
    assert mounts["/run/fairwater/init"]["source"] == str(SPEC.init)


def test_what_is_mounted_lies_where_every_root_has_a_place_for_it(config: dict[str, Any]) -> None:
    own = {"/proc", "/dev", "/sys", "/run", "/tmp"}
    assert own <= set(MOUNT_POINTS)
    for mount in config["mounts"]:
        place = mount["destination"]
        assert place in {*own, "/usr", "/etc/hosts"} or any(place.startswith(f"{above}/") for above in own), place


def test_everything_in_memory_has_a_size(config: dict[str, Any]) -> None:
    for mount in config["mounts"]:
        if mount["type"] == "tmpfs":
            assert any(option.startswith("size=") for option in mount["options"]), mount


def test_limits_stand_in_the_bundle_already(config: dict[str, Any]) -> None:
    assert config["linux"]["cgroupsPath"] == SPEC.cgroup
    assert config["linux"]["resources"] == {
        "cpu": {"period": 100_000, "quota": 100_000},
        "memory": {"limit": 1 << 30},
        "pids": {"limit": 100},
    }


def test_a_system_call_that_is_not_listed_fails_as_if_it_were_not_there() -> None:
    profile = seccomp.profile()
    assert (profile["defaultAction"], profile["defaultErrnoRet"]) == ("SCMP_ACT_ERRNO", 38)


def test_what_is_allowed_and_what_is_refused_do_not_overlap() -> None:
    assert not set(seccomp.ALLOWED) & set(seccomp.REFUSED)
    assert len(seccomp.ALLOWED) == len(set(seccomp.ALLOWED))
    assert len(seccomp.REFUSED) == len(set(seccomp.REFUSED))


def test_a_call_allowed_for_some_arguments_is_not_allowed_for_all() -> None:
    rules = seccomp.profile()["syscalls"]
    conditional = {name for rule in rules if "args" in rule for name in rule["names"]}
    assert conditional == {"clone", "socket", "personality"}
    assert not conditional & (set(seccomp.ALLOWED) | set(seccomp.REFUSED))


def test_no_namespace_can_be_made() -> None:
    """clone3 hides its flags from the filter, so it is not there at all."""
    rules = seccomp.profile()["syscalls"]
    assert "clone3" not in {name for rule in rules for name in rule["names"]}
    assert {"unshare", "setns"} <= set(seccomp.REFUSED)
    (clone,) = [rule for rule in rules if "clone" in rule["names"]]
    (argument,) = clone["args"]
    assert (argument["op"], argument["valueTwo"]) == ("SCMP_CMP_MASKED_EQ", 0)
    for flag in (0x20000, 0x2000000, 0x4000000, 0x8000000, 0x10000000, 0x20000000, 0x40000000):
        assert argument["value"] & flag, hex(flag)


@pytest.mark.parametrize(
    "name",
    ["mount", "umount2", "pivot_root", "bpf", "perf_event_open", "io_uring_setup", "userfaultfd", "keyctl", "add_key",
     "init_module", "finit_module", "kexec_load", "reboot", "swapon", "open_by_handle_at", "ioperm", "iopl",
     "clock_settime", "syslog", "move_mount", "open_tree", "fsopen", "mount_setattr", "unshare", "setns"],
)  # fmt: skip
def test_what_reaches_into_the_kernel_is_refused(name: str) -> None:
    assert name in seccomp.REFUSED


def test_the_families_of_sockets_are_told_apart_by_what_the_kernel_looks_at() -> None:
    """The family is an int: of a register of 64 bits the kernel takes the lower half, and the filter sees all of it.

    So "is not 40" lets 40 + 2^32 through, which is 40 again for the kernel: a mask must cut the upper half off.
    """
    rules = [rule for rule in seccomp.profile()["syscalls"] if "socket" in rule["names"]]
    assert rules
    for rule in rules:
        (argument,) = rule["args"]
        assert argument["op"] == "SCMP_CMP_MASKED_EQ", argument
        assert argument["value"] == 0xFFFFFFFF, argument
    assert 40 not in {rule["args"][0]["valueTwo"] for rule in rules}
