"""Registries that stall, lie or go away; pulls that are interrupted: each is told, and leaves nothing behind."""

from __future__ import annotations

import asyncio
import http.server
import time

import pytest
from tests.node.images.laboratory import STALL_S, StoreLab, Told, reachable_port
from tests.node.workspace.laboratory import wait_for
from tests.servers.oci import INDEX, MANIFEST, Image, busybox, layer
from tests.servers.registry import (
    Answer,
    Registry,
    docker_registry,
    half_and_then_nothing,
    honestly,
    small_registry,
    something_else,
)

from fairwater.domain.failure import Permanent, Temporary
from fairwater.domain.units import MIB, Bytes

pytestmark = [pytest.mark.root, pytest.mark.asyncio(loop_scope="module")]


def serving(content: bytes, kind: str = MANIFEST) -> Answer:
    def answer(handler: http.server.BaseHTTPRequestHandler, _: str, __: bytes) -> None:
        honestly(handler, kind, content)

    return answer


def silence(handler: http.server.BaseHTTPRequestHandler, _: str, __: bytes) -> None:
    handler.over.wait(60)  # type: ignore[attr-defined]


@pytest.mark.parametrize("where", ["manifest", "blob"])
async def test_a_registry_that_stalls_is_given_up(lab: StoreLab, address: str, where: str) -> None:
    manifest, blob = (silence, honestly) if where == "manifest" else (honestly, half_and_then_nothing)
    with small_registry(address, reachable_port(), busybox(), manifest=manifest, blob=blob) as host:
        async with lab.store(insecure=(host,)) as store:
            began = time.monotonic()
            with pytest.raises(Temporary, match="stalled") as failure:
                await store.prepare(f"{host}/app:1")
            assert failure.value.code == "registry_stalled"
            assert STALL_S <= time.monotonic() - began < STALL_S + 5
            assert lab.left_over == []


async def test_a_blob_that_is_not_what_its_digest_names_is_refused(lab: StoreLab, address: str) -> None:
    with small_registry(address, reachable_port(), busybox(), blob=something_else) as host:
        async with lab.store(insecure=(host,)) as store:
            with pytest.raises(Permanent) as failure:
                await store.prepare(f"{host}/app:1")
            assert failure.value.code == "image_damaged"
            assert lab.layers == set()
            assert await store.find(f"{host}/app:1") is None


async def test_a_layer_that_unpacks_to_something_else_is_refused(lab: StoreLab, address: str) -> None:
    lying = Image((layer({"a": b"1"}),), diff_ids=(layer({"b": b"2"}).diff_id,))
    with small_registry(address, reachable_port(), lying) as host:
        async with lab.store(insecure=(host,)) as store:
            with pytest.raises(Permanent, match="unpacks to") as failure:
                await store.prepare(f"{host}/app:1")
            assert failure.value.code == "image_damaged"
            assert lab.layers == set()


async def test_a_manifest_that_is_not_what_was_asked_for_is_refused(lab: StoreLab, address: str) -> None:
    wanted, other = busybox(), busybox(Env=["OTHER=1"])
    with small_registry(address, reachable_port(), wanted, manifest=serving(other.manifest)) as host:
        async with lab.store(insecure=(host,)) as store:
            with pytest.raises(Permanent) as failure:
                await store.prepare(f"{host}/app@{wanted.digest}")
            assert failure.value.code == "image_damaged"


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (b"{", MANIFEST),
        (b"[]", MANIFEST),
        (b"[" * 100_000, MANIFEST),
        (b'{"schemaVersion": 1, "fsLayers": []}', MANIFEST),
        (b'{"schemaVersion": 2, "config": {}, "layers": []}', MANIFEST),
        (b'{"schemaVersion": 2, "manifests": "x"}', INDEX),
        (b" " * (5 * MIB), MANIFEST),
    ],
    ids=["broken", "a-list", "deep", "first-schema", "empty", "bad-index", "huge"],
)
async def test_a_manifest_that_makes_no_sense_is_refused(
    lab: StoreLab, address: str, content: bytes, kind: str
) -> None:
    with small_registry(address, reachable_port(), busybox(), manifest=serving(content, kind)) as host:
        async with lab.store(insecure=(host,)) as store:
            with pytest.raises(Permanent) as failure:
                await store.prepare(f"{host}/app:1")
            assert failure.value.code in {"bad_image", "image_damaged"}


async def test_a_registry_that_is_away_is_tried_again_later(lab: StoreLab, address: str) -> None:
    host = f"{address}:{reachable_port()}"
    async with lab.store(insecure=(host,)) as store:
        with pytest.raises(Temporary) as failure:
            await store.prepare(f"{host}/app:1")
        assert failure.value.code == "registry_away"


async def test_a_registry_that_does_not_exist_is_told(lab: StoreLab) -> None:
    async with lab.store() as store:
        with pytest.raises(Permanent) as failure:
            await store.prepare("registry.invalid/app:1")
        assert failure.value.code == "no_such_registry"


async def test_a_registry_without_tls_must_be_listed(lab: StoreLab, registry: Registry) -> None:
    name = registry.push("plain:1", busybox())
    async with lab.store() as store:
        with pytest.raises(Permanent, match="insecure_registries") as failure:
            await store.prepare(name)
        assert failure.value.code == "no_such_registry"


async def test_a_name_of_this_machine_leads_to_no_service_of_it(lab: StoreLab, address: str) -> None:
    """The sandbox's own loopback answers, never the machine's."""
    with docker_registry("127.0.0.1", reachable_port()) as registry:
        registry.push("app:1", busybox())
        async with lab.store(insecure=(registry.host,)) as store:
            with pytest.raises(Temporary) as failure:
                await store.prepare(f"{registry.host}/app:1")
            assert failure.value.code == "registry_away"


async def test_an_image_too_large_is_refused_before_it_is_brought_in(lab: StoreLab, registry: Registry) -> None:
    name = registry.push("large:1", busybox())
    told = Told()
    async with lab.store(insecure=(registry.host,), image_max=Bytes(MIB)) as store:
        with pytest.raises(Permanent) as failure:
            await store.prepare(name, report=told)
        assert failure.value.code == "image_too_large"
        assert told.steps == ["pulling image"]
        assert [one.total for one in told.all] == [None]


async def test_a_layer_that_swells_is_stopped(lab: StoreLab, registry: Registry) -> None:
    bomb = Image((layer({"zeros": bytes(300 * MIB)}),))
    assert len(bomb.layers[0].packed) < 2 * MIB
    async with lab.store(insecure=(registry.host,), image_max=Bytes(100 * MIB)) as store:
        with pytest.raises(Permanent) as failure:
            await store.prepare(registry.push("bomb:1", bomb))
        assert failure.value.code == "image_too_large"
        assert lab.layers == set()
        assert lab.left_over == []


async def test_a_pull_that_nobody_waits_for_any_more_ends(lab: StoreLab, address: str) -> None:
    with small_registry(address, reachable_port(), busybox(), blob=half_and_then_nothing) as host:
        async with lab.store(insecure=(host,), stall_s=600.0) as store:
            told = Told()
            asking = [asyncio.create_task(store.prepare(f"{host}/app:1", report=told)) for _ in range(2)]

            async def begun() -> bool:
                return any(one.done for one in told.all)

            await wait_for(begun, "the pull to be under way")
            asking[0].cancel()
            await asyncio.wait({asking[0]})
            assert [box.tenant.role for box in lab.boxes.sandboxes.claimed()] == ["image"]
            asking[1].cancel()
            await asyncio.wait({asking[1]})

            async def cleared() -> bool:
                return not lab.boxes.sandboxes.claimed() and not lab.left_over

            await wait_for(cleared, "the pull to be cleared")


async def test_what_an_agent_that_was_killed_had_begun_counts_for_nothing(lab: StoreLab, registry: Registry) -> None:
    name = registry.push("again:1", busybox())
    async with lab.store(insecure=(registry.host,)) as store:
        root = await store.prepare(name)
        layers = root.layers[0].parent
        (layers / ("0" * 64)).mkdir()  # moved in, and nothing written of it yet
        (layers.parent / "incoming/left/workspace").mkdir(parents=True)
        (layers.parent / "removed/half").mkdir()
        (layers.parent / "records/images/broken.json").write_text("{")
        (layers.parent / "records/names/half.new").write_text("{")
    async with lab.store(insecure=(registry.host,)) as store:
        assert await store.find(name) == root
        assert lab.layers == {busybox().layers[0].diff_id}
        assert lab.left_over == []
        root.layers[0].rename(layers / "lost")
    async with lab.store(insecure=(registry.host,)) as store:
        assert await store.find(name) is None
        assert (await store.prepare(name)).layers == root.layers
