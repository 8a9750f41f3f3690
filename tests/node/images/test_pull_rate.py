"""Bringing in an image is held to its ceiling, all that it writes included, and leaves none behind."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
from tests.node.images.laboratory import StoreLab
from tests.servers.oci import Image, layer, write_layout

from fairwater.domain.units import MIB, Bytes
from fairwater.node import linux
from fairwater.node.images.rate import WriteCeiling

pytestmark = [pytest.mark.root, pytest.mark.asyncio(loop_scope="module")]

CEILING = Bytes(20 * MIB)
SIZE = 160 * MIB


async def rate_of_a_pull(lab: StoreLab, aside: Path, ceiling: Bytes | None) -> float:
    """Bytes a second that reach the images' disk while an image that cannot be packed is brought in."""
    image = Image((layer([(str(number), os.urandom(8 * MIB)) for number in range(SIZE // 8 // MIB)], "plain"),))
    layout = write_layout(aside / "layout", {"": image})
    async with lab.store(folders=(aside,), pull_rate=ceiling) as store:
        before, began = written(store.device), time.monotonic()
        await store.prepare(f"oci:{layout}", local_allowed=True)
        linux.sync_file_system(lab.folder / "store/mount")
        done, took = written(store.device) - before, time.monotonic() - began
        assert done >= SIZE
        return done / took


def written(device: str) -> int:
    """Bytes written to a device so far."""
    return int(Path(f"/sys/block/{Path(device).name}/stat").read_text().split()[6]) * 512


@pytest.mark.pm(51)
async def test_a_pull_writes_no_faster_than_its_ceiling(lab: StoreLab, aside: Path) -> None:
    assert await rate_of_a_pull(lab, aside, CEILING) <= 1.15 * CEILING


@pytest.mark.pm(51, sabotage=True)
async def test_without_the_ceiling_a_pull_takes_what_the_disk_has(lab: StoreLab, aside: Path) -> None:
    assert await rate_of_a_pull(lab, aside, None) > 1.5 * CEILING


async def test_a_ceiling_does_not_stay_with_the_devices_number(lab: StoreLab) -> None:
    async with lab.store(pull_rate=CEILING) as store:
        number = Path(store.device).stat().st_rdev
        assert str(int(CEILING)) in throttled().get(f"{os.major(number)}:{os.minor(number)}", "")
    assert f"{os.major(number)}:{os.minor(number)}" not in throttled()


async def test_the_ceiling_that_a_killed_agent_left_is_lifted_from_its_devices_next_owner(lab: StoreLab) -> None:
    other = lab.folder / "somebody-elses"
    other.write_bytes(bytes(MIB))
    with linux.loop_device(other) as device:
        number = Path(device).stat().st_rdev
        WriteCeiling(CEILING).hold_device(device)
        assert f"{os.major(number)}:{os.minor(number)}" in throttled()
        (lab.folder / "store").mkdir()
        (lab.folder / "store/device").write_text(device)
        async with lab.store(pull_rate=CEILING) as store:
            assert store.device != device
            assert f"{os.major(number)}:{os.minor(number)}" not in throttled()


def throttled() -> dict[str, str]:
    """Write ceilings by device, of the root group."""
    control = Path("/sys/fs/cgroup/blkio/blkio.throttle.write_bps_device")
    if not control.exists():
        pytest.skip("no blkio controller of version 1: the ceiling is the pull's own group's")
    pairs = (line.split() for line in control.read_text().splitlines())
    return {pair[0]: pair[1] for pair in pairs}
