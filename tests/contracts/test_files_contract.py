"""The files of `ports.agent.WorkspaceAccess`, on the agent itself and through its API over a unix socket."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

import pytest

from fairwater.domain.failure import Permanent
from fairwater.domain.ids import WorkspaceId

if TYPE_CHECKING:
    from tests.contracts.conftest import Node

WORKSPACE = WorkspaceId("abcdefgh2345")


async def chunks(*parts: bytes) -> AsyncIterator[bytes]:
    for part in parts:
        yield part


async def content(node: Node, path: str) -> bytes:
    return b"".join([chunk async for chunk in await node.access.read_file(WORKSPACE, path)])


@pytest.mark.parametrize(
    "path",
    [
        "/workspace/plain.txt",
        "/workspace/deep/er/file",
        "/home/dev/.profile",
        "/workspace/ü %2e?#&.txt",
        "/workspace/..x",
    ],
)
async def test_a_file_written_is_read_back(node: Node, path: str) -> None:
    await node.up()
    data = bytes(range(256)) * 4096
    assert await node.access.write_file(WORKSPACE, path, chunks(data[:1000], data[1000:])) == len(data)
    assert await content(node, path) == data


async def test_an_empty_file_is_read_back(node: Node) -> None:
    await node.up()
    assert await node.access.write_file(WORKSPACE, "/workspace/empty", chunks()) == 0
    assert await content(node, "/workspace/empty") == b""


async def test_a_file_is_the_same_from_inside_and_outside(node: Node) -> None:
    await node.up()
    await node.access.write_file(WORKSPACE, "/workspace/file", chunks(b"from outside"))
    assert (await node.run("cat", "file", cwd="/workspace"))[1] == b"from outside"
    await node.run("sh", "-c", "printf inside >file", cwd="/workspace")
    assert await content(node, "/workspace/file") == b"inside"


async def test_a_folder_is_listed_by_name(node: Node) -> None:
    await node.up()
    await node.run("sh", "-c", "mkdir b; printf 12345 >a; ln -s /etc c", cwd="/workspace")
    listed = await node.access.list_folder(WORKSPACE, "/workspace")
    assert [(entry.name, entry.kind) for entry in listed] == [("a", "file"), ("b", "folder"), ("c", "symlink")]
    assert listed[0].size == 5


@pytest.mark.parametrize(
    "path",
    [
        "/etc/passwd",
        "/workspace/../../../../../../etc/passwd",
        "/workspace/link/passwd",
        "/state/content-ready",
        "/workspace/../state/content-ready",
    ],
)
async def test_a_path_that_leads_outside_is_refused(node: Node, path: str) -> None:
    await node.up()
    await node.run("ln", "-s", "/etc", "link", cwd="/workspace")
    for refused in (node.access.read_file(WORKSPACE, path), node.access.write_file(WORKSPACE, path, chunks(b"x"))):
        with pytest.raises(Permanent) as told:
            await refused
        assert told.value.code in {"outside", "no_such_file", "bad_path"}


@pytest.mark.parametrize(
    ("path", "code"),
    [("/workspace/none", "no_such_file"), ("/workspace", "is_folder"), ("/workspace/fifo", "not_a_file")],
)
async def test_what_is_no_file_is_not_read(node: Node, path: str, code: str) -> None:
    await node.up()
    await node.run("mkfifo", "fifo", cwd="/workspace")
    with pytest.raises(Permanent) as told:
        await node.access.read_file(WORKSPACE, path)
    assert told.value.code == code


async def test_a_write_that_breaks_off_leaves_the_file_as_it_was(node: Node) -> None:
    await node.up()
    await node.access.write_file(WORKSPACE, "/workspace/file", chunks(b"before"))

    async def broken() -> AsyncIterator[bytes]:
        yield b"half"
        raise ConnectionError("the sender is gone")

    with pytest.raises(ConnectionError):
        await node.access.write_file(WORKSPACE, "/workspace/file", broken())
    assert await content(node, "/workspace/file") == b"before"
    assert [entry.name for entry in await node.access.list_folder(WORKSPACE, "/workspace")] == ["file"]


async def test_files_of_a_workspace_that_is_not_running_are_not_there(node: Node) -> None:
    with pytest.raises(Permanent) as told:
        await node.access.read_file(WORKSPACE, "/workspace/file")
    assert told.value.code == "not_running"
