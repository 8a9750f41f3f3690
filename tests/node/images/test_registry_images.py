"""Images from a registry: brought in once, proven, shared, and used only by those who may."""

from __future__ import annotations

import asyncio

import pytest
from tests.node.images.laboratory import StoreLab, Told, content, entries, reachable_port, secrets_for
from tests.node.workspace.laboratory import wait_for
from tests.servers.oci import Image, busybox, layer
from tests.servers.registry import (
    PASSWORD,
    SECOND_USER,
    USER,
    Registry,
    counting_registry,
    docker_registry,
    refuse_layers,
    small_registry,
)

from fairwater.domain.failure import Permanent

pytestmark = [pytest.mark.root, pytest.mark.asyncio(loop_scope="module")]


async def test_an_image_is_pulled_by_tag_with_what_it_says_of_itself(lab: StoreLab, registry: Registry) -> None:
    image = busybox(User="app", Env=["A=1", "PATH=/bin"], WorkingDir="/srv", Entrypoint=["/bin/sh"], Cmd=["-c", "x"])
    name = registry.push("team/app:1", image)
    told = Told()
    async with lab.store(insecure=(registry.host,)) as store:
        assert await store.find(name) is None
        root = await store.prepare(name, report=told)
        assert root.digest == image.digest
        assert root.user.uid == 1234
        assert root.user.groups == (50,)
        assert [user.name for user in root.users] == ["root", "app"]
        assert root.environment == (("A", "1"), ("PATH", "/bin"))
        assert (root.working_directory, root.entrypoint, root.command) == ("/srv", ("/bin/sh",), ("-c", "x"))
        assert content(root, "/etc/passwd") is not None
        assert lab.left_over == []
    assert told.steps == ["pulling image", "unpacking image"]
    size = len(image.layers[0].packed)
    assert (size, size, "bytes") in {(one.done, one.total, one.unit) for one in told.all if one.step == "pulling image"}


async def test_the_second_start_needs_no_network(lab: StoreLab, address: str) -> None:
    with docker_registry(address, reachable_port()) as registry:
        name = registry.push("app:1", busybox())
        async with lab.store(insecure=(registry.host,)) as store:
            first = await store.prepare(name)
    async with lab.store(insecure=(registry.host,)) as store:
        assert await store.find(name) == first
        assert await store.prepare(name) == first


async def test_layers_of_two_images_are_stored_once(lab: StoreLab, registry: Registry) -> None:
    base = busybox()
    one = Image((*base.layers, layer({"one": b"1"})))
    two = Image((*base.layers, layer({"two": b"2"}, "zstd")))
    async with lab.store(insecure=(registry.host,)) as store:
        first = await store.prepare(registry.push("shared:one", one))
        second = await store.prepare(registry.push("shared:two", two))
        assert first.layers[-1] == second.layers[-1]
        assert len(lab.layers) == 3


async def test_a_digest_is_pulled_exactly(lab: StoreLab, registry: Registry) -> None:
    image = busybox()
    registry.push("exact:1", image)
    async with lab.store(insecure=(registry.host,)) as store:
        root = await store.prepare(f"{registry.host}/exact@{image.digest}")
        assert root.digest == image.digest


async def test_whiteouts_hide_what_is_below(lab: StoreLab, registry: Registry) -> None:
    low = layer({"a/": b"", "a/gone": b"1", "a/stays": b"1", "b/": b"", "b/old": b"1", "c/": b"", "c/x": b"1"})
    top = layer({"a/": b"", "a/.wh.gone": b"", "b/": b"", "b/.wh..wh..opq": b"", "b/new": b"2", ".wh.c": b""})
    async with lab.store(insecure=(registry.host,)) as store:
        root = await store.prepare(registry.push("white:1", Image((low, top))))
        assert entries(root, "/a") == {"stays"}
        assert entries(root, "/b") == {"new"}
        assert entries(root) == {"a", "b"}


async def test_a_missing_tag_and_a_missing_repository_are_told(lab: StoreLab, registry: Registry) -> None:
    registry.push("there:1", busybox())
    async with lab.store(insecure=(registry.host,)) as store:
        for name in ("there:2", "nowhere:1"):
            with pytest.raises(Permanent, match=name) as failure:
                await store.prepare(f"{registry.host}/{name}")
            assert failure.value.code == "no_such_image"


async def test_credentials_open_a_registry_and_what_they_opened_stays_closed_to_others(
    lab: StoreLab, address: str
) -> None:
    with docker_registry(address, reachable_port(), closed=True) as registry:
        name = registry.push("private:1", busybox())
        right = secrets_for(registry.host, USER, PASSWORD)
        wrong = secrets_for(registry.host, USER, "expired")
        async with lab.store(insecure=(registry.host,)) as store:
            root = await store.prepare(name, right)
            assert await store.find(name, right) == root
            for secrets in (wrong, secrets_for("elsewhere.example", USER, PASSWORD)):
                assert await store.find(name, secrets) is None
                with pytest.raises(Permanent) as failure:
                    await store.prepare(name, secrets)
                assert failure.value.code == "image_denied"
                assert PASSWORD not in failure.value.message
            kept = [path for path in (lab.folder / "store").rglob("*") if path.is_file() and path.name != "store.img"]
            assert any(path.suffix == ".json" for path in kept)
            assert not [path for path in kept if PASSWORD.encode() in path.read_bytes()]


async def test_a_second_credential_opens_an_image_that_is_here_once_the_registry_lets_it_in(
    lab: StoreLab, address: str
) -> None:
    with docker_registry(address, reachable_port(), closed=True) as registry:
        name = registry.push("private:1", busybox())
        first, second = (secrets_for(registry.host, user, PASSWORD) for user in (USER, SECOND_USER))
        stranger = secrets_for(registry.host, "eve", PASSWORD)
        async with lab.store(insecure=(registry.host,)) as store:
            root = await store.prepare(name, first)
            assert await store.find(name, second) is None
            told = Told()
            assert await store.prepare(name, second, told) == root
            assert told.steps == ["pulling image"], "its layers are here and need not be brought in again"
            for _ in range(2):
                assert await store.find(name, stranger) is None
                with pytest.raises(Permanent) as failure:
                    await store.prepare(name, stranger)
                assert failure.value.code == "image_denied"
        async with lab.store(insecure=(registry.host,)) as store:
            assert await store.find(name, first) == await store.find(name, second) == root
            assert await store.find(name, stranger) is None


async def test_a_credential_that_was_revoked_opens_nothing_after_an_hour_and_others_still_do(
    lab: StoreLab, address: str
) -> None:
    with docker_registry(address, reachable_port(), closed=True) as registry:
        name = registry.push("private:1", busybox())
        revoked, other = (secrets_for(registry.host, user, PASSWORD) for user in (USER, SECOND_USER))
        async with lab.store(insecure=(registry.host,)) as store:
            root = await store.prepare(name, revoked)
            await store.prepare(name, other)
            registry.let_in(SECOND_USER)
            lab.clock.at += 3601

            async def refused() -> bool:
                return await store.find(name, revoked) is None

            await wait_for(refused, "the credential to be checked")
            with pytest.raises(Permanent) as failure:
                await store.prepare(name, revoked)
            assert failure.value.code == "image_denied"
            assert await store.find(name, other) == root
        async with lab.store(insecure=(registry.host,)) as store:
            assert await store.find(name, revoked) is None
            assert await store.find(name, other) == root


async def test_a_manifest_that_names_a_private_layer_does_not_open_it(lab: StoreLab, address: str) -> None:
    private = busybox()
    with docker_registry(address, reachable_port(), closed=True) as registry:
        name = registry.push("private:1", private)
        async with lab.store(insecure=(registry.host,)) as store:
            await store.prepare(name, secrets_for(registry.host, USER, PASSWORD))
    # Somebody else's registry serves the same manifest, but cannot serve the layer.
    with small_registry(address, reachable_port(), private, blob=refuse_layers(private)) as host:
        async with lab.store(insecure=(host,)) as store:
            assert await store.find(f"{host}/mine:1") is None
            with pytest.raises(Permanent) as failure:
                await store.prepare(f"{host}/mine:1")
            assert failure.value.code == "no_such_image"


async def test_a_configuration_that_claims_a_private_layer_does_not_open_it(lab: StoreLab, address: str) -> None:
    private, junk = busybox(), layer({"junk": b"1"})
    with docker_registry(address, reachable_port(), closed=True) as registry:
        name = registry.push("private:1", private)
        async with lab.store(insecure=(registry.host,)) as store:
            await store.prepare(name, secrets_for(registry.host, USER, PASSWORD))
    claiming = Image((junk,), diff_ids=(private.layers[0].diff_id,))
    with small_registry(address, reachable_port(), claiming) as host:
        async with lab.store(insecure=(host,)) as store:
            with pytest.raises(Permanent) as failure:
                await store.prepare(f"{host}/mine:1")
            assert failure.value.code == "image_damaged"


async def test_an_image_for_another_architecture_is_refused_before_it_is_brought_in(
    lab: StoreLab, registry: Registry
) -> None:
    foreign = busybox().on("s390x")
    told = Told()
    async with lab.store(insecure=(registry.host,)) as store:
        with pytest.raises(Permanent, match="s390x") as failure:
            await store.prepare(registry.push("foreign:1", foreign, busybox().on("arm")), report=told)
        assert failure.value.code == "wrong_architecture"
        with pytest.raises(Permanent, match="s390x") as failure:
            await store.prepare(registry.push("foreign:2", foreign), report=told)
        assert failure.value.code == "wrong_architecture"
        assert lab.layers == set()


async def test_of_an_index_the_machines_own_image_is_taken(lab: StoreLab, registry: Registry) -> None:
    own = busybox()
    async with lab.store(insecure=(registry.host,)) as store:
        root = await store.prepare(registry.push("many:1", own.on("s390x"), own))
        assert root.digest == own.digest


async def test_a_tag_is_used_as_it_is_and_checked_again_after_an_hour(lab: StoreLab, registry: Registry) -> None:
    old, new = busybox(Env=["V=1"]), busybox(Env=["V=2"])
    name = registry.push("moving:1", old)
    async with lab.store(insecure=(registry.host,)) as store:
        await store.prepare(name)
        registry.push("moving:1", new)
        assert (await store.prepare(name)).digest == old.digest
        lab.clock.at += 3601
        assert (await store.prepare(name)).digest == old.digest

        async def moved() -> bool:
            found = await store.find(name)
            return found is not None and found.digest == new.digest

        await wait_for(moved, "the tag to be checked")


async def test_many_who_ask_at_once_bring_an_image_in_once(lab: StoreLab, address: str) -> None:
    image = busybox()
    with counting_registry(address, reachable_port(), image) as (host, asked):
        async with lab.store(insecure=(host,)) as store:
            told = [Told() for _ in range(5)]
            roots = await asyncio.gather(*(store.prepare(f"{host}/once:1", report=one) for one in told))
    assert len({root.digest for root in roots}) == 1
    assert asked.count(image.layers[0].digest) == 1
    assert all("unpacking image" in one.steps for one in told)
