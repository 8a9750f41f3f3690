"""Parked sandboxes of several images: they follow use, keep to their memory, and survive the agent."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from tests.node.workspace.laboratory import wait_for
from tests.node.workspace.sandbox_laboratory import (
    BUSYBOX,
    SMALL,
    SandboxLab,
    busybox_layer,
    image_of,
    sandbox_lab,
    user,
)

from fairwater.domain.failure import Permanent
from fairwater.domain.ids import RunNumber, WorkspaceId
from fairwater.domain.units import Bytes
from fairwater.domain.workspaces.parking import SANDBOX_COST
from fairwater.domain.workspaces.run import SandboxState
from fairwater.ports.images import ImageRoot
from fairwater.ports.sandboxes import Admission, Tenant

pytestmark = [
    pytest.mark.root,
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.skipif(not BUSYBOX.exists(), reason="needs busybox-static"),
]
APP = user("app", 2000)


@pytest.fixture
def place() -> Iterator[Path]:
    """A node's folder for one test: what was used in another must not count."""
    path = Path(tempfile.mkdtemp(prefix="fw-", dir="/var/tmp"))
    yield path
    shutil.rmtree(path)


def some_image(folder: Path, name: str) -> ImageRoot:
    return image_of([busybox_layer(folder / "pool" / name, APP)], user=APP, users=(APP,))


async def parked(lab: SandboxLab, image: ImageRoot, least: int = 1) -> None:
    async def enough() -> bool:
        return lab.sandboxes.parked_of(image.digest) >= least

    await wait_for(enough, f"{least} of {image.reference} to be parked")


async def let_go(lab: SandboxLab, image: ImageRoot) -> None:
    async def gone() -> bool:
        return image.digest not in lab.sandboxes.in_use()

    await wait_for(gone, f"{image.reference} to be let go")


async def test_an_image_just_brought_in_is_parked_before_its_first_start(place: Path) -> None:
    async with sandbox_lab(place) as lab:
        image = some_image(place, "fresh")
        lab.sandboxes.prefer(image)
        await parked(lab, image)
        assert image.digest in lab.sandboxes.in_use()
        sandbox = await lab.start(image)
        assert lab.sandboxes.hits() == (1, 1)
        assert await lab.sh(sandbox, "id -un") == (0, "app\n")
        await lab.end_all()


async def test_the_memory_is_kept_to_whatever_is_brought_in_and_started(place: Path) -> None:
    async with sandbox_lab(place, memory=Bytes(2 * SANDBOX_COST)) as lab:
        seldom, often, new = (some_image(place, name) for name in ("seldom", "often", "new"))
        lab.sandboxes.prefer(seldom)
        await parked(lab, seldom)
        await lab.start(often)
        await lab.start(often)
        await parked(lab, often)
        lab.sandboxes.prefer(new)
        await parked(lab, new)
        await lab.start(new)  # not waited for any more, it is worth what its starts are
        await lab.start(new)
        lab.usage.note_start(often)
        await parked(lab, new)
        assert lab.sandboxes.parked() <= 2 + 1  # one may be on its way out
        await lab.end_all()


async def test_an_image_that_nobody_starts_any_more_is_let_go(place: Path) -> None:
    async with sandbox_lab(place) as lab:
        old, new = some_image(place, "old"), some_image(place, "young")
        lab.sandboxes.prefer(old)
        await parked(lab, old)
        lab.usage.forget(old.digest)
        lab.sandboxes.prefer(new)
        await let_go(lab, old)
        await parked(lab, new)


async def test_a_minimum_of_the_machine_s_own_image_is_kept(place: Path) -> None:
    async with sandbox_lab(place, parked=2, memory=Bytes(0)) as lab:
        host = await lab.images.prepare("host")
        await parked(lab, host, 2)
        await lab.start(host)
        await parked(lab, host, 2)
        await lab.end_all()


async def test_a_restarted_agent_parks_what_was_used_before(place: Path) -> None:
    image = some_image(place, "again")
    async with sandbox_lab(place) as lab:
        await lab.start(image)
        await lab.end_all()
    async with sandbox_lab(place) as lab:
        await parked(lab, image)
        sandbox = await lab.start(image)
        assert lab.sandboxes.hits() == (1, 1)
        assert await lab.sh(sandbox, "id -un") == (0, "app\n")
        await lab.end_all()


async def test_a_damaged_record_of_use_is_no_reason_not_to_come_up(place: Path) -> None:
    (place / "usage.json").write_text('[{"image": {"reference": 7')
    async with sandbox_lab(place, parked=1) as lab:
        await parked(lab, await lab.images.prepare("host"))


async def test_an_image_that_went_from_the_disk_is_no_longer_parked(place: Path) -> None:
    image = some_image(place, "going")
    async with sandbox_lab(place) as lab:
        lab.sandboxes.prefer(image)
        await parked(lab, image)
    image.layers[0].rename(place / "pool/gone")
    async with sandbox_lab(place, parked=1) as lab:
        await parked(lab, await lab.images.prepare("host"))

        async def forgotten() -> bool:
            return image.digest not in lab.usage.uses()

        await wait_for(forgotten, "the image to be forgotten")
        await let_go(lab, image)


async def test_an_image_that_cannot_come_up_does_not_keep_others_from_being_parked(place: Path) -> None:
    async with sandbox_lab(place) as lab:
        bad = some_image(place, "bad")
        (bad.layers[0] / "etc").rename(bad.layers[0] / "etc.d")
        (bad.layers[0] / "etc").symlink_to("etc")
        good = some_image(place, "good")
        lab.sandboxes.prefer(bad)
        lab.sandboxes.prefer(good)
        await parked(lab, good)
        with pytest.raises(Permanent) as refused:
            await lab.start(bad)
        assert refused.value.code == "bad_image"
        await lab.end_all()


async def test_many_who_ask_at_once_for_an_image_all_get_one(place: Path) -> None:
    async with sandbox_lab(place) as lab:
        image = some_image(place, "crowd")
        claims = [lab.sandboxes.claim(Tenant(WorkspaceId(f"crowd{n:07d}"), RunNumber(1)), image) for n in range(8)]
        sandboxes = await asyncio.gather(*claims)
        assert len({sandbox.id for sandbox in sandboxes}) == 8
        await lab.end_all()


async def test_who_gives_up_waiting_leaves_the_sandbox_to_the_pool(place: Path) -> None:
    async with sandbox_lab(place) as lab:
        image = some_image(place, "given-up")
        claim = asyncio.ensure_future(lab.sandboxes.claim(Tenant(WorkspaceId("givenup00001"), RunNumber(1)), image))
        await asyncio.sleep(0)
        claim.cancel()
        await parked(lab, image)
        assert lab.sandboxes.claimed() == ()


async def test_a_parked_sandbox_that_dies_is_replaced(place: Path) -> None:
    async with sandbox_lab(place) as lab:
        image = some_image(place, "dying")
        lab.sandboxes.prefer(image)
        await parked(lab, image)
        slot = next(slot for slot in lab.sandboxes._pool.parked if slot.digest == image.digest)
        os.kill(slot.pid, signal.SIGKILL)

        async def replaced() -> bool:
            pids = {other.pid for other in lab.sandboxes._pool.parked if other.digest == image.digest}
            return bool(pids - {slot.pid}) and slot.pid not in pids

        await wait_for(replaced, "another one to be parked")


# --- what a restarted agent finds -------------------------------------------------------------------------------------


class NotedService:
    """Notes what it is asked to serve."""

    def __init__(self) -> None:
        self.open_folders: dict[Path, WorkspaceId] = {}

    def environment(self, workspace: WorkspaceId) -> Mapping[str, str]:
        return {"SERVED": f"as {workspace}", "WHO": "service"}

    async def open(self, folder: Path, workspace: WorkspaceId) -> None:
        assert folder.is_dir()
        self.open_folders[folder] = workspace

    async def close(self, folder: Path) -> None:
        del self.open_folders[folder]


async def test_an_adopted_sandbox_keeps_its_user_its_variables_and_its_service(place: Path) -> None:
    image = some_image(place, "adopted")
    script = "echo $USER $WHO $ALL $ONLY $SERVED; id -u; touch /workspace/made; cat /tmp/before"
    async with sandbox_lab(place, service=NotedService()) as lab:
        sandbox = await lab.start(
            image, environment={"ALL": "every", "WHO": "admission"}, remote_environment={"ONLY": "commands"}
        )
        await lab.sh(sandbox, "echo before > /tmp/before")
        before = await lab.sh(sandbox, script)
    service = NotedService()
    async with sandbox_lab(place, service=service) as lab:
        [found] = lab.sandboxes.claimed()
        assert (found.id, found.state) == (sandbox.id, SandboxState.LAUNCHED)
        expected = f"app admission every commands as {sandbox.tenant.workspace}\n2000\nbefore\n"
        assert before == await lab.sh(found, script) == (0, expected)
        assert set(service.open_folders.values()) == {sandbox.tenant.workspace}
        assert image.digest in lab.sandboxes.in_use()
        root = (await lab.volume(sandbox.tenant.workspace))[1]
        assert (root / "workspace/made").stat().st_uid == 1000
        await lab.end_all()
        assert service.open_folders == {}


async def test_a_sandbox_that_was_only_claimed_is_admitted_by_the_next_agent(place: Path) -> None:
    image = some_image(place, "claimed")
    async with sandbox_lab(place) as lab:
        workspace, _ = await lab.volume()
        sandbox = await lab.sandboxes.claim(Tenant(workspace, RunNumber(1)), image)
    async with sandbox_lab(place) as lab:
        root = (await lab.volume(workspace))[1]
        again = await lab.sandboxes.claim(Tenant(workspace, RunNumber(1)), image)
        assert again.id == sandbox.id
        for _ in range(2):
            await lab.sandboxes.admit(again, Admission(SMALL, root, {}, "/workspace"))
        await lab.sandboxes.launch(again, None, root / "state/log")
        assert await lab.sh(again, "stat -c %U /workspace; grep -c ' /workspace ' /proc/mounts") == (0, "app\n1\n")
        await lab.end_all()


async def test_a_helper_that_is_no_workspace_s_own_is_not_served(place: Path) -> None:
    service = NotedService()
    async with sandbox_lab(place, service=service) as lab:
        host = await lab.images.prepare("host")
        helper = await lab.start(host, role="image")
        assert service.open_folders == {}
        assert await lab.sh(helper, "echo [$SERVED]") == (0, "[]\n")
        content = await lab.start(host, role="content")
        assert (await lab.sh(content, "echo $WHO"))[1] == "service\n"
        await lab.end_all()


async def test_what_a_workspace_was_given_is_on_no_disk(place: Path) -> None:
    image = some_image(place, "secretive")
    async with sandbox_lab(place) as lab:
        sandbox = await lab.start(image, environment={"TOKEN": "hunter2-in-memory-only"})
        record = lab.slots_folder / sandbox.id.split("-")[0] / "tenant.json"
        assert "hunter2" in record.read_text(), "it is needed for commands after a restart"
        mounts = [line.split() for line in Path("/proc/self/mounts").read_text().splitlines()]
        below = [(len(place), kind) for _, place, kind, *_ in mounts if record.is_relative_to(place)]
        assert max(below)[1] in {"tmpfs", "ramfs"}
        await lab.end_all()
