"""What a volume promises beyond its port: a quota that holds, devices that are given back, content that survives."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from tests.node.volumes.conftest import ID, Open, loop_devices, mounts_below, process_within

from fairwater.domain.failure import Permanent, Temporary
from fairwater.domain.units import MIB, Bytes
from fairwater.domain.workspaces.run import VolumeState
from fairwater.node import linux
from fairwater.node.volumes import BtrfsVolumes

pytestmark = pytest.mark.root

QUOTA = Bytes(256 * MIB)


async def attached(volumes: BtrfsVolumes, quota: Bytes = QUOTA) -> Path:
    """The workspace's folder on a volume that is there and attached."""
    await volumes.create(ID, QUOTA)
    root = (await volumes.attach(ID, quota)).root
    assert root is not None
    return root / "workspace"


async def discard(volumes: BtrfsVolumes) -> None:
    await volumes.detach(ID)
    await volumes.delete(ID)


def fill(file: Path, limit: int) -> int:
    """Writes until the volume is full, or `limit` bytes are there; returns how many are. Raises what is not ENOSPC."""
    block = os.urandom(MIB)
    written = 0
    with open(file, "wb", buffering=0) as stream:
        try:
            while written < limit:
                written += stream.write(block)
            os.fsync(stream.fileno())
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
    return written


def image_of(folder: Path) -> Path:
    return folder / "volumes" / "images" / f"{ID}.img"


def run(*command: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, check=False, timeout=20, capture_output=True, text=True)


# ---------------------------------------------------------------- the quota


async def test_no_more_than_the_quota_can_be_written_and_a_full_volume_recovers(
    volumes: BtrfsVolumes, folder: Path
) -> None:
    content = await attached(volumes)
    (content / "small").write_text("kept")
    written = fill(content / "big", 2 * QUOTA)
    assert 0.4 * QUOTA < written < QUOTA
    assert image_of(folder).stat().st_size == QUOTA
    assert image_of(folder).stat().st_blocks * 512 <= QUOTA
    assert fill(content / "more", QUOTA) < 32 * MIB, "what is left is what could not take a whole block before"
    (content / "more").unlink()
    (content / "big").unlink()
    os.sync()
    assert (content / "small").read_text() == "kept"
    assert fill(content / "again", written // 2) >= written // 2, "what was full can be written to again"
    await discard(volumes)


async def test_a_full_volume_can_be_detached_and_attached_again(volumes: BtrfsVolumes) -> None:
    content = await attached(volumes)
    fill(content / "big", 2 * QUOTA)
    await volumes.detach(ID)
    content = await attached(volumes)
    (content / "big").unlink()
    os.sync()
    (content / "new").write_text("new")
    await discard(volumes)


async def test_an_image_takes_only_what_is_in_it(volumes: BtrfsVolumes, folder: Path) -> None:
    await volumes.create(ID, Bytes(8 * 1024 * MIB))
    assert image_of(folder).stat().st_size == 8 * 1024 * MIB
    assert image_of(folder).stat().st_blocks * 512 < 16 * MIB
    assert image_of(folder).stat().st_mode & 0o777 == 0o600
    await volumes.delete(ID)


async def test_a_volume_grows_to_a_larger_quota_with_its_content(volumes: BtrfsVolumes, folder: Path) -> None:
    content = await attached(volumes)
    (content / "kept").write_text("kept")
    await volumes.detach(ID)
    content = await attached(volumes, Bytes(2 * QUOTA))
    assert size_of(content) == 2 * QUOTA
    assert (content / "kept").read_text() == "kept"
    assert fill(content / "big", 3 * QUOTA) > QUOTA
    await discard(volumes)


async def test_a_volume_never_shrinks(volumes: BtrfsVolumes, folder: Path) -> None:
    await attached(volumes, Bytes(2 * QUOTA))
    await volumes.detach(ID)
    content = await attached(volumes, QUOTA)
    assert size_of(content) == 2 * QUOTA
    assert image_of(folder).stat().st_size == 2 * QUOTA
    await discard(volumes)


async def test_growing_that_was_interrupted_is_finished(volumes: BtrfsVolumes, folder: Path) -> None:
    """The file was made larger, and then the agent was killed."""
    await volumes.create(ID, QUOTA)
    os.truncate(image_of(folder), 2 * QUOTA)
    content = await attached(volumes, Bytes(2 * QUOTA))
    assert size_of(content) == 2 * QUOTA
    await discard(volumes)


def size_of(path: Path) -> int:
    numbers = os.statvfs(path)
    return numbers.f_blocks * numbers.f_frsize


# ---------------------------------------------------------------- attaching and detaching


async def test_its_loop_device_reads_and_writes_directly(volumes: BtrfsVolumes, folder: Path) -> None:
    await attached(volumes)
    assert list(loop_devices(folder).values()) == ["1"]
    await discard(volumes)


async def test_attached_twice_it_is_there_once(volumes: BtrfsVolumes, open_volumes: Open, folder: Path) -> None:
    content = await attached(volumes)
    assert await attached(volumes) == content
    assert await attached(open_volumes()) == content, "as after a restart of the agent"
    assert len(mounts_below(folder)) == len(loop_devices(folder)) == 1
    await discard(volumes)


async def test_nothing_is_left_after_detaching_and_deleting(volumes: BtrfsVolumes, folder: Path) -> None:
    await attached(volumes)
    await volumes.detach(ID)
    assert mounts_below(folder) == []
    assert loop_devices(folder) == {}
    await volumes.delete(ID)
    assert [path for path in (folder / "volumes").rglob("*") if path.name.startswith(ID)] == []


async def test_what_is_written_is_on_disk_after_detaching(volumes: BtrfsVolumes, folder: Path) -> None:
    content = await attached(volumes)
    data = os.urandom(MIB)
    (content / "data").write_bytes(data)
    await volumes.detach(ID)
    copy = folder / "copy.img"
    run("cp", "--sparse=always", image_of(folder), copy)
    checked = run("btrfs", "check", "--readonly", copy)
    assert checked.returncode == 0, checked.stderr
    assert (await attached(volumes) / "data").read_bytes() == data
    await discard(volumes)


async def test_no_privilege_comes_with_a_volume(volumes: BtrfsVolumes, folder: Path) -> None:
    content = await attached(volumes)
    (line,) = [line for line in Path("/proc/self/mountinfo").read_text().splitlines() if str(folder) in line]
    assert {"nosuid", "nodev"} <= set(line.split()[5].split(","))
    assert content.stat().st_uid == content.stat().st_gid == 1000
    assert (content.parent / "state").stat().st_mode & 0o077 == 0
    assert (folder / "volumes").stat().st_mode & 0o077 == 0
    await discard(volumes)


async def test_one_in_use_is_not_detached_and_is_afterwards(volumes: BtrfsVolumes, folder: Path) -> None:
    content = await attached(volumes)
    async with process_within(content):
        with pytest.raises(Temporary) as refused:
            await volumes.detach(ID)
        assert refused.value.code == "volume_in_use"
        assert (await volumes.find(ID)).state is VolumeState.ATTACHED
        with pytest.raises(Temporary):
            await volumes.delete(ID)
        assert image_of(folder).exists()
    await volumes.detach(ID)
    assert loop_devices(folder) == {}
    await volumes.delete(ID)


@pytest.mark.parametrize("restarted", [False, True], ids=["the same agent", "a restarted agent"])
@pytest.mark.parametrize("linked", [False, True], ids=["", "by way of a link"])
async def test_one_held_in_another_mount_namespace_is_neither_released_nor_attached_a_second_time(
    folder: Path, monkeypatch: pytest.MonkeyPatch, restarted: bool, linked: bool
) -> None:
    """Unmounting says nothing there: only the loop device tells. Through two devices, one file system would be two."""
    monkeypatch.setattr("fairwater.node.volumes._RELEASED_WITHIN_S", 0.1)
    (folder / "link").symlink_to(folder)
    place = folder / "link" / "volumes" if linked else folder / "volumes"
    volumes = BtrfsVolumes(place)
    volumes.prepare()
    content = await attached(volumes)
    (content / "kept").write_text("kept")
    async with process_within(content, own_mounts=True):
        if restarted:
            volumes = BtrfsVolumes(place)
            volumes.prepare()
        for _ in range(2):
            with pytest.raises(Temporary) as refused:
                await volumes.detach(ID)
            assert refused.value.code == "volume_in_use"
            assert (await volumes.find(ID)).state is VolumeState.ATTACHED
        again = await attached(volumes)
        assert len(loop_devices(folder)) == 1
        assert (again / "kept").read_text() == "kept"
    await discard(volumes)
    assert loop_devices(folder) == {}


# ---------------------------------------------------------------- damage and interruption


@pytest.mark.parametrize("damage", ["zeros", "cut off", "another file system"])
async def test_a_damaged_image_is_told_of_and_kept(volumes: BtrfsVolumes, folder: Path, damage: str) -> None:
    await attached(volumes)
    await volumes.detach(ID)
    image = image_of(folder)
    match damage:
        case "zeros":
            with linux.opened(image, os.O_RDWR) as file:
                for superblock in (64 * 1024, 64 * MIB):
                    os.pwrite(file, bytes(4096), superblock)
        case "cut off":
            os.truncate(image, 8 * MIB)
        case _:
            assert run("mkfs.ext4", "-q", "-F", image).returncode == 0
    size, blocks = image.stat().st_size, image.stat().st_blocks
    with pytest.raises(Permanent, match=str(image)) as refused:
        await volumes.attach(ID, Bytes(size))
    assert refused.value.code == "volume_damaged"
    assert (image.stat().st_size, image.stat().st_blocks) == (size, blocks)
    assert (await volumes.find(ID)).state is VolumeState.DETACHED
    assert loop_devices(folder) == {}
    await volumes.create(ID, QUOTA)
    assert image.stat().st_blocks == blocks, "what may still be rescued is not written over"
    await volumes.delete(ID)


KILLED = """
    import asyncio, os, signal
    from pathlib import Path
    from fairwater.domain.ids import WorkspaceId
    from fairwater.node import linux, volumes

    def killed(*_, **__):
        os.kill(os.getpid(), signal.SIGKILL)

    volumes.{name} = killed
    place = volumes.BtrfsVolumes(Path({folder!r}))
    asyncio.run(place.create(WorkspaceId({workspace!r}), {quota}))
"""


@pytest.mark.parametrize("name", ["_run", "linux.loop_device", "BtrfsVolumes._lay_out", "linux.umount", "Path.rename"])
async def test_a_creation_that_was_killed_is_begun_anew(
    volumes: BtrfsVolumes, open_volumes: Open, folder: Path, name: str
) -> None:
    script = textwrap.dedent(KILLED).format(
        name=name, folder=str(folder / "volumes"), workspace=str(ID), quota=int(QUOTA)
    )
    done = run(sys.executable, "-c", script)
    assert done.returncode == -9, done.stderr
    assert image_of(folder).with_suffix(".new").exists()
    assert not image_of(folder).exists()
    volumes = open_volumes()
    assert (await volumes.find(ID)).state is VolumeState.ABSENT, "what is not complete is not a volume"
    content = await attached(volumes)
    (content / "kept").write_text("kept")
    await volumes.detach(ID)
    assert mounts_below(folder) == []
    assert loop_devices(folder) == {}
    assert not image_of(folder).with_suffix(".new").exists()
    assert (await attached(volumes) / "kept").read_text() == "kept"
    await discard(volumes)


async def test_what_is_left_of_an_interrupted_creation_goes_with_the_volume(
    volumes: BtrfsVolumes, folder: Path
) -> None:
    image_of(folder).with_suffix(".new").write_bytes(bytes(MIB))
    await volumes.delete(ID)
    assert list(image_of(folder).parent.iterdir()) == []


async def test_on_a_disk_that_is_almost_full_no_volume_is_made(
    volumes: BtrfsVolumes, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fairwater.node.volumes.SPARE_MIN", 1 << 60)
    with pytest.raises(Temporary, match=f"free some space below {folder}") as refused:
        await volumes.create(ID, QUOTA)
    assert refused.value.code == "disk_full"
    assert list(image_of(folder).parent.iterdir()) == []


async def test_a_volume_that_cannot_be_formatted_leaves_nothing_that_looks_like_one(
    volumes: BtrfsVolumes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(OSError, match=r"mkfs\.btrfs"):
        await volumes.create(ID, QUOTA)
    assert (await volumes.find(ID)).state is VolumeState.ABSENT
    await volumes.delete(ID)


async def test_there_is_no_volume_to_attach_before_one_is_created(volumes: BtrfsVolumes, folder: Path) -> None:
    with pytest.raises((Permanent, OSError)):
        await volumes.attach(ID, QUOTA)
    assert loop_devices(folder) == {}
    assert (await volumes.find(ID)).state is VolumeState.ABSENT
    await volumes.delete(ID)
