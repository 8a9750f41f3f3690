"""Layers on the images' disk: unpacked in a sandbox, proven there, and then out of its reach before the next begins.

So what is in one layer cannot get into another, which others use too, as long as tar and the unpackers are not taken
over by what they read: the sum of what was unpacked is told by the sandbox.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import os
import stat
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from fairwater.domain.failure import Permanent, Temporary
from fairwater.domain.images.explain import damaged
from fairwater.domain.images.reference import Reference
from fairwater.domain.units import Bytes, format_bytes
from fairwater.node import linux
from fairwater.node.images.sandbox import CommandFailed, PullSandbox

_PROGRAM = (Path(__file__).parent / "unpack.py").read_text()


@dataclass(frozen=True, slots=True)
class Unpacked:
    """A layer in the pull's `done` folder, under its name there; `size` is of the unpacked stream."""

    diff_id: str
    blob: str
    size: int


async def unpack_layer(
    pull: PullSandbox,
    reference: Reference,
    place: str,
    blob: str,
    diff_id: str,
    size_max: int,
    read: Callable[[int], None],
) -> Unpacked:
    """Unpacks the blob that the sandbox sees at `place`; `read` is told how many bytes of it are read so far.

    Raises:
        Permanent: `image_damaged`, `image_too_large`, `bad_image`.
        Temporary: `disk_full`.
    """
    name = diff_id.removeprefix("sha256:")
    made = await asyncio.to_thread(_make_target, pull.workspace)
    ending: dict[str, object] = {}

    def hear(line: bytes) -> None:
        with contextlib.suppress(ValueError, RecursionError):
            said = json.loads(line[:4096])
            if isinstance(said, dict):
                if isinstance(said.get("read"), int):
                    read(said["read"])
                else:
                    ending.update(said)

    command = ("python3", "-I", "-c", _PROGRAM, place, "/workspace/layer", name, str(size_max))
    try:
        await pull.run(command, on_line=hear)
    except CommandFailed as failed:
        raise Permanent(
            f"a layer of {reference} cannot be unpacked: {failed.stderr.strip()[-200:] or f'status {failed.status}'}",
            code="bad_image",
        ) from failed
    size = ending.get("done")
    if not isinstance(size, int):
        raise _failure(reference, str(ending.get("error")), str(ending.get("message", ""))[:400], size_max)
    await asyncio.to_thread(_take_out, pull, made, name)
    return Unpacked(diff_id, blob, size)


def _failure(reference: Reference, code: str, message: str, size_max: int) -> Permanent | Temporary:
    message = "".join(sign if sign.isprintable() else "?" for sign in message)
    match code:
        case "image_damaged":
            return damaged(reference, message)
        case "image_too_large":
            return too_large(reference, size_max)
        case "disk_full":
            return Temporary(
                f"there is no room for {reference} on this node: stop workspaces of other images, or ask the operator "
                "for more (images.disk)",
                code="disk_full",
                delay_s=10,
            )
        case _:
            return Permanent(f"{reference} cannot be unpacked: {message}", code="bad_image")


def too_large(reference: Reference, size_max: int) -> Permanent:
    return Permanent(
        f"{reference} is larger than the {format_bytes(size_max)} that an image may have on this node: choose a "
        "smaller one, or ask the operator for more (images.disk)",
        code="image_too_large",
    )


def _make_target(workspace: Path) -> int:
    """The folder to unpack into, new; returns its inode. Fails where the sandbox has put something there."""
    with linux.opened(workspace, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW) as folder:
        os.mkdir("layer", 0o755, dir_fd=folder)
        os.chmod("layer", 0o755, dir_fd=folder)  # noqa: S103 - by descriptor, whatever the umask
        return os.stat("layer", dir_fd=folder, follow_symlinks=False).st_ino


def _take_out(pull: PullSandbox, made: int, name: str) -> None:
    with (
        linux.opened(pull.workspace, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW) as folder,
        linux.opened(pull.done, os.O_RDONLY | os.O_DIRECTORY) as done,
    ):
        os.rename("layer", name, src_dir_fd=folder, dst_dir_fd=done)
        found = os.stat(name, dir_fd=done, follow_symlinks=False)
    if not stat.S_ISDIR(found.st_mode) or found.st_ino != made:
        raise Permanent("a layer was swapped for something else while it was unpacked", code="bad_image")


def keep(layers: Path, done: Path, unpacked: Iterable[Unpacked]) -> None:
    """Moves complete layers to where they are used from. What is there afterwards is on the disk.

    Raises:
        Temporary: `disk_full`.
    """
    try:
        linux.sync_file_system(layers)
        for layer in unpacked:
            name = layer.diff_id.removeprefix("sha256:")
            # Somebody else may have brought the same layer meanwhile: then this one goes with the rest of the pull.
            if not (layers / name).exists():
                (done / name).rename(layers / name)
        linux.sync_file_system(layers)
    except OSError as error:
        if error.errno in {errno.ENOSPC, errno.EDQUOT}:
            raise Temporary("the disk of images is full", code="disk_full", delay_s=10) from error
        raise


def make_hole(pull: PullSandbox, digest: str, size: int) -> None:
    """A file of `size` bytes in the place of a blob whose content is not needed: skopeo looks at no more than that."""
    with linux.opened(pull.workspace / "blobs/sha256", os.O_RDONLY | os.O_DIRECTORY) as folder:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        file = os.open(digest.removeprefix("sha256:"), flags, 0o644, dir_fd=folder)
        try:
            os.ftruncate(file, size)
        finally:
            os.close(file)


def bytes_in(pull: PullSandbox) -> Bytes:
    """What has been written so far to the folders that a pull downloads into; holes do not count."""
    total = 0
    for name in ("blobs/sha256", "image", "tmp"):
        with contextlib.suppress(OSError), os.scandir(pull.workspace / name) as entries:
            for entry in entries:
                with contextlib.suppress(OSError):
                    total += entry.stat(follow_symlinks=False).st_blocks * 512
    return Bytes(total)
