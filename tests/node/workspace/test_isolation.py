"""What a workspace can see and do of the machine it runs on: nothing."""

from __future__ import annotations

import asyncio
import os
import textwrap
from pathlib import Path

import pytest
from tests.node.workspace.laboratory import SMALL, Lab, wait_for

from fairwater.node.cgroups import Cgroups, limits_of
from fairwater.node.slots import FIRST_ID
from fairwater.ports.process import ExecRequest

pytestmark = [pytest.mark.root, pytest.mark.asyncio(loop_scope="module")]


@pytest.fixture(scope="module")
def secrets_of_the_machine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("machine") / "secret"
    path.write_text("the machine's own")
    return path


async def test_the_workspace_sees_only_its_own_processes(lab: Lab) -> None:
    workspace = await lab.start()
    _, listing = await lab.sh(workspace, "ps -e -o pid= -o comm=")
    commands = [line.split()[1] for line in listing.splitlines()]
    assert sorted(commands) == ["init", "ps", "sh"]


async def test_root_in_the_workspace_is_nobody_on_the_machine(lab: Lab) -> None:
    workspace = await lab.start()
    status = Path(f"/proc/{lab.init_pid(workspace)}/status").read_text()
    uids = next(line.split()[1:] for line in status.splitlines() if line.startswith("Uid:"))
    assert all(int(uid) >= FIRST_ID for uid in uids)
    assert await lab.sh(workspace, "id -u", user="root") == (0, "0\n")
    assert await lab.sh(workspace, "id -u") == (0, "1000\n")


async def test_two_workspaces_share_no_user_ids(lab: Lab) -> None:
    maps = [Path(f"/proc/{lab.init_pid(await lab.start())}/uid_map").read_text().split() for _ in range(2)]
    first, second = (int(uid_map[1]) for uid_map in maps)
    assert abs(first - second) >= 65536


async def test_every_namespace_is_its_own(lab: Lab) -> None:
    workspace = await lab.start()
    for kind in ("mnt", "pid", "net", "uts", "ipc", "user", "cgroup"):
        inside = str(Path(f"/proc/{lab.init_pid(workspace)}/ns/{kind}").readlink())
        assert inside != str(Path(f"/proc/self/ns/{kind}").readlink()), kind


@pytest.mark.parametrize("user", ["workspace", "root"])
@pytest.mark.parametrize(
    "path",
    ["/etc/shadow", "/etc/machine-id", "/etc/ssl/private", "/boot", "/var/lib/dpkg", "/root/.ssh", "/sys/block/loop0"],
)
async def test_files_of_the_machine_are_not_there(lab: Lab, path: str, user: str) -> None:
    workspace = await lab.some()
    assert (await lab.sh(workspace, f"test -e {path}", user=user))[0] == 1


async def test_no_way_leads_out_of_the_root_directory(lab: Lab, secrets_of_the_machine: Path) -> None:
    workspace = await lab.some()
    below = secrets_of_the_machine.relative_to("/")
    for way in (f"/{below}", f"/proc/1/root/{below}", f"/proc/self/root/../../../../{below}", f"/proc/1/cwd/{below}"):
        assert (await lab.sh(workspace, f"cat {way}", user="root"))[0] != 0, way


async def test_programs_of_the_machine_are_read_only(lab: Lab) -> None:
    status, words = await lab.sh(await lab.some(), "touch /usr/bin/mine", user="root")
    assert status == 1
    assert "Read-only" in words


async def test_what_only_root_may_read_of_the_machines_programs_is_read_by_nobody(lab: Lab) -> None:
    secret = Path("/usr/local/share/fairwater-test-secret")
    secret.write_text("the machine's own")
    secret.chmod(0o600)
    try:
        for user in ("workspace", "root"):
            status, words = await lab.sh(await lab.some(), f"cat {secret}", user=user)
            assert (status, "the machine's own" in words) == (1, False)
    finally:
        secret.unlink()


async def test_a_workspace_that_filled_its_volume_can_be_entered_again(lab: Lab) -> None:
    workspace = await lab.start()
    await lab.sh(workspace, "for i in $(seq 200); do echo x > /workspace/f$i; done; dd if=/dev/zero of=$HOME/big bs=1M")
    await lab.stop(workspace)
    await lab.start(workspace, run=2)
    assert await lab.sh(workspace, "rm $HOME/big; echo room > /workspace/room; cat /workspace/room") == (0, "room\n")


async def test_capabilities_are_few_and_none_can_be_gained(lab: Lab) -> None:
    _, text = await lab.sh(await lab.some(), "cat /proc/self/status")
    status = dict(line.split(":\t") for line in text.splitlines() if ":\t" in line)
    assert int(status["CapEff"], 16) == 0
    bounding = int(status["CapBnd"], 16)
    for name, bit in {
        "net_admin": 12,
        "net_raw": 13,
        "sys_module": 16,
        "sys_ptrace": 19,
        "sys_admin": 21,
        "mknod": 27,
    }.items():
        assert not bounding >> bit & 1, name
    assert status["NoNewPrivs"].strip() == "1"
    assert status["Seccomp"].strip() == "2"


async def test_refused_system_calls_fail_also_for_root(lab: Lab) -> None:
    script = textwrap.dedent("""
        import ctypes, errno
        libc = ctypes.CDLL(None, use_errno=True)
        refused = dict(mount=165, unshare=272, setns=308, bpf=321, keyctl=250, perf_event_open=298, io_uring_setup=425,
                       userfaultfd=323, kexec_load=246, init_module=175, open_by_handle_at=304, reboot=169,
                       pivot_root=155, fsopen=430, clone3=435, unknown=999)
        for name, number in refused.items():
            result = libc.syscall(number, 0x10000000, 0, 0, 0, 0, 0)
            assert result == -1 and ctypes.get_errno() in (errno.EPERM, errno.ENOSYS), (name, ctypes.get_errno())
        CLONE_NEWUSER = 0x10000000
        assert libc.syscall(56, CLONE_NEWUSER | 17, 0, 0, 0, 0) == -1, "clone with a new user namespace"
        for family in (40, 40 + 2**32, 38, 17):
            assert libc.syscall(41, ctypes.c_ulong(family), 1, 0) == -1, f"socket family {family}"
        print("ok")
    """)
    assert await lab.sh(await lab.some(), f"python3 -c '{script}'", user="root") == (0, "ok\n")


async def test_the_first_process_cannot_be_killed_or_read_from_inside(lab: Lab) -> None:
    workspace = await lab.some()
    await lab.sh(workspace, "kill -9 1", user="root")
    assert (await lab.sh(workspace, "ls /proc/1/fd"))[0] != 0
    assert await lab.sh(workspace, "echo alive") == (0, "alive\n")


async def test_a_fork_bomb_stays_in_its_workspace(lab: Lab) -> None:
    neighbour, bombed = await lab.some(), await lab.start()
    bomb = "import os, time\nwhile True:\n    try:\n        os.fork()\n    except OSError:\n        time.sleep(0.01)\n"
    run = (await lab.facts(bombed)).run
    process = await lab.node.access.exec(bombed, run, ExecRequest(("python3", "-c", bomb)))

    async def is_full() -> bool:
        return await lab.node.sandboxes.alive(lab.node.runs.sandbox_of(bombed)) >= SMALL.processes - 2  # type: ignore[union-attr]

    await wait_for(is_full, "the bomb to fill its workspace")
    assert await lab.sh(neighbour, "echo fine") == (0, "fine\n")
    await process.close()
    facts = await lab.stop(bombed)
    assert facts.failure is None


async def test_too_much_memory_ends_the_process_not_the_workspace(lab: Lab) -> None:
    workspace = await lab.start()
    status, _ = await lab.sh(workspace, "python3 -c 'x = bytearray(400 << 20)'")
    assert status == 128 + 9
    assert await lab.sh(workspace, "echo alive") == (0, "alive\n")


async def test_a_full_volume_is_the_workspaces_own_trouble(lab: Lab) -> None:
    workspace = await lab.start()
    free_before = os.statvfs(lab.data.node).f_bavail
    status, words = await lab.sh(workspace, "dd if=/dev/zero of=/workspace/big bs=1M count=2000 conv=fsync")
    assert status == 1
    assert "No space left" in words
    written = (free_before - os.statvfs(lab.data.node).f_bavail) * os.statvfs(lab.data.node).f_bsize
    assert written < SMALL.disk * 1.1
    assert await lab.sh(workspace, "rm /workspace/big && echo there > /workspace/x && cat /workspace/x") == (
        0,
        "there\n",
    )


async def test_limits_in_force_are_those_of_the_class(lab: Lab) -> None:
    workspace = await lab.some()
    group = f"s{lab.node.runs.sandbox_of(workspace).id.split('-')[0]}"
    line = next(
        line
        for line in Path(f"/proc/{lab.init_pid(workspace)}/cgroup").read_text().splitlines()
        if "pids" in line or line.startswith("0::")
    )
    base = line.split(":")[2].strip("/").split("/")[0]
    assert Cgroups(base).read(group) == limits_of(SMALL)


async def test_the_processor_limit_is_felt(lab: Lab) -> None:
    """Two busy processes under a limit of one core get one core together, less what the measurement costs."""
    workspace = await lab.start()
    script = "timeout 1 sh -c 'while :; do :; done' & timeout 1 sh -c 'while :; do :; done'; wait; times"
    started = asyncio.get_running_loop().time()
    _, words = await lab.sh(workspace, script)
    elapsed = asyncio.get_running_loop().time() - started
    children = words.split("\n")[1].split()[0]
    minutes, seconds = children.rstrip("s").split("m")
    assert int(minutes) * 60 + float(seconds) <= 1.25 * elapsed
