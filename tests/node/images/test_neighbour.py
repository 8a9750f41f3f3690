"""What a pull costs a workspace beside it, on a disk of a known rate that both share."""

from __future__ import annotations

import asyncio
import os
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from tests.node.images.laboratory import StoreLab
from tests.servers.oci import Image, layer, write_layout

from fairwater.domain.ids import WorkspaceId
from fairwater.domain.units import GIB, MIB, Bytes
from fairwater.node import linux
from fairwater.node.images.rate import WriteCeiling
from fairwater.node.volumes import BtrfsVolumes

pytestmark = [
    pytest.mark.root,
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.skipif(
        not Path("/sys/fs/cgroup/blkio/blkio.throttle.write_bps_device").exists(),
        reason="needs the blkio controller of version 1, to hold a whole disk to a rate",
    ),
]

DISK_RATE = Bytes(60 * MIB)
CEILING = Bytes(15 * MIB)
IMAGE = 120 * MIB
ALONE_S = 2.0
SLOWDOWN_MAX = 8.0
"""Measured on two busy cores: 0.8 to 2.2 with the ceiling, 17 to 57 without."""
WORKSPACE = WorkspaceId("neighbour0001")


@pytest.fixture
def disk(lab: StoreLab, aside: Path) -> Iterator[Path]:
    """The lab's folder on a disk that takes `DISK_RATE`, whoever writes to it."""
    image = aside / "disk.img"
    with open(image, "wb") as file:
        file.truncate(4 * GIB)
    subprocess.run(("mkfs.ext4", "-q", "-F", "-m", "0", image), check=True)
    with linux.loop_device(image) as device:
        linux.mount(device, lab.folder, "ext4")
        ceiling = WriteCeiling(DISK_RATE)
        ceiling.hold_device(device)
        try:
            yield lab.folder
        finally:
            ceiling.lift_device(device)
            linux.umount(lab.folder)


@dataclass
class Neighbour:
    """Writes a page and waits until it is on the disk, over and over; `times` in seconds."""

    folder: Path
    times: list[float] = field(default_factory=list)
    over: bool = False

    def write(self) -> None:
        page = os.urandom(4096)
        with open(self.folder / "workspace/log", "wb", buffering=0) as file:
            while not self.over:
                began = time.monotonic()
                file.write(page)
                os.fsync(file.fileno())
                self.times.append(time.monotonic() - began)

    def wait(self) -> float:
        """How long the write takes that is under way at some moment, on average over all moments."""
        return sum(time * time for time in self.times) / sum(self.times)


async def slowdown(lab: StoreLab, aside: Path, disk: Path, ceiling: Bytes | None) -> float:
    """How many times as long the neighbour waits for its disk beside a pull as alone."""
    image = Image((layer([(str(number), os.urandom(8 * MIB)) for number in range(IMAGE // 8 // MIB)], "plain"),))
    layout = write_layout(aside / "layout", {"": image})
    volumes = BtrfsVolumes(disk / "volumes")
    volumes.prepare()
    await volumes.create(WORKSPACE, Bytes(256 * MIB))
    volume = (await volumes.attach(WORKSPACE, Bytes(256 * MIB))).root
    assert volume is not None
    waits = []
    async with lab.store(folders=(aside,), pull_rate=ceiling) as store:
        linux.sync_file_system(disk)
        for work in (asyncio.sleep(ALONE_S), store.prepare(f"oci:{layout}", local_allowed=True)):
            one = Neighbour(volume)
            writing = asyncio.create_task(asyncio.to_thread(one.write))
            await work
            one.over = True
            await writing
            waits.append(one.wait())
    await volumes.detach(WORKSPACE)
    await volumes.delete(WORKSPACE)
    return waits[1] / waits[0]


@pytest.mark.pm(51)
async def test_a_workspace_writes_on_beside_a_pull(lab: StoreLab, aside: Path, disk: Path) -> None:
    assert await slowdown(lab, aside, disk, CEILING) < SLOWDOWN_MAX


@pytest.mark.pm(51, sabotage=True)
async def test_without_the_ceiling_a_pull_stops_its_neighbours_writes(lab: StoreLab, aside: Path, disk: Path) -> None:
    assert await slowdown(lab, aside, disk, None) > SLOWDOWN_MAX
