"""Layers that want out, or in where they do not belong; and the odd ones that are fine."""

from __future__ import annotations

import os
import stat
import tarfile
from pathlib import Path

import pytest
from tests.node.images.laboratory import StoreLab, content, entries
from tests.servers.oci import Entry, Image, busybox, layer, layer_of, member, tar, write_layout

from fairwater.domain.failure import Permanent

pytestmark = [pytest.mark.root, pytest.mark.asyncio(loop_scope="module")]


@pytest.mark.parametrize(
    "hostile",
    [
        [("../../escaped", b"1")],
        [("a/../../../escaped", b"1")],
        [("link", "-> ../../.."), ("link/escaped", b"1")],
        [("link", "-> /workspace"), ("link/escaped", b"1")],
        [("link", "-> /"), ("link/workspace/escaped", b"1")],
        [("deep/", b""), ("deep/link", "-> ../../../done"), ("deep/link/escaped", b"1")],
        [("hard", member("hard", type=tarfile.LNKTYPE, linkname="../../escaped"))],
        [("hard", member("hard", type=tarfile.LNKTYPE, linkname="/etc/passwd"))],
        [("far", member("far", uid=70_000))],
    ],
    ids=["dots", "dots-inside", "link-up", "link-away", "link-root", "link-done", "hard-up", "hard-away", "far-id"],
)
async def test_nothing_gets_out_of_a_layer(lab: StoreLab, aside: Path, hostile: list[tuple[str, Entry]]) -> None:
    layout = write_layout(aside / "layout", {"": Image((layer(hostile),))})
    async with lab.store(folders=(aside,)) as store:
        try:
            root = await store.prepare(f"oci:{layout}", local_allowed=True)
        except Permanent as failure:
            assert failure.code == "bad_image"  # noqa: PT017 - either is right, getting out is not
            assert lab.layers == set()
        else:
            assert content(root, "/escaped") is None
        mount = lab.folder / "store/mount"
        escaped = [path for path in mount.rglob("*escaped*") if not path.is_relative_to(mount / "layers")]
        assert escaped == []
        assert lab.left_over == []
    assert not Path("/escaped").exists()


async def test_an_absolute_name_stays_inside(lab: StoreLab, aside: Path) -> None:
    layout = write_layout(aside / "layout", {"": Image((layer([("/etc/x", b"inside")]),))})
    async with lab.store(folders=(aside,)) as store:
        assert content(await store.prepare(f"oci:{layout}", local_allowed=True), "/etc/x") == b"inside"


async def test_device_nodes_are_left_out_and_setuid_stays_harmless(lab: StoreLab, aside: Path) -> None:
    odd: list[tuple[str, Entry]] = [
        ("dev/", b""),
        ("dev/sda", member("dev/sda", type=tarfile.BLKTYPE, devmajor=8, devminor=0)),
        ("dev/null", member("dev/null", type=tarfile.CHRTYPE, devmajor=1, devminor=3)),
        ("su", member("su", mode=0o4755, size=3)),
        ("pipe", member("pipe", type=tarfile.FIFOTYPE)),
    ]
    layout = write_layout(aside / "layout", {"": Image((layer(odd),))})
    async with lab.store(folders=(aside,)) as store:
        root = await store.prepare(f"oci:{layout}", local_allowed=True)
        assert entries(root, "/dev") == set()
        assert entries(root) == {"dev", "su", "pipe"}
        info = (root.layers[0] / "su").stat()
        assert info.st_mode & stat.S_ISUID
        assert os.statvfs(root.layers[0]).f_flag & (os.ST_NOSUID | os.ST_NODEV) == os.ST_NOSUID | os.ST_NODEV


async def test_marks_of_overlayfs_cannot_be_smuggled_in(lab: StoreLab, aside: Path) -> None:
    marks = {
        "SCHILY.xattr.user.overlay.opaque": "y",
        "SCHILY.xattr.user.overlay.redirect": "/etc",
        "SCHILY.xattr.trusted.overlay.opaque": "y",
        "SCHILY.xattr.user.kept": "yes",
    }
    low = layer([("a/", b""), ("a/below", b"1")])
    top = layer([("a", member("a", type=tarfile.DIRTYPE, mode=0o755, pax_headers=marks))])
    layout = write_layout(aside / "layout", {"": Image((low, top))})
    async with lab.store(folders=(aside,)) as store:
        root = await store.prepare(f"oci:{layout}", local_allowed=True)
        assert entries(root, "/a") == {"below"}
        assert os.listxattr(root.layers[0] / "a") == ["user.kept"]


async def test_hard_links_owners_and_times_are_kept(lab: StoreLab, aside: Path) -> None:
    kept: list[tuple[str, Entry]] = [
        ("one", member("one", size=4, uid=1234, gid=50, mode=0o640, mtime=1_000_000_000)),
        ("two", member("two", type=tarfile.LNKTYPE, linkname="one")),
    ]
    layout = write_layout(aside / "layout", {"": Image((layer(kept),))})
    async with lab.store(folders=(aside,)) as store:
        root = await store.prepare(f"oci:{layout}", local_allowed=True)
        one, two = ((root.layers[0] / name).stat() for name in ("one", "two"))
        assert one.st_ino == two.st_ino
        assert (one.st_uid, one.st_gid, stat.S_IMODE(one.st_mode), one.st_mtime) == (1234, 50, 0o640, 1e9)


@pytest.mark.parametrize("packing", ["gzip", "zstd", "plain"])
async def test_each_packing_is_unpacked(lab: StoreLab, aside: Path, packing: str) -> None:
    layout = write_layout(aside / "layout", {"": Image((layer([("a", b"1")], packing),))})
    async with lab.store(folders=(aside,)) as store:
        assert content(await store.prepare(f"oci:{layout}", local_allowed=True), "/a") == b"1"


@pytest.mark.parametrize("cut", ["gzip", "tar"])
async def test_a_layer_that_ends_in_the_middle_is_refused(lab: StoreLab, aside: Path, cut: str) -> None:
    whole = tar([("a", bytes(range(256)) * 4096)])
    if cut == "tar":
        broken = layer_of(whole[: len(whole) // 2])
    else:
        packed = layer_of(whole)
        broken = type(packed)(packed.packed[: len(packed.packed) // 2], packed.diff_id)
    layout = write_layout(aside / "layout", {"": Image((broken,))})
    async with lab.store(folders=(aside,)) as store:
        with pytest.raises(Permanent) as failure:
            await store.prepare(f"oci:{layout}", local_allowed=True)
        assert failure.value.code in {"image_damaged", "bad_image"}
        assert lab.layers == set()


async def test_the_same_layer_twice_and_no_layer_at_all_are_fine(lab: StoreLab, aside: Path) -> None:
    one, two = layer([("a", b"1")]), layer([("a", b"2")])
    layout = write_layout(aside / "layout", {"twice": Image((one, two, one)), "none": Image(())})
    async with lab.store(folders=(aside,)) as store:
        twice = await store.prepare(f"oci:{layout}:twice", local_allowed=True)
        assert content(twice, "/a") == b"1"
        assert len(twice.layers) == 2
        assert entries(await store.prepare(f"oci:{layout}:none", local_allowed=True)) == set()


async def test_a_user_that_the_image_does_not_have_is_refused(lab: StoreLab, aside: Path) -> None:
    layout = write_layout(aside / "layout", {"": busybox(User="nobody-here")})
    async with lab.store(folders=(aside,)) as store:
        with pytest.raises(Permanent, match="nobody-here") as failure:
            await store.prepare(f"oci:{layout}", local_allowed=True)
        assert failure.value.code == "bad_image"


async def test_users_are_read_inside_the_image(lab: StoreLab, aside: Path) -> None:
    out = layer([("etc/", b""), ("etc/passwd", "-> ../../../../../../etc/passwd"), ("etc/group", "-> /proc/self/maps")])
    layout = write_layout(aside / "layout", {"": Image((out, layer([("x", b"")])))})
    async with lab.store(folders=(aside,)) as store:
        root = await store.prepare(f"oci:{layout}", local_allowed=True)
        assert root.users == ()
        assert (root.user.uid, root.user.home) == (0, "/root")


async def test_folders_nested_as_deep_as_a_path_can_tell_are_removed_again(lab: StoreLab, aside: Path) -> None:
    layout = write_layout(aside / "layout", {"": Image((layer([("a/" * 1900, b"")]),))})
    async with lab.store(folders=(aside,)) as store:
        await store.prepare(f"oci:{layout}", local_allowed=True)
        lab.clock.at += 1000
        await store._collection.make_room(1 << 60)
        assert lab.layers == set()
        assert lab.left_over == []
    async with lab.store(folders=(aside,)) as store:
        await store.prepare(f"oci:{layout}", local_allowed=True)
        (lab.folder / "store/mount/removed/left").mkdir()
        (lab.folder / "store/mount/layers").rename(lab.folder / "store/mount/removed/left/layers")
        (lab.folder / "store/mount/layers").mkdir()
    async with lab.store(folders=(aside,)):
        assert lab.left_over == []
