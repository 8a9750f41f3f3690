"""The contract of `ports.volumes.Volumes`."""

from __future__ import annotations

from collections.abc import Callable

from fairwater.domain.ids import WorkspaceId
from fairwater.domain.units import MIB, Bytes
from fairwater.domain.workspaces.run import VolumeState
from fairwater.ports.volumes import Volumes

WORKSPACE = WorkspaceId("abcdefgh2345")
OTHER = WorkspaceId("zyxwvuts2345")
QUOTA = Bytes(256 * MIB)
Make = Callable[[], Volumes]


async def test_a_volume_is_absent_before_it_is_created(make_volumes: Make) -> None:
    found = await make_volumes().find(WORKSPACE)
    assert (found.state, found.root) == (VolumeState.ABSENT, None)


async def test_a_created_volume_is_detached(make_volumes: Make) -> None:
    volumes = make_volumes()
    await volumes.create(WORKSPACE, QUOTA)
    assert (await volumes.find(WORKSPACE)).state is VolumeState.DETACHED
    assert (await volumes.find(OTHER)).state is VolumeState.ABSENT
    await volumes.delete(WORKSPACE)


async def test_an_attached_volume_has_its_three_folders(make_volumes: Make) -> None:
    volumes = make_volumes()
    await volumes.create(WORKSPACE, QUOTA)
    volume = await volumes.attach(WORKSPACE, QUOTA)
    assert volume.state is VolumeState.ATTACHED
    assert volume.root is not None
    assert {entry.name for entry in volume.root.iterdir()} >= {"workspace", "home", "state"}
    assert await volumes.find(WORKSPACE) == volume
    await volumes.detach(WORKSPACE)
    await volumes.delete(WORKSPACE)


async def test_content_is_there_again_after_detaching_and_attaching(make_volumes: Make) -> None:
    volumes = make_volumes()
    await volumes.create(WORKSPACE, QUOTA)
    root = (await volumes.attach(WORKSPACE, QUOTA)).root
    assert root is not None
    (root / "workspace" / "kept").write_text("kept")
    await volumes.detach(WORKSPACE)
    detached = await volumes.find(WORKSPACE)
    assert (detached.state, detached.root) == (VolumeState.DETACHED, None)
    again = (await volumes.attach(WORKSPACE, QUOTA)).root
    assert again is not None
    assert (again / "workspace" / "kept").read_text() == "kept"
    await volumes.detach(WORKSPACE)
    await volumes.delete(WORKSPACE)


async def test_every_method_may_be_repeated(make_volumes: Make) -> None:
    volumes = make_volumes()
    await volumes.create(WORKSPACE, QUOTA)
    root = (await volumes.attach(WORKSPACE, QUOTA)).root
    assert root is not None
    (root / "home" / "kept").write_text("kept")
    await volumes.create(WORKSPACE, QUOTA)
    assert (await volumes.attach(WORKSPACE, QUOTA)).root == root
    assert (root / "home" / "kept").read_text() == "kept"
    await volumes.detach(WORKSPACE)
    await volumes.detach(WORKSPACE)
    await volumes.delete(WORKSPACE)
    await volumes.delete(WORKSPACE)
    assert (await volumes.find(WORKSPACE)).state is VolumeState.ABSENT


async def test_what_is_attached_is_found_attached_after_a_restart_of_the_agent(make_volumes: Make) -> None:
    volumes = make_volumes()
    await volumes.create(WORKSPACE, QUOTA)
    before = await volumes.attach(WORKSPACE, QUOTA)
    restarted = make_volumes()
    assert await restarted.find(WORKSPACE) == before
    await restarted.detach(WORKSPACE)
    assert (await make_volumes().find(WORKSPACE)).state is VolumeState.DETACHED
    await restarted.delete(WORKSPACE)


async def test_a_deleted_volume_leaves_nothing_for_its_successor(make_volumes: Make) -> None:
    volumes = make_volumes()
    await volumes.create(WORKSPACE, QUOTA)
    root = (await volumes.attach(WORKSPACE, QUOTA)).root
    assert root is not None
    locked = root / "workspace" / "locked"
    locked.mkdir()
    (locked / "secret").write_text("secret")
    (root / "workspace" / "link").symlink_to("/etc")
    locked.chmod(0)
    await volumes.detach(WORKSPACE)
    await volumes.delete(WORKSPACE)
    await volumes.create(WORKSPACE, QUOTA)
    root = (await volumes.attach(WORKSPACE, QUOTA)).root
    assert root is not None
    assert list((root / "workspace").iterdir()) == []
    await volumes.detach(WORKSPACE)
    await volumes.delete(WORKSPACE)
