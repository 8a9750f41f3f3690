"""How a home directory gets what its image has in it: by way of a helper sandbox, into which it is streamed.

What is in an image is hostile, and so is what a repository may have put into the home directory before: all is written
by the helper, as the workspace's own user, within the volume's quota. What the volume has already stays as it is.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Awaitable, Callable

import structlog

from fairwater.domain.failure import Permanent, Temporary
from fairwater.domain.workspaces.git_failure import last_words
from fairwater.domain.workspaces.home import home_directory
from fairwater.node.images.view import opened_in_image
from fairwater.ports.images import ImageRoot, ImageUser
from fairwater.ports.process import Channel, Process

_CHUNK = 256 * 1024
_SAID_MAX = 64 * 1024
_FULL = ("no space left on device", "disk quota exceeded", "file too large")
_SKELETON = ("sh", "-c", 'cp -rn /etc/skel/. "$HOME"/')
_UNPACK = (
    "sh",
    "-c",
    'exec tar --extract --file=- --directory="$HOME" --skip-old-files --no-same-owner',
)
_PACK = ("tar", "--create", "--file=-", "--one-file-system", "--sparse", "--ignore-failed-read", "--directory=.", ".")

Start = Callable[[tuple[str, ...]], Awaitable[Process]]


async def fill_from_skeleton(start: Start) -> None:
    """Copies `/etc/skel`. Raises Permanent: `quota_exceeded`."""
    process = await start(_SKELETON)
    try:
        await process.write(b"")
        said = await _listen(process)
    finally:
        await process.close()
    _refuse_if_full(said)


async def fill_from_image(start: Start, image: ImageRoot, user: ImageUser, timeout_s: float) -> None:
    """Copies the user's home directory of `image`; what cannot be read or written there is passed over.

    Raises:
        Permanent: `quota_exceeded`.
        Temporary: `home_slow`, after `timeout_s` seconds.
    """
    if home_directory(user.home, user.name) != "/" + user.home.strip("/"):
        return  # it is not the user's alone, such as `/`
    try:
        async with asyncio.timeout(timeout_s):
            with contextlib.ExitStack() as held:
                folder = await asyncio.to_thread(held.enter_context, opened_in_image(image, user.home))
                if folder is not None:
                    await _stream(start, folder)
    except TimeoutError:
        raise Temporary(
            f"copying {user.home} of the image took longer than {timeout_s:.0f} s", code="home_slow", delay_s=5
        ) from None


async def _stream(start: Start, folder: int) -> None:
    reading = os.open(f"/proc/self/fd/{folder}", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        packing = await asyncio.create_subprocess_exec(
            *_PACK,
            cwd=f"/proc/self/fd/{reading}",
            env={"PATH": "/usr/bin:/bin", "LC_ALL": "C"},
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
        )
    finally:
        os.close(reading)
    try:
        process = await start(_UNPACK)
        try:
            feeding = asyncio.create_task(_feed(packing, process))
            try:
                said = await _listen(process)
                status = await process.wait()
            finally:
                feeding.cancel()
                await asyncio.gather(feeding, return_exceptions=True)
        finally:
            await process.close()
    finally:
        with contextlib.suppress(ProcessLookupError):
            packing.kill()
        assert packing.stdout is not None
        while await packing.stdout.read(_CHUNK):
            pass  # what nobody wants any more; only then is its pipe closed
        await packing.wait()
    _refuse_if_full(said)
    if status:
        structlog.get_logger().bind(part="content").warning("home_in_part", status=status, reason=last_words(said))


async def _feed(packing: asyncio.subprocess.Process, process: Process) -> None:
    assert packing.stdout is not None
    while chunk := await packing.stdout.read(_CHUNK):
        await process.write(chunk)
    await process.write(b"")


async def _listen(process: Process) -> str:
    said = bytearray()
    async for channel, chunk in process.output():
        if channel is Channel.STDERR:
            said += chunk
            del said[:-_SAID_MAX]
    return said.decode("utf-8", "replace")


def _refuse_if_full(said: str) -> None:
    if any(sign in said.lower() for sign in _FULL):
        raise Permanent(
            f"the image's home directory does not fit into the workspace's disk: {last_words(said)}; choose a larger "
            "class",
            code="quota_exceeded",
        )
