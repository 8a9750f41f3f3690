"""What plain processes do beside the contracts: the sabotage of a defence, uvloop, what is said not to be isolated."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import uvloop

from fairwater.domain.failure import Permanent, Temporary
from fairwater.domain.ids import RunNumber, WorkspaceId
from fairwater.domain.units import TIB, Bytes
from fairwater.domain.workspaces.run import SandboxState, Source, VolumeState
from fairwater.domain.workspaces.setup import Wanted
from fairwater.node.plain import NOT_ISOLATED
from fairwater.node.plain import content as plain_content
from fairwater.node.plain.images import PlainImages
from fairwater.node.plain.places import Places
from fairwater.node.plain.process import start_process
from fairwater.node.plain.sandboxes import PlainSandboxes
from fairwater.node.plain.volumes import PlainVolumes
from fairwater.ports.process import Channel, TerminalSize
from fairwater.ports.sandboxes import Tenant

if TYPE_CHECKING:
    from tests.contracts.conftest import ContentUnderTest, Repository

WORKSPACE = WorkspaceId("abcdefgh2345")
WITHIN_S = 20.0


@pytest.mark.pm(35, sabotage=True)
@pytest.mark.root
@pytest.mark.parametrize("content", ["plain"], indirect=True)
async def test_without_the_safe_directory_a_repository_of_another_owner_is_refused(
    content: ContentUnderTest, repository: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    for folder, _, files in os.walk(repository.path):
        os.chown(folder, 54321, 54321)
        for name in files:
            os.lchown(Path(folder) / name, 54321, 54321)
    monkeypatch.setattr(plain_content, "CONFIG", "")
    with pytest.raises(Permanent) as told:
        await content.bring(repository.source())
    assert "dubious ownership" in told.value.message


@pytest.fixture
def silent() -> Iterator[socket.socket]:
    """A server that takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setblocking(False)
        yield listener


async def test_a_clone_that_takes_too_long_is_stopped(
    content: ContentUnderTest, tmp_path: Path, silent: socket.socket
) -> None:
    port = silent.getsockname()[1]
    slow = plain_content.PlainContent(timeout_s=0.3)
    source = Source(f"http://127.0.0.1:{port}/org/repo", "repo")
    with pytest.raises(Permanent) as told:
        await slow.bring(
            WORKSPACE, RunNumber(1), source, None, content.root, tmp_path / "log", lambda _: None, lambda _: Wanted()
        )
    assert (told.value.code, "longer than" in told.value.message) == ("clone_failed", True)
    assert list((content.root / "state").iterdir()) == []


@pytest.mark.parametrize("content", ["plain"], indirect=True)
async def test_an_interrupted_clone_leaves_no_process_and_no_folder(
    content: ContentUnderTest, tmp_path: Path, silent: socket.socket
) -> None:
    port = silent.getsockname()[1]
    source = Source(f"http://127.0.0.1:{port}/org/repo", "repo")
    bringing = asyncio.create_task(
        content.content.bring(
            WORKSPACE, RunNumber(1), source, None, content.root, tmp_path / "log", lambda _: None, lambda _: Wanted()
        )
    )
    connection, _ = await asyncio.wait_for(asyncio.get_running_loop().sock_accept(silent), WITHIN_S)
    bringing.cancel()
    await asyncio.gather(bringing, return_exceptions=True)
    assert list((content.root / "state").iterdir()) == []
    assert not [each for each in Path("/proc").glob("[0-9]*/cmdline") if str(port).encode() in read(each)]
    connection.close()


def read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""


async def test_a_full_disk_is_told(tmp_path: Path) -> None:
    with pytest.raises(Temporary) as told:
        await PlainVolumes(tmp_path, spare_min=Bytes(1024 * TIB)).create(WORKSPACE, Bytes(1))
    assert told.value.code == "disk_full"


async def test_after_a_reboot_volumes_are_detached_and_sandboxes_dead(tmp_path: Path) -> None:
    def booted(name: str) -> Path:
        proc = tmp_path / name
        (proc / "sys/kernel/random").mkdir(parents=True, exist_ok=True)
        (proc / "sys/kernel/random/boot_id").write_text(f"{name}\n")
        return proc

    volumes = PlainVolumes(tmp_path / "volumes", proc=booted("first"))
    await volumes.create(WORKSPACE, Bytes(1))
    await volumes.attach(WORKSPACE, Bytes(1))
    sandboxes = PlainSandboxes(tmp_path / "sandboxes", proc=booted("first"))
    await sandboxes.claim(Tenant(WORKSPACE, RunNumber(1)), await PlainImages().prepare("host"))

    assert (await PlainVolumes(tmp_path / "volumes", proc=booted("second")).find(WORKSPACE)).state is (
        VolumeState.DETACHED
    )
    again = PlainSandboxes(tmp_path / "sandboxes", proc=booted("second"))
    assert [sandbox.state for sandbox in again.claimed()] == [SandboxState.DEAD]


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/workspace", "/v/workspace"),
        ("/workspace/repo/x", "/v/workspace/repo/x"),
        ("/workspaces", "/workspaces"),
        ("/home/dev/.profile", "/v/home/.profile"),
        ("/home/developer", "/home/developer"),
        ("/usr/bin", "/usr/bin"),
    ],
)
def test_paths_of_a_workspace_are_on_its_volume(path: str, expected: str) -> None:
    assert Places(Path("/v")).on_machine(path) == expected


@pytest.mark.parametrize("terminal", [None, TerminalSize()])
def test_a_process_works_on_uvloop(tmp_path: Path, terminal: TerminalSize | None) -> None:
    async def talk() -> tuple[int, bytes]:
        command = ("sh", "-c", "read line; echo got $line; exit 3")
        process = start_process(command, str(tmp_path), {"PATH": os.environ["PATH"]}, terminal=terminal)
        await process.write(b"this\n")
        said = b""
        async with asyncio.timeout(WITHIN_S):
            async for channel, data in process.output():
                assert channel is Channel.STDOUT
                said += data
            status = await process.wait()
        await process.close()
        return status, said

    status, said = uvloop.run(talk())
    assert status == 3
    assert b"got this" in said


async def test_no_descriptor_is_left_of_a_process(tmp_path: Path) -> None:
    before = len(list(Path("/proc/self/fd").iterdir()))
    for terminal in (None, TerminalSize()):
        for command in (("true",), ("no-such-command",)):
            try:
                process = start_process(command, str(tmp_path), {"PATH": os.environ["PATH"]}, terminal=terminal)
            except Permanent:
                continue
            await asyncio.wait_for(process.wait(), WITHIN_S)
            await process.close()
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_what_is_not_isolated_is_said() -> None:
    said = "\n".join(NOT_ISOLATED)
    for matter in ("files", "processes", "network", "limits", "user"):
        assert matter in said
