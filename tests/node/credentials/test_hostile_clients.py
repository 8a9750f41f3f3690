"""What a workspace does to the credential service, and that it goes on."""

from __future__ import annotations

import asyncio
import contextlib
import random
import stat
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from fairwater.domain.ids import WorkspaceId
from fairwater.domain.workspaces.secrets import RunSecrets
from fairwater.node.credential_service import CLIENTS_MAX, CredentialService
from fairwater.ports.secrets import SecretKeeper

from .conftest import SECRET, WORKSPACE, Served, token

QUESTION = b"protocol=https\nhost=git.example.org\n\n"
ANSWER = f"username=person\npassword={SECRET}\n\n".encode()
LIST = b"\0\0\0\x01\x0b"
EMPTY_LIST = b"\0\0\0\x05\x0c\0\0\0\0"


@contextlib.asynccontextmanager
async def client(served: Served, name: str) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    reader, writer = await asyncio.open_unix_connection(served.folder / name)
    try:
        yield reader, writer
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


async def asks(served: Served) -> bytes:
    async with client(served, "credential") as (reader, writer):
        writer.write(QUESTION)
        async with asyncio.timeout(20):
            return await reader.read()


async def lists(served: Served) -> bytes:
    async with client(served, "ssh-agent") as (reader, writer):
        writer.write(LIST)
        async with asyncio.timeout(20):
            return await reader.readexactly(len(EMPTY_LIST))


async def ended(reader: asyncio.StreamReader) -> bool:
    """Whether the service has closed the connection without a word, in good time."""
    async with asyncio.timeout(20):
        try:
            return await reader.read() == b""
        except ConnectionError:
            return True


def open_descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


async def well(served: Served) -> None:
    served.give(token("git.example.org"))
    assert await asks(served) == ANSWER
    assert await lists(served) == EMPTY_LIST


@pytest.mark.parametrize(
    ("name", "sent"),
    [
        ("credential", b"x" * 20_000),
        ("credential", b"host=a\n" * 10_000),
        ("credential", b""),
        ("credential", b"protocol=https\nhost=git.example.org"),
        ("ssh-agent", b""),
        ("ssh-agent", b"\0\0\0\0"),
        ("ssh-agent", b"\xff\xff\xff\xff" + b"x" * 1000),
        ("ssh-agent", b"\0\x01\0\x01" + b"\x0d" * 1000),
        ("ssh-agent", b"\0\0"),
        ("ssh-agent", b"\0\0\x01\0\x0d"),
    ],
)
async def test_what_is_too_long_too_slow_or_cut_off_ends_the_connection(served: Served, name: str, sent: bytes) -> None:
    served.give(token("other.example.org"))
    async with client(served, name) as (reader, writer):
        writer.write(sent)
        if name == "ssh-agent" and not sent:
            writer.write_eof()  # an agent's client may be silent for long
        assert await ended(reader)
    await well(served)


async def test_noise_does_no_harm(served: Served) -> None:
    seeded = random.Random(3)
    with capture_logs() as logs:
        for number in range(60):
            async with client(served, ("credential", "ssh-agent")[number % 2]) as (_, writer):
                writer.write(seeded.randbytes(seeded.randrange(1, 200)))
        for _ in range(20):
            async with client(served, "ssh-agent") as (reader, writer):
                message = bytes([seeded.choice((11, 13, 17, 27))]) + seeded.randbytes(seeded.randrange(60))
                writer.write(len(message).to_bytes(4, "big") + message)
                async with asyncio.timeout(20):
                    assert await reader.readexactly(5) in (b"\0\0\0\x01\x05", b"\0\0\0\x05\x0c")
    assert logs == []
    await well(served)


async def test_a_crowd_waits_in_the_kernel_and_is_served_in_turn(served: Served) -> None:
    """Silent clients hold every place for as long as a message may take, no longer."""
    served.give(token("git.example.org"))
    async with contextlib.AsyncExitStack() as crowd:
        for _ in range(CLIENTS_MAX):
            await crowd.enter_async_context(client(served, "credential"))
        waiting = asyncio.ensure_future(asks(served))
        assert await lists(served) == EMPTY_LIST  # the other socket has places of its own
        assert await waiting == ANSWER


async def test_many_at_once_are_all_answered(served: Served) -> None:
    served.give(token("git.example.org"))
    assert await asyncio.gather(*(asks(served) for _ in range(40))) == [ANSWER] * 40


async def test_one_that_takes_no_answers_is_let_go(served: Served) -> None:
    async with client(served, "ssh-agent") as (reader, writer):
        writer.transport.pause_reading()  # type: ignore[attr-defined]
        with contextlib.suppress(ConnectionError):
            for _ in range(100):
                writer.write(LIST * 100)
                await writer.drain()
                if writer.is_closing():
                    break
    del reader
    await well(served)


async def test_two_workspaces_never_get_each_others(served: Served, tmp_path: Path) -> None:
    other = WorkspaceId("zzzzzzzz2345")
    served.give(token("git.example.org"))
    served.secrets.put(other, RunSecrets((token("git.example.org", secret="theirs"),)))
    await served.service.open(tmp_path, other)
    theirs = Served(served.service, served.secrets, tmp_path, served.home, served.program)
    assert await asks(theirs) == b"username=person\npassword=theirs\n\n"
    assert await asks(served) == ANSWER
    await served.service.close(tmp_path)
    await served.service.close(tmp_path)
    assert await asks(served) == ANSWER


async def test_every_user_of_the_sandbox_may_ask_and_nobody_change_it(served: Served) -> None:
    for name in ("credential", "ssh-agent"):
        mode = (served.folder / name).stat().st_mode
        assert stat.S_ISSOCK(mode)
        assert stat.S_IMODE(mode) == 0o666


async def test_closing_ends_the_clients_and_leaves_nothing_open(served: Served) -> None:
    before = open_descriptors()
    async with client(served, "ssh-agent") as (reader, _):
        await lists(served)
        await served.service.close(served.folder)
        assert await ended(reader)
    assert list(served.folder.iterdir()) == []
    assert open_descriptors() <= before
    with pytest.raises(FileNotFoundError):
        await asks(served)


async def test_opening_where_there_is_no_folder_leaves_nothing_open(served: Served, tmp_path: Path) -> None:
    before = open_descriptors()
    with pytest.raises(FileNotFoundError):
        await served.service.open(tmp_path / "none", WORKSPACE)
    assert open_descriptors() == before


class BrokenKeeper(SecretKeeper):
    def put(self, workspace: WorkspaceId, secrets: RunSecrets) -> None:
        raise NotImplementedError

    def get(self, workspace: WorkspaceId) -> RunSecrets:
        raise RuntimeError(f"{SECRET} cannot be read")

    def forget(self, workspace: WorkspaceId) -> None:
        raise NotImplementedError


async def test_a_fault_of_the_agents_own_is_told_without_what_it_was_about(tmp_path: Path) -> None:
    service = CredentialService(BrokenKeeper())
    with capture_logs() as logs:
        await service.open(tmp_path, WORKSPACE)
        for name in ("credential", "ssh-agent"):
            reader, writer = await asyncio.open_unix_connection(tmp_path / name)
            writer.write(QUESTION if name == "credential" else LIST)
            assert await ended(reader)
            writer.close()
            await writer.wait_closed()
        await service.close(tmp_path)
    assert [(line["event"], line["kind"]) for line in logs] == [("client_failed", "RuntimeError")] * 2
    assert SECRET not in repr(logs)
