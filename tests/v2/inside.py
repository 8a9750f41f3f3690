"""What holds on a machine with cgroup v2 alone. Run in such a machine by `test_cgroup_v2`; not collected elsewhere."""

from __future__ import annotations

import contextlib
import os
import subprocess
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import pytest_asyncio
from tests.node.workspace.laboratory import SMALL, Lab, wait_for

from fairwater.domain.ids import WorkspaceId
from fairwater.domain.units import MIB, Bytes
from fairwater.node.cgroups import CONTROLLERS, Cgroups, Layout, Limits, limits_of
from fairwater.node.images.rate import WriteCeiling
from fairwater.node.images.volume import ImageVolume
from fairwater.ports.process import ExecRequest

pytestmark = [pytest.mark.root, pytest.mark.asyncio(loop_scope="module")]

TREE = Path("/sys/fs/cgroup")
WRITTEN, WRITE_RATE = 16 * MIB, 4 * MIB
BOMB = "import os, time\nwhile True:\n    try:\n        os.fork()\n    except OSError:\n        time.sleep(0.1)\n"


@pytest.fixture
def cgroups() -> Iterator[Cgroups]:
    cgroups = Cgroups("fairwater-test")
    cgroups.prepare()
    yield cgroups
    with contextlib.suppress(FileNotFoundError):
        cgroups.remove("s0")
    cgroups.shutdown()
    assert not (TREE / "fairwater-test").exists()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def workspace(lab: Lab) -> AsyncIterator[WorkspaceId]:
    yield await lab.start()


@pytest.fixture
def swap(data_dir: Path) -> Iterator[Path]:
    """Gives the machine as much swap as two workspaces have memory."""
    file = data_dir / "swap"
    file.touch(mode=0o600)
    with open(file, "wb") as opened:
        os.posix_fallocate(opened.fileno(), 0, SMALL.memory * 2)
    subprocess.run(["mkswap", "-q", file], check=True)
    subprocess.run(["swapon", file], check=True)
    yield file
    subprocess.run(["swapoff", file], check=True)
    file.unlink()


def limits_in(folder: Path) -> dict[str, str]:
    return {name: (folder / name).read_text().strip() for name in ("cpu.max", "memory.max", "pids.max")}


def group_of(lab: Lab, workspace: WorkspaceId) -> Path:
    """The folder of the group that the workspace's first process is in: the only one, with version 2."""
    (line,) = Path(f"/proc/{lab.init_pid(workspace)}/cgroup").read_text().splitlines()
    return TREE / line.removeprefix("0::/")


def events(folder: Path, kind: str) -> dict[str, int]:
    """How often a limit was met, as the kernel counts it."""
    words = (folder / f"{kind}.events").read_text().split()
    return {name: int(count) for name, count in zip(words[::2], words[1::2], strict=True)}


async def test_the_layout_is_found_as_version_2(cgroups: Cgroups) -> None:
    assert cgroups.layout is Layout.V2
    assert cgroups.v2_to_hide is None


async def test_controllers_are_handed_down_to_the_sandboxes_groups(cgroups: Cgroups) -> None:
    (TREE / "fairwater-test/s0").mkdir()
    assert set(CONTROLLERS) <= set((TREE / "fairwater-test/s0/cgroup.controllers").read_text().split())


async def test_limits_are_written_and_read_back(cgroups: Cgroups) -> None:
    folder = TREE / "fairwater-test/s0"
    folder.mkdir()
    limits = Limits(cpu_quota_us=50_000, memory=64 * 1024**2, processes=17)
    cgroups.limit("s0", limits)
    assert limits_in(folder) == {"cpu.max": "50000 100000", "memory.max": "67108864", "pids.max": "17"}
    assert cgroups.read("s0") == limits
    unlimited = Limits(None, None, None)
    cgroups.limit("s0", unlimited)
    assert limits_in(folder) == {"cpu.max": "max 100000", "memory.max": "max", "pids.max": "max"}
    assert cgroups.read("s0") == unlimited


async def test_a_group_is_put_behind_others_that_want_a_processor(cgroups: Cgroups) -> None:
    (TREE / "fairwater-test/s0").mkdir()
    cgroups.yield_processors("s0")
    assert (TREE / "fairwater-test/s0/cpu.weight").read_text() == "10\n"


async def test_what_a_pulls_group_writes_to_the_images_disk_is_held_to_its_rate(
    cgroups: Cgroups, data_dir: Path
) -> None:
    """Through the page cache, as tar writes: version 2 tells whose the pages are."""
    group = TREE / "fairwater-test/s0"
    group.mkdir()
    volume = ImageVolume(data_dir / "oci", Bytes(256 * MIB))
    device = volume.open()
    try:
        number = Path(device).stat().st_rdev
        took = {}
        for rate in (None, WRITE_RATE):
            WriteCeiling(rate).hold_group(device, Path(cgroups.path("s0")))
            shown = (group / "io.max").read_text()
            assert (f"{os.major(number)}:{os.minor(number)} " in shown and f"wbps={rate} " in shown) == bool(rate)
            took[rate] = write_as(group, volume.mount / "file")
        at_rate_s = WRITTEN / WRITE_RATE
        assert took[WRITE_RATE] > 0.75 * at_rate_s
        assert took[None] < 0.5 * at_rate_s, "the disk itself must be faster, or nothing is shown"
    finally:
        volume.close()


def write_as(group: Path, file: Path) -> float:
    """Seconds until a process of the group has written `WRITTEN` bytes and they are on the disk."""
    script = 'echo 0 >"$0/cgroup.procs" && exec dd if=/dev/urandom of="$1" bs=1M count="$2" conv=fsync status=none'
    began = time.monotonic()
    subprocess.run(["sh", "-c", script, group, file, str(WRITTEN // MIB)], check=True)
    return time.monotonic() - began


async def test_a_workspace_is_in_one_group_that_holds_its_limits(lab: Lab, workspace: WorkspaceId) -> None:
    limits = limits_of(SMALL)
    assert limits_in(group_of(lab, workspace)) == {
        "cpu.max": f"{limits.cpu_quota_us} 100000",
        "memory.max": str(limits.memory),
        "pids.max": str(limits.processes),
    }


async def test_commands_run_in_the_workspaces_group(lab: Lab, workspace: WorkspaceId) -> None:
    assert await lab.sh(workspace, "cat README; exit 3") == (3, "hello\n")
    process = await lab.node.access.exec(workspace, (await lab.facts(workspace)).run, ExecRequest(("sleep", "1000")))

    async def two() -> bool:
        return len((group_of(lab, workspace) / "cgroup.procs").read_text().split()) == 2

    await wait_for(two, "init and sleep to be in the group")
    await process.close()


async def test_a_memory_hog_is_killed_and_its_workspace_lives(lab: Lab, workspace: WorkspaceId) -> None:
    group = group_of(lab, workspace)
    status, _ = await lab.sh(workspace, f"python3 -c 'x = bytearray({SMALL.memory * 2})'")
    assert status == 128 + 9
    assert events(group, "memory")["oom_kill"] == 1
    assert await lab.sh(workspace, "echo alive") == (0, "alive\n")


async def test_swap_adds_nothing_to_a_workspaces_memory(lab: Lab, swap: Path) -> None:
    status, _ = await lab.sh(await lab.some(), f"python3 -c 'x = bytearray({SMALL.memory * 2})'")
    assert status == 128 + 9


async def test_a_fork_bomb_meets_its_workspaces_limit(lab: Lab, workspace: WorkspaceId) -> None:
    group = group_of(lab, workspace)
    bomb = ExecRequest(("python3", "-c", BOMB))
    process = await lab.node.access.exec(workspace, (await lab.facts(workspace)).run, bomb)

    async def held() -> bool:
        return events(group, "pids")["max"] > 0

    await wait_for(held, "the bomb to meet the limit")
    assert int((group / "pids.current").read_text()) <= SMALL.processes
    await process.close()


async def test_a_stop_removes_the_workspaces_group_with_all_in_it(lab: Lab, workspace: WorkspaceId) -> None:
    """The bomb of the test before is still in there."""
    group = group_of(lab, workspace)
    before = group.stat().st_ino
    assert (await lab.stop(workspace)).failure is None

    async def gone() -> bool:
        # The slot may have been parked anew meanwhile, with a group of the same name.
        return not group.exists() or group.stat().st_ino != before

    await wait_for(gone, "the group to be removed")
