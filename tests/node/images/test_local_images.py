"""Images in folders and archives of the machine: for the local administrator, below listed folders, and fresh."""

from __future__ import annotations

import asyncio
import subprocess
from pathlib import Path

import pytest
from tests.node.images.laboratory import StoreLab, Told, content, reachable_port, secrets_for
from tests.servers.oci import Image, blob_path, busybox, layer, write_archive, write_layout
from tests.servers.registry import PASSWORD, USER, Registry, docker_registry

from fairwater.domain.failure import Permanent

pytestmark = [pytest.mark.root, pytest.mark.asyncio(loop_scope="module")]


async def test_a_folder_is_used_by_tag(lab: StoreLab, aside: Path) -> None:
    one, two = busybox(Env=["N=1"]), busybox(Env=["N=2"])
    layout = write_layout(aside / "layout", {"one": one, "two": two})
    async with lab.store(folders=(aside,)) as store:
        assert (await store.prepare(f"oci:{layout}:two", local_allowed=True)).digest == two.digest
        assert (await store.prepare(f"oci:{layout}:one", local_allowed=True)).environment == (("N", "1"),)
        with pytest.raises(Permanent, match="one, two") as failure:
            await store.prepare(f"oci:{layout}:three", local_allowed=True)
        assert failure.value.code == "no_such_image"
        with pytest.raises(Permanent, match="one, two"):
            await store.prepare(f"oci:{layout}", local_allowed=True)


async def test_a_folder_that_has_changed_is_read_anew(lab: StoreLab, aside: Path) -> None:
    old, new = busybox(Env=["N=1"]), busybox(Env=["N=2"])
    layout = write_layout(aside / "layout", {"": old})
    async with lab.store(folders=(aside,)) as store:
        await store.prepare(f"oci:{layout}", local_allowed=True)
        assert await store.find(f"oci:{layout}") is not None
        layout.rename(aside / "before")
        write_layout(layout, {"": new})
        assert await store.find(f"oci:{layout}") is None
        assert (await store.prepare(f"oci:{layout}", local_allowed=True)).digest == new.digest


async def test_archives_of_both_kinds_are_used(lab: StoreLab, aside: Path) -> None:
    layout = write_layout(aside / "layout", {"1": busybox(User="app")})
    archive = write_archive(aside / "image.tar", layout)
    saved = aside / "saved.tar"
    copy = ("skopeo", "--insecure-policy", "copy", "-q", f"oci:{layout}:1", f"docker-archive:{saved}:app:1")
    await asyncio.to_thread(subprocess.run, copy, check=True)
    async with lab.store(folders=(aside,)) as store:
        for name in (f"oci-archive:{archive}:1", f"docker-archive:{saved}:app:1", f"docker-archive:{saved}"):
            told = Told()
            root = await store.prepare(name, report=told, local_allowed=True)
            assert root.user.name == "app"
            assert content(root, "/etc/passwd") is not None
            assert await store.find(name) == root
        with pytest.raises(Permanent) as failure:
            await store.prepare(f"oci-archive:{archive}:2", local_allowed=True)
        assert failure.value.code == "no_such_image"
        assert len(lab.layers) == 1


async def test_only_the_local_administrator_may_name_them_and_only_listed_folders(lab: StoreLab, aside: Path) -> None:
    layout = write_layout(aside / "listed/layout", {"": busybox()})
    write_layout(aside / "other", {"": busybox()})
    (aside / "listed/link").symlink_to(aside / "other")
    async with lab.store(folders=(aside / "listed",)) as store:
        for name, allowed, code in (
            (f"oci:{layout}", False, "local_only"),
            (f"oci:{aside}/other", True, "not_a_listed_root"),
            (f"oci:{aside}/listed/link", True, "not_a_listed_root"),
            (f"oci-archive:{aside}/listed/link/x.tar", True, "not_a_listed_root"),
            (f"oci:{aside}/listed/nothing", True, "no_such_image"),
            (f"oci:{aside}/listed", True, "bad_image"),
        ):
            with pytest.raises(Permanent) as failure:
                await store.prepare(name, local_allowed=allowed)
            assert failure.value.code == code, name


async def test_a_document_that_is_not_what_its_digest_names_is_refused(lab: StoreLab, aside: Path) -> None:
    image = Image((layer([("a", b"1")]),))
    layout = write_layout(aside / "layout", {"": image})
    blob_path(layout, image.digest).write_bytes(busybox().manifest)
    async with lab.store(folders=(aside,)) as store:
        with pytest.raises(Permanent) as failure:
            await store.prepare(f"oci:{layout}", local_allowed=True)
        assert failure.value.code == "image_damaged"


async def test_a_folder_that_only_names_a_layer_does_not_get_it(lab: StoreLab, aside: Path, address: str) -> None:
    """The layer is here, brought in by somebody who may have it; who writes the folder need not be."""
    private = Image((layer([("secret", b"1")]),))
    layout = write_layout(aside / "layout", {"": private})
    blob_path(layout, private.layers[0].digest).unlink()
    with docker_registry(address, reachable_port(), closed=True) as closed:
        name = closed.push("private:1", private)
        async with lab.store(insecure=(closed.host,), folders=(aside,)) as store:
            root = await store.prepare(name, secrets_for(closed.host, USER, PASSWORD))
            assert content(root, "/secret") == b"1"
            with pytest.raises(Permanent) as failure:
                await store.prepare(f"oci:{layout}", local_allowed=True)
            assert failure.value.code == "bad_image"


async def test_what_a_folder_calls_by_a_digest_says_nothing_of_what_a_registry_does(
    lab: StoreLab, aside: Path, registry: Registry
) -> None:
    right = Image((layer([("right", b"1")]),))
    other = layer([("other", b"1")])
    layout = write_layout(aside / "layout", {"": Image(right.layers, diff_ids=(other.diff_id,))})
    blob_path(layout, right.layers[0].digest).write_bytes(other.packed)
    async with lab.store(insecure=(registry.host,), folders=(aside,)) as store:
        await store.prepare(registry.push("other:1", Image((other,))))
        assert content(await store.prepare(f"oci:{layout}", local_allowed=True), "/other") == b"1"
        assert content(await store.prepare(registry.push("right:1", right)), "/right") == b"1"
