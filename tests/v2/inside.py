"""What holds on a machine with cgroup v2 alone. Run in such a machine by `test_cgroup_v2`, or by name on your own."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.node.workspace.conftest import OpenLab
from tests.node.workspace.laboratory import SMALL, Lab, end_all

from fairwater.node.cgroups import CONTROLLERS, Cgroups, Layout, Limits, limits_of

pytestmark = [pytest.mark.root, pytest.mark.asyncio(loop_scope="module")]
TREE = Path("/sys/fs/cgroup")


@pytest.fixture
def cgroups() -> Iterator[Cgroups]:
    cgroups = Cgroups("fairwater-test")
    cgroups.prepare()
    yield cgroups
    with contextlib.suppress(FileNotFoundError):
        cgroups.remove("s0")
    cgroups.shutdown()
    assert not (TREE / "fairwater-test").exists()


def written(folder: Path) -> dict[str, str]:
    return {name: (folder / name).read_text().strip() for name in ("cpu.max", "memory.max", "pids.max")}


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
    assert written(folder) == {"cpu.max": "50000 100000", "memory.max": "67108864", "pids.max": "17"}
    assert cgroups.read("s0") == limits
    unlimited = Limits(None, None, None)
    cgroups.limit("s0", unlimited)
    assert written(folder) == {"cpu.max": "max 100000", "memory.max": "max", "pids.max": "max"}
    assert cgroups.read("s0") == unlimited


async def test_a_workspace_is_in_one_group_that_holds_its_limits(lab: Lab) -> None:
    workspace = await lab.start()
    assert await lab.sh(workspace, "echo here && cat README") == (0, "here\nhello\n")
    lines = Path(f"/proc/{lab.init_pid(workspace)}/cgroup").read_text().splitlines()
    assert len(lines) == 1
    folder = TREE / lines[0].removeprefix("0::/")
    limits = limits_of(SMALL)
    assert written(folder) == {
        "cpu.max": f"{limits.cpu_quota_us} 100000",
        "memory.max": str(limits.memory),
        "pids.max": str(limits.processes),
    }


async def test_nothing_of_a_stopped_workspace_stays_in_the_tree(open_lab: OpenLab) -> None:
    before = {folder.name for folder in TREE.iterdir() if folder.is_dir()}
    async with open_lab() as lab:
        workspace = await lab.start()
        assert {folder.name for folder in TREE.iterdir() if folder.is_dir()} > before
        assert (await lab.stop(workspace)).failure is None
        await end_all(lab)
    assert {folder.name for folder in TREE.iterdir() if folder.is_dir()} == before
