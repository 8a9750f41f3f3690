"""Images of the kinds that teams have, from a folder to commands in them: each works, or says why it does not."""

from __future__ import annotations

import asyncio
import gzip
import hashlib
import os
import subprocess
import tarfile
from pathlib import Path

import pytest
from tests.node.images.laboratory import StoreLab, Told, content, entries
from tests.node.workspace.laboratory import wait_for
from tests.node.workspace.sandbox_laboratory import SandboxLab
from tests.servers.oci import LAYER, Entry, Image, Layer, layer, write_layout

from fairwater.domain.failure import Permanent
from fairwater.domain.units import GIB, MIB, Bytes
from fairwater.domain.workspaces.setup import Task

pytestmark = [pytest.mark.root, pytest.mark.asyncio(loop_scope="module")]

MUSL = Path("/lib/ld-musl-x86_64.so.1")
SAYS_WHO = r"""
#include <pwd.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>
int main(void) {
    char cwd[256] = "";
    struct passwd *who = getpwuid(getuid());
    printf("%s %d %s %s\n", who ? who->pw_name : "?", (int)getuid(), getcwd(cwd, sizeof cwd), getenv("MODE"));
    return 0;
}
"""


def built(folder: Path, *options: str) -> bytes:
    """The program, built by musl's compiler."""
    (folder / "who.c").write_text(SAYS_WHO)
    subprocess.run(("musl-gcc", "-Os", *options, "-o", folder / "who", folder / "who.c"), check=True)
    return (folder / "who").read_bytes()


async def test_an_image_of_a_single_static_program_runs_it_and_says_that_it_has_no_shell(
    lab: StoreLab, boxes: SandboxLab, aside: Path
) -> None:
    files: dict[str, Entry] = {
        "app/": b"",
        "app/who": await asyncio.to_thread(built, aside, "-static"),
        "etc/": b"",
        "etc/passwd": "nonroot:x:65532:65532:nonroot:/home/nonroot:/sbin/nologin\n",
    }
    settings = {"User": "65532", "Env": ["MODE=plain"], "WorkingDir": "/app", "Entrypoint": ["/app/who"]}
    layout = write_layout(aside / "layout", {"": Image((layer(files),), settings)})
    async with lab.store(folders=(aside,)) as store:
        image = await store.prepare(f"oci:{layout}", local_allowed=True)
        workspace, root = await boxes.volume()
        sandbox = await boxes.start_with(image, workspace, image.entrypoint, image.working_directory)

        async def said() -> str:
            return (root / "state/run-1.log").read_text()

        assert await wait_for(said, "the program to speak") == "nonroot 65532 /app plain\n"
        assert await boxes.run(sandbox, "/app/who") == (0, "nonroot 65532 /workspace plain\n")
        for shell in ("sh", "/bin/sh", "bash"):
            with pytest.raises(Permanent, match=shell) as failure:
                await boxes.run(sandbox, shell, "-c", "true")
            assert failure.value.code == "command_not_found"
        with pytest.raises(Permanent, match="no shell") as failure:
            await boxes.sandboxes.start_task(sandbox, Task(0, "", "true"), root / "state/log", root / "state/status")
        assert failure.value.code == "no_shell"
        await boxes.end_all()


@pytest.mark.skipif(not MUSL.exists(), reason="needs musl's dynamic loader at its usual place")
async def test_an_image_with_another_c_library_runs_its_programs(lab: StoreLab, boxes: SandboxLab, aside: Path) -> None:
    files: dict[str, Entry] = {
        "lib/": b"",
        f"lib/{MUSL.name}": MUSL.read_bytes(),
        "bin/": b"",
        "bin/who": await asyncio.to_thread(built, aside),
        "bin/sh": Path("/bin/busybox").read_bytes(),
        "etc/": b"",
        "etc/passwd": "root:x:0:0::/root:/bin/sh\napp:x:1234:1234::/home/app:/bin/sh\n",
    }
    layout = write_layout(aside / "layout", {"": Image((layer(files),), {"User": "app", "Env": ["MODE=shared"]})})
    async with lab.store(folders=(aside,)) as store:
        sandbox = await boxes.start(await store.prepare(f"oci:{layout}", local_allowed=True))
        assert await boxes.run(sandbox, "who") == (0, "app 1234 /workspace shared\n")
        status, said = await boxes.sh(sandbox, "/bin/who; exit 3")
        assert (status, said) == (3, "app 1234 /workspace shared\n")
        await boxes.end_all()


PIECE = 64 * MIB


def large_layer(name: str, pieces: int) -> Layer:
    """A layer with a file of so many times 64 MiB of zeros: packed piece by piece, so that a piece is packed once."""
    info = tarfile.TarInfo(name)
    info.size = pieces * PIECE
    head, zeros = info.tobuf(), bytes(PIECE)
    digest = hashlib.sha256(head)
    for _ in range(pieces):
        digest.update(zeros)
    packed = gzip.compress(head, 1, mtime=0) + gzip.compress(zeros, 1, mtime=0) * pieces
    return Layer(packed, f"sha256:{digest.hexdigest()}", f"{LAYER}+gzip")


@pytest.mark.skipif(
    "FAIRWATER_TEST_LARGE" not in os.environ, reason="set FAIRWATER_TEST_LARGE: about 40 s and 6 GB of disk"
)
async def test_an_image_of_5_gib_is_brought_in_and_told_in_bytes(lab: StoreLab, boxes: SandboxLab, aside: Path) -> None:
    layers = [await asyncio.to_thread(large_layer, f"data{number}", GIB // PIECE) for number in range(5)]
    told = Told()
    layout = write_layout(aside / "layout", {"": Image(tuple(layers))})
    async with lab.store(folders=(aside,), disk=Bytes(12 * GIB)) as store:
        image = await store.prepare(f"oci:{layout}", report=told, local_allowed=True)
        assert entries(image) == {f"data{number}" for number in range(5)}
        assert {(one / f"data{4 - number}").stat().st_size for number, one in enumerate(image.layers)} == {GIB}
        assert content(image, "/data4") == bytes(MIB)
        sandbox = await boxes.start(image)
        assert [box.id for box in boxes.sandboxes.claimed()] == [sandbox.id]
        await boxes.end_all()
    size = sum(len(layer.packed) for layer in layers)
    assert ("unpacking image", size, size, "bytes") in {(one.step, one.done, one.total, one.unit) for one in told.all}


async def test_an_image_larger_than_the_disk_of_images_may_be_is_refused(lab: StoreLab, aside: Path) -> None:
    layout = write_layout(aside / "layout", {"": Image((await asyncio.to_thread(large_layer, "data", 5),))})
    async with lab.store(folders=(aside,), disk=Bytes(512 * MIB)) as store:
        with pytest.raises(Permanent, match=r"images\.disk") as failure:
            await store.prepare(f"oci:{layout}", local_allowed=True)
        assert failure.value.code == "image_too_large"
        assert lab.left_over == []
        assert lab.layers == set()
