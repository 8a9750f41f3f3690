"""Room for images: the longest unused go, what is used never does."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from tests.node.images.laboratory import StoreLab, content
from tests.servers.oci import Image, layer, write_layout

from fairwater.domain.failure import Temporary
from fairwater.domain.units import MIB, Bytes
from fairwater.node.images.store import ImageStore

pytestmark = [pytest.mark.root, pytest.mark.asyncio(loop_scope="module")]

SMALL = Bytes(512 * MIB)
"""Room for three or four of the images here, as long as each is taken to be as large as its layers may unpack to."""


def image_of(number: int, base: tuple[object, ...] = ()) -> Image:
    return Image((*base, layer([(f"file{number}", os.urandom(60 * MIB))], "plain")))  # type: ignore[arg-type]


async def prepared(lab: StoreLab, store: ImageStore, layout: Path, tag: str) -> str:
    lab.clock.at += 1000
    return (await store.prepare(f"oci:{layout}:{tag}", local_allowed=True)).digest


async def test_the_longest_unused_images_go_and_layers_with_the_last_that_names_them(
    lab: StoreLab, aside: Path
) -> None:
    base = layer([("base", os.urandom(MIB))], "plain")
    images = {str(number): image_of(number, (base,)) for number in range(7)}
    layout = write_layout(aside / "layout", images)
    async with lab.store(folders=(aside,), disk=SMALL, image_max=Bytes(200 * MIB)) as store:
        for tag in "012":
            await prepared(lab, store, layout, tag)
        lab.used.add(images["1"].digest)
        await prepared(lab, store, layout, "0")  # used again: now 2 is the longest unused that may go
        for tag in "3456":
            await prepared(lab, store, layout, tag)
        assert await store.find(f"oci:{layout}:1") is not None
        assert await store.find(f"oci:{layout}:2") is None
        assert await store.find(f"oci:{layout}:6") is not None
        assert base.diff_id in lab.layers
        named = {images[tag].layers[1].diff_id for tag in "0123456" if await store.find(f"oci:{layout}:{tag}")}
        assert lab.layers == named | {base.diff_id}


async def test_a_disk_full_of_used_images_is_told_and_nothing_is_taken_from_them(lab: StoreLab, aside: Path) -> None:
    images = {str(number): image_of(number) for number in range(12)}
    layout = write_layout(aside / "layout", images)
    async with lab.store(folders=(aside,), disk=SMALL, image_max=Bytes(200 * MIB)) as store:

        async def fill() -> None:
            for tag, image in images.items():
                lab.used.add(image.digest)
                await prepared(lab, store, layout, tag)

        with pytest.raises(Temporary, match=r"images\.disk") as failure:
            await fill()
        assert failure.value.code == "disk_full"
        root = await store.find(f"oci:{layout}:0")
        assert root is not None
        assert len(content(root, "/file0") or b"") == MIB
        assert lab.left_over == []
        lab.used.clear()
        lab.clock.at += 1000
        await prepared(lab, store, layout, "11")
