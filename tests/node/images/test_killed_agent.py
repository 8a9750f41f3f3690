"""An agent killed while it brings an image in, and started anew: nothing half counts, and the pull goes through."""

from __future__ import annotations

import asyncio
import http.server
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.node.images.laboratory import StoreLab, a_folder, boxes_reaching, content, reachable_port
from tests.node.workspace.sandbox_laboratory import first_process
from tests.servers.oci import Image, busybox, layer
from tests.servers.registry import half_and_then_nothing, honestly, small_registry

pytestmark = [pytest.mark.root, pytest.mark.asyncio(loop_scope="module")]

CHECKOUT = Path(__file__).resolve().parents[3]
IMAGE = Image((*busybox().layers, layer({"two": b"2"})), {"User": "app"})


class Stalling:
    """The last half of the larger layer comes only once `willing`."""

    def __init__(self) -> None:
        self.willing = False

    def __call__(self, handler: http.server.BaseHTTPRequestHandler, kind: str, blob: bytes) -> None:
        if self.willing or blob != IMAGE.layers[0].packed:
            honestly(handler, kind, blob)
        else:
            half_and_then_nothing(handler, kind, blob)


@pytest.fixture
def places() -> Iterator[tuple[Path, Path]]:
    """The agent's data directory, and the folder of its images."""
    with a_folder() as data_dir, a_folder() as folder:
        yield data_dir, folder


async def kill_while_pulling(data_dir: Path, folder: Path, address: str, host: str) -> None:
    """Starts an agent in a process of its own, and kills it once a part of the image has come."""
    arguments = (str(data_dir), str(folder), address, str(first_process()), host)
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-P", "-m", "tests.node.images.pulling", *arguments,
        cwd=CHECKOUT, env={"PYTHONPATH": f"{CHECKOUT}/src:{CHECKOUT}", "PATH": "/usr/sbin:/usr/bin:/sbin:/bin"},
        stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    assert process.stdout is not None
    try:
        async with asyncio.timeout(60):
            while (line := await process.stdout.readline()) != b"under way\n":
                assert line, "it ended before it was under way"
    finally:
        process.kill()
        await process.stdout.read()
        await process.wait()


async def test_a_pull_that_an_agent_was_killed_in_is_cleared_and_done_anew_by_the_next(
    places: tuple[Path, Path], address: str
) -> None:
    data_dir, folder = places
    blobs = Stalling()
    with small_registry(address, reachable_port(), IMAGE, blob=blobs) as host:
        await kill_while_pulling(data_dir, folder, address, host)
        async with boxes_reaching(data_dir, address) as boxes:
            assert [box.tenant.role for box in boxes.sandboxes.claimed()] == ["image"], "it survives its agent"
            lab = StoreLab(boxes, folder, address)
            assert lab.left_over != []
            async with lab.store(insecure=(host,)) as store:
                assert boxes.sandboxes.claimed() == ()
                assert lab.left_over == []
                assert lab.layers == set()
                assert await store.find(f"{host}/app:1") is None
                blobs.willing = True
                root = await store.prepare(f"{host}/app:1")
                assert root.digest == IMAGE.digest
                assert content(root, "/two") == b"2"
                assert lab.layers == {one.diff_id for one in IMAGE.layers}
                assert lab.left_over == []
                assert boxes.sandboxes.claimed() == ()
