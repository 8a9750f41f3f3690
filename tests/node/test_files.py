"""Files in and out of a volume: plain use, and what a hostile workspace lays in the way."""

from __future__ import annotations

import asyncio
import ctypes
import os
import resource
import socket
import stat
import subprocess
import threading
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest

from fairwater.domain.failure import Permanent, Temporary
from fairwater.node import files as files_module
from fairwater.node.files import VolumeFiles


@pytest.fixture
def volume(tmp_path: Path) -> Iterator[Path]:
    for name in ("workspace", "home", "state"):
        (tmp_path / "volume" / name).mkdir(parents=True)
    before = names(Path("/proc/self/fd"))
    yield tmp_path / "volume"
    assert len(names(Path("/proc/self/fd"))) <= len(before) + 4, "descriptors were left open"


@pytest.fixture
def files(volume: Path) -> VolumeFiles:
    return VolumeFiles(volume)


def names(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


async def chunks(*parts: bytes) -> AsyncIterator[bytes]:
    for part in parts:
        yield part


async def read(files: VolumeFiles, path: str) -> bytes:
    return b"".join([chunk async for chunk in files.read_file(path)])


async def code_of_reading(files: VolumeFiles, path: str) -> str:
    with pytest.raises(Permanent) as failure:
        await read(files, path)
    return failure.value.code


async def code_of_writing(files: VolumeFiles, path: str) -> str:
    with pytest.raises(Permanent) as failure:
        await files.write_file(path, chunks(b"evil"))
    return failure.value.code


async def test_what_is_written_is_read_back_from_both_roots(files: VolumeFiles, volume: Path) -> None:
    assert await files.write_file("/workspace/a/b/c.txt", chunks(b"one ", b"two")) == 7
    assert await files.write_file("/home/dev/.profile", chunks()) == 0
    assert await read(files, "/workspace//a/./b/../b/c.txt") == b"one two"
    assert await read(files, "/workspace/../home/dev/.profile") == b""
    assert (volume / "workspace/a/b/c.txt").read_bytes() == b"one two"
    assert (volume / "home/.profile").exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
async def test_what_is_made_belongs_to_the_workspace_and_a_replaced_file_keeps_its_mode(
    files: VolumeFiles, volume: Path
) -> None:
    await files.write_file("/workspace/a/b/run.sh", chunks(b"#!/bin/sh"))
    script = volume / "workspace/a/b/run.sh"
    for made in (script, script.parent, script.parent.parent):
        assert (made.stat().st_uid, made.stat().st_gid) == (1000, 1000)
    assert stat.S_IMODE(script.stat().st_mode) == 0o644
    script.chmod(0o6755)
    os.chown(script, 0, 0)
    await files.write_file("/workspace/a/b/run.sh", chunks(b"new"))
    assert stat.S_IMODE(script.stat().st_mode) == 0o755
    assert script.stat().st_uid == 1000
    assert [entry.name for entry in script.parent.iterdir()] == ["run.sh"]


@pytest.mark.parametrize(
    "path",
    [
        "/",
        "/home",
        "/home/other/x",
        "/etc/passwd",
        "/workspace/../etc/passwd",
        "/workspace/../../etc/passwd",
        "/workspace/a/../../etc/passwd",
        "/workspace/../state/x",
        "/workspacex/a",
        "/home/dev/../x",
        "workspace/a",
        "../workspace/a",
        "",
    ],
)
async def test_a_path_elsewhere_is_outside(files: VolumeFiles, volume: Path, path: str) -> None:
    (volume / "workspace/a").mkdir()
    (volume / "state/x").write_text("secret")
    assert await code_of_reading(files, path) == "outside"
    assert await code_of_writing(files, path) == "outside"


@pytest.mark.parametrize(
    "target",
    [
        "/etc/passwd",
        "../../state/secret",
        "../../../../../../etc/passwd",
        "/proc/self/root/etc/passwd",
        "/workspace/../state/secret",
        "/home/dev/../../state/secret",
        "/home/dev/../../etc/passwd",
        "elsewhere/passwd",
    ],
)
async def test_a_link_out_of_the_volume_is_outside(files: VolumeFiles, volume: Path, target: str) -> None:
    (volume / "state/secret").write_text("secret")
    (volume / "workspace/elsewhere").symlink_to("/etc")
    (volume / "workspace/link").symlink_to(target)
    assert await code_of_reading(files, "/workspace/link") == "outside"
    assert await code_of_writing(files, "/workspace/link") == "outside"
    assert await code_of_writing(files, "/workspace/elsewhere/new") == "outside"
    assert (volume / "state/secret").read_text() == "secret"


async def test_links_work_as_they_do_inside(files: VolumeFiles, volume: Path) -> None:
    (volume / "workspace/repo").mkdir()
    (volume / "workspace/repo/real").write_text("found")
    (volume / "workspace/relative").symlink_to("repo/../repo/real")
    (volume / "home/repo").symlink_to("/workspace/repo")
    (volume / "workspace/there").symlink_to("/home/dev/repo")
    (volume / "workspace/repo/up").symlink_to("../relative")
    (volume / "workspace/repo/across").symlink_to("../../home/dev/repo/real")
    for path in ("relative", "there/real", "repo/up", "repo/across", "there/../relative", "there/../repo/./real"):
        assert await read(files, f"/workspace/{path}") == b"found", path
    assert await read(files, "/home/dev/repo/real") == b"found"


async def test_writing_through_a_link_writes_what_it_names_even_where_nothing_is_yet(
    files: VolumeFiles, volume: Path
) -> None:
    (volume / "home/link").symlink_to("/workspace/new/file")
    await files.write_file("/home/dev/link", chunks(b"through"))
    assert (volume / "workspace/new/file").read_bytes() == b"through"
    assert (volume / "home/link").is_symlink()


async def test_links_in_a_circle_and_endless_walks_are_refused(files: VolumeFiles, volume: Path) -> None:
    (volume / "workspace/a").symlink_to("b")
    (volume / "workspace/b").symlink_to("/workspace/a")
    (volume / "workspace/self").symlink_to("self/self")
    (volume / "workspace/wide").symlink_to("x/../" * 800 + "wide2")
    (volume / "workspace/wide2").symlink_to("x/../" * 800 + "wide")
    (volume / "workspace/x").mkdir()
    for name in ("a", "self", "self/x", "wide"):
        assert await code_of_reading(files, f"/workspace/{name}") == "bad_path"


async def test_forty_links_are_followed(files: VolumeFiles, volume: Path) -> None:
    (volume / "workspace/0").write_text("end")
    for number in range(1, 42):
        (volume / f"workspace/{number}").symlink_to(str(number - 1))
    assert await read(files, "/workspace/40") == b"end"
    assert await code_of_reading(files, "/workspace/41") == "bad_path"


async def test_fifos_sockets_and_folders_are_not_read_or_written_and_nobody_waits(
    files: VolumeFiles, volume: Path
) -> None:
    os.mkfifo(volume / "workspace/fifo")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(volume / "workspace/socket"))
    (volume / "workspace/folder").mkdir()
    expected = {"fifo": "not_a_file", "socket": "not_a_file", "folder": "is_folder", "folder/": "is_folder"}
    async with asyncio.timeout(10):
        for name, code in expected.items():
            assert await code_of_reading(files, f"/workspace/{name}") == code
            assert await code_of_writing(files, f"/workspace/{name}") == code
    assert stat.S_ISFIFO((volume / "workspace/fifo").stat().st_mode)


@pytest.mark.root
async def test_a_device_is_not_opened(files: VolumeFiles, volume: Path) -> None:
    os.mknod(volume / "workspace/null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    assert await code_of_reading(files, "/workspace/null") == "not_a_file"
    assert await code_of_writing(files, "/workspace/null") == "not_a_file"


async def test_what_is_missing_and_what_is_in_the_way_are_told_apart(files: VolumeFiles, volume: Path) -> None:
    (volume / "workspace/file").write_text("x")
    assert await code_of_reading(files, "/workspace/none") == "no_such_file"
    assert await code_of_reading(files, "/workspace/none/none") == "no_such_file"
    assert await code_of_reading(files, "/workspace/file/below") == "not_a_folder"
    assert await code_of_writing(files, "/workspace/file/below") == "not_a_folder"
    assert await code_of_writing(files, "/workspace") == "is_folder"
    assert await code_of_writing(files, "/workspace/new/") == "is_folder"


@pytest.mark.parametrize(
    "path", ["/workspace/" + "x" * 256, "/workspace/" + "x/" * 3000, "/workspace/a\0b", "/workspace/\ud800"]
)
async def test_paths_that_cannot_be_are_refused(files: VolumeFiles, path: str) -> None:
    assert await code_of_reading(files, path) == "bad_path"
    assert await code_of_writing(files, path) == "bad_path"


async def test_names_need_not_be_text(files: VolumeFiles, volume: Path) -> None:
    name = os.fsdecode(b"caf\xe9")
    await files.write_file(f"/workspace/{name}", chunks(b"coffee"))
    assert (os.fsencode(volume) + b"/workspace/caf\xe9").endswith(b"\xe9")
    assert [entry.name for entry in (await files.list_folder("/workspace")).entries] == [name]
    assert await read(files, f"/workspace/{name}") == b"coffee"


async def test_a_listing_tells_kinds_and_sizes_in_order(files: VolumeFiles, volume: Path) -> None:
    place = volume / "workspace"
    (place / "b").write_text("12345")
    (place / "a").mkdir()
    (place / "c").symlink_to("/etc/passwd")
    os.mkfifo(place / "d")
    listing = await files.list_folder("/workspace")
    assert not listing.cut
    kinds = [(entry.name, entry.kind) for entry in listing.entries]
    assert kinds == [("a", "folder"), ("b", "file"), ("c", "symlink"), ("d", "other")]
    assert listing.entries[1].size == 5
    assert listing.entries[1].modified_at == pytest.approx((place / "b").stat().st_mtime)
    for path, code in (("/workspace/b", "not_a_folder"), ("/workspace/none", "no_such_file"), ("/", "outside")):
        with pytest.raises(Permanent) as failure:
            await files.list_folder(path)
        assert failure.value.code == code


async def test_a_listing_is_bounded_and_says_so(
    files: VolumeFiles, volume: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files_module, "LISTED_MAX", 3)
    for number in range(4):
        (volume / f"workspace/{number}").touch()
    listing = await files.list_folder("/workspace")
    assert (len(listing.entries), listing.cut) == (3, True)


async def test_deleting_takes_a_link_not_what_it_names_and_no_full_folder(files: VolumeFiles, volume: Path) -> None:
    (volume / "workspace/kept").write_text("kept")
    (volume / "workspace/link").symlink_to("kept")
    (volume / "workspace/full/file").parent.mkdir()
    (volume / "workspace/full/file").touch()
    await files.delete("/workspace/link")
    assert (volume / "workspace/kept").exists()
    for path, code in (("full", "folder_not_empty"), ("none", "no_such_file"), ("", "outside")):
        with pytest.raises(Permanent) as failure:
            await files.delete(f"/workspace/{path}")
        assert failure.value.code == code
    await files.delete("/workspace/full/file")
    await files.delete("/workspace/full")
    assert not (volume / "workspace/full").exists()


async def test_an_interrupted_write_leaves_the_old_file_and_nothing_else(files: VolumeFiles, volume: Path) -> None:
    (volume / "workspace/file").write_text("old")

    async def broken() -> AsyncIterator[bytes]:
        yield b"new"
        raise ConnectionResetError("the client left")

    with pytest.raises(ConnectionResetError):
        await files.write_file("/workspace/file", broken())
    never = asyncio.Event()
    begun = asyncio.Event()

    async def endless() -> AsyncIterator[bytes]:
        yield b"new"
        begun.set()
        await never.wait()

    writing = asyncio.ensure_future(files.write_file("/workspace/file", endless()))
    await asyncio.wait_for(begun.wait(), 10)
    writing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await writing
    assert (volume / "workspace/file").read_text() == "old"
    assert names(volume / "workspace") == ["file"]


async def test_a_full_disk_leaves_the_old_file(files: VolumeFiles, volume: Path) -> None:
    (volume / "workspace/file").write_text("old")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))  # EFBIG stands in; EDQUOT is tried on a real quota below
    try:
        with pytest.raises(Permanent) as failure:
            await files.write_file("/workspace/file", chunks(b"x" * 4096, b"x"))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert failure.value.code == "quota_exceeded"
    assert (volume / "workspace/file").read_text() == "old"
    assert names(volume / "workspace") == ["file"]


async def test_without_nameless_files_a_write_is_whole_too(
    files: VolumeFiles, volume: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "O_TMPFILE", os.O_DIRECTORY | os.O_WRONLY)  # refused like on a file system without them
    await files.write_file("/workspace/file", chunks(b"new"))
    assert (volume / "workspace/file").read_text() == "new"
    assert names(volume / "workspace") == ["file"]


async def test_large_files_pass_whole(files: VolumeFiles) -> None:
    part = os.urandom(1 << 20)
    assert await files.write_file("/workspace/large", chunks(*[part] * 20)) == 20 << 20
    assert await read(files, "/workspace/large") == part * 20


def exchange_folder(place: Path, outside: Path) -> None:
    """Swaps `folder` with a link to the machine's own, in one step: something always has the name."""
    if not (place / "trap").exists():
        (place / "trap").symlink_to(outside)
    here = os.fsencode(place)
    assert ctypes.CDLL(None).renameat2(-100, here + b"/trap", -100, here + b"/folder", 2) == 0


def exchange_file(place: Path, outside: Path) -> None:
    (place / "trap").symlink_to(outside / "file")
    (place / "trap").rename(place / "folder/file")
    (place / "trap").write_text("mine")
    (place / "trap").rename(place / "folder/file")


@pytest.mark.parametrize("exchange", [exchange_folder, exchange_file])
async def test_swapping_what_is_on_the_way_never_leads_outside(
    files: VolumeFiles, volume: Path, tmp_path: Path, exchange: Callable[[Path, Path], None]
) -> None:
    secret = tmp_path / "machine"
    secret.mkdir()
    (secret / "file").write_text("secret")
    place = volume / "workspace"
    (place / "folder").mkdir()
    (place / "folder/file").write_text("mine")
    stop = threading.Event()

    def swap() -> None:
        while not stop.is_set():
            exchange(place, secret)

    swapper = threading.Thread(target=swap)
    swapper.start()
    seen: Counter[str] = Counter()
    try:
        for number in range(2000):
            try:
                if number % 2:
                    assert await read(files, "/workspace/folder/file") in (b"mine", b"written", b"")
                else:
                    await files.write_file("/workspace/folder/file", chunks(b"written"))
                seen["done"] += 1
            except (Permanent, Temporary) as failure:
                seen[failure.code] += 1
    finally:
        stop.set()
        swapper.join()
    assert (secret / "file").read_text() == "secret"
    assert names(secret) == ["file"]
    assert seen["done"] > 20, seen
    assert seen["outside"] > 20, seen
    assert set(seen) <= {"done", "outside", "changed_meanwhile"}, seen


def machine(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True)


@pytest.fixture
def small_volume(tmp_path: Path) -> Iterator[Path]:
    """A volume of its own file system: btrfs on a sparse file, as workspaces have them."""
    image, mounted = tmp_path / "image", tmp_path / "mounted"
    mounted.mkdir()
    with image.open("wb") as file:
        file.truncate(120 << 20)
    machine("mkfs.btrfs", "-q", str(image))
    machine("mount", "-o", "loop,nosuid,nodev", str(image), str(mounted))
    try:
        for name in ("workspace", "home", "state"):
            (mounted / name).mkdir()
        yield mounted
    finally:
        machine("umount", str(mounted))


@pytest.mark.root
async def test_a_full_volume_leaves_the_old_file(small_volume: Path) -> None:
    files = VolumeFiles(small_volume)
    await files.write_file("/workspace/file", chunks(b"old"))
    part = os.urandom(1 << 20)
    with pytest.raises(Permanent) as failure:
        await files.write_file("/workspace/file", chunks(*[part] * 200))
    assert failure.value.code == "quota_exceeded"
    assert await read(files, "/workspace/file") == b"old"
    assert names(small_volume / "workspace") == ["file"]


@pytest.mark.root
async def test_another_mount_below_the_volume_is_outside(small_volume: Path) -> None:
    below = small_volume / "workspace/mounted"
    below.mkdir()
    machine("mount", "-t", "tmpfs", "none", str(below))
    try:
        (below / "file").write_text("secret")
        assert await code_of_reading(VolumeFiles(small_volume), "/workspace/mounted/file") == "outside"
        assert await code_of_writing(VolumeFiles(small_volume), "/workspace/mounted/file") == "outside"
    finally:
        machine("umount", str(below))


@pytest.mark.root
async def test_a_subvolume_inside_is_part_of_the_volume(small_volume: Path) -> None:
    machine("btrfs", "subvolume", "create", str(small_volume / "workspace/sub"))
    files = VolumeFiles(small_volume)
    await files.write_file("/workspace/sub/file", chunks(b"in"))
    assert await read(files, "/workspace/sub/file") == b"in"
