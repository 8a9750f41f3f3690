"""Volumes on this machine's kernel, in a folder that is empty again afterwards."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import subprocess
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest

from fairwater.domain.ids import WorkspaceId
from fairwater.node import linux
from fairwater.node.volumes import BtrfsVolumes

ID = WorkspaceId("abcdefgh2345")
Open = Callable[[], BtrfsVolumes]


@pytest.fixture
def folder() -> Iterator[Path]:
    """On a disk, where direct IO and sparse files work; its name lets what is left of it be found."""
    path = Path(tempfile.mkdtemp(prefix="fairwater-", dir="/var/tmp"))
    yield path
    for mount in mounts_below(path):
        linux.umount(mount, linux.MNT_DETACH)
    shutil.rmtree(path)


@pytest.fixture
def open_volumes(folder: Path) -> Open:
    """As an agent opens them when it starts, or starts again."""

    def make() -> BtrfsVolumes:
        volumes = BtrfsVolumes(folder / "volumes")
        volumes.prepare()
        return volumes

    return make


@pytest.fixture
def volumes(open_volumes: Open) -> BtrfsVolumes:
    return open_volumes()


def mounts_below(folder: Path) -> list[str]:
    """Mount points below `folder`, the innermost first."""
    points = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    return sorted((point for point in points if Path(point).is_relative_to(folder)), reverse=True)


def loop_devices(folder: Path) -> dict[str, str]:
    """The loop devices over files below `folder`, with what losetup says of direct IO: "1" where it is on."""
    listed = subprocess.run(
        ("losetup", "--list", "--noheadings", "--raw", "--output", "NAME,DIO,BACK-FILE"),
        check=True, capture_output=True, text=True,
    )  # fmt: skip
    rows = (line.split(maxsplit=2) for line in listed.stdout.splitlines())
    return {name: dio for name, dio, file in rows if Path(file).is_relative_to(folder)}


@contextlib.asynccontextmanager
async def process_within(root: Path, *, own_mounts: bool = False) -> AsyncIterator[None]:
    """A process whose current folder is on the volume; with `own_mounts`, it holds a copy of the mount instead."""
    command: tuple[str, ...] = ("sh", "-c", "echo ready; read -r _")
    if own_mounts:
        command = ("unshare", "--mount", "--propagation", "private", *command)
    process = await asyncio.create_subprocess_exec(
        *command, cwd="/" if own_mounts else root, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        assert await asyncio.wait_for(process.stdout.readline(), 10) == b"ready\n"
        yield
    finally:
        process.stdin.close()
        await asyncio.wait_for(process.wait(), 10)
