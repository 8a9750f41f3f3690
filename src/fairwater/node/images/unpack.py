"""Unpacks one layer into a folder. Runs by itself, in the sandbox that brings in an image, with nothing but Python.

`unpack.py BLOB TARGET DIFF_ID SIZE_MAX`: the layer at BLOB (gzip, zstd or not packed) is unpacked by GNU tar into the
empty folder TARGET; on the way, the unpacked stream must be the one that DIFF_ID (64 hexadecimal digits of SHA-256)
names, and at most SIZE_MAX bytes. Afterwards whiteouts are turned into overlayfs's marks. Device nodes are left out.

Writes JSON to standard output, one object a line: `{"read": BYTES}` of the blob as it goes on, then
`{"done": BYTES}` as unpacked, or `{"error": CODE, "message": …}`. What it reads is hostile.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import stat
import subprocess
import sys
import threading
import time
import zlib
from collections.abc import Iterator
from typing import IO

_CHUNK = 64 * 1024
_TELL_EVERY_S = 0.25
_PIPE_BYTES = 1024 * 1024
_F_SETPIPE_SZ = 1031
_TAR = (
    "tar", "--extract", "--file=-", "--numeric-owner", "--same-owner", "--preserve-permissions",
    "--delay-directory-restore", "--xattrs", "--xattrs-include=user.*", "--xattrs-exclude=user.overlay.*",
    "--warning=no-timestamp", "--warning=no-unknown-keyword",
)  # fmt: skip
_PREFIX, _OPAQUE = b".wh.", b".wh..wh..opq"
_PATH_MAX = 4096
_OPAQUE_MARK = "user.overlay.opaque"


class UnpackError(Exception):
    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


def main() -> None:
    blob, target, diff_id, size_max = sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4])
    # A reader that has gone away is an error to be handled here, not a death.
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    try:
        with open(blob, "rb", buffering=0) as packed:
            tell({"done": unpack(packed, target, diff_id, size_max)})
    except UnpackError as error:
        tell({"error": error.code, "message": str(error)})
    except OSError as error:
        tell({"error": "disk_full" if error.errno in {28, 122} else "bad_image", "message": str(error)})


def tell(what: dict[str, object]) -> None:
    sys.stdout.write(json.dumps(what) + "\n")
    sys.stdout.flush()


def unpack(packed: IO[bytes], target: str, diff_id: str, size_max: int) -> int:
    """Returns the bytes of the unpacked stream."""
    tar = subprocess.Popen((*_TAR, f"--directory={target}"), stdin=subprocess.PIPE, stderr=subprocess.PIPE,
                           env={"PATH": os.defpath, "LC_ALL": "C"})  # fmt: skip
    assert tar.stdin is not None
    assert tar.stderr is not None
    words = Words(tar.stderr)
    try:
        size, digest, has_whiteouts = pump(packed, tar.stdin.fileno(), size_max)
        tar.stdin.close()
        status = tar.wait()
    finally:
        tar.kill()
        tar.wait()
    words.join()
    if digest != diff_id:
        raise UnpackError("image_damaged", f"a layer unpacks to sha256:{digest}, not to sha256:{diff_id}")
    if words.telling:
        code = "disk_full" if "No space left" in words.telling or "quota exceeded" in words.telling else "bad_image"
        raise UnpackError(code, f"a layer cannot be unpacked: {words.telling}")
    if status not in {0, 2}:
        raise UnpackError("bad_image", f"a layer cannot be unpacked: tar ended with {status}")
    if has_whiteouts:
        mark_whiteouts(os.fsencode(target))
    return size


def pump(packed: IO[bytes], sink: int, size_max: int) -> tuple[int, str, bool]:
    """From `packed` to `sink`: how many bytes, their SHA-256, and whether a whiteout may be among them."""
    _widen(sink)
    digest = hashlib.sha256()
    size, found, tail, taken = 0, False, b"", True
    for chunk in unpacked(packed):
        size += len(chunk)
        if size > size_max:
            raise UnpackError("image_too_large", f"a layer unpacks to more than {size_max} bytes")
        digest.update(chunk)
        found = found or _PREFIX in chunk or _PREFIX in tail + chunk[:3]
        tail = chunk[-3:]
        if taken:
            taken = _write(sink, chunk)
    return size, digest.hexdigest(), found


def _write(sink: int, chunk: bytes) -> bool:
    """Whether tar still reads: it stops at the archive's end mark, and what follows counts for the digest only."""
    view = memoryview(chunk)
    try:
        while view:
            view = view[os.write(sink, view) :]
    except BrokenPipeError:
        return False
    return True


def _widen(pipe: int) -> None:
    import fcntl

    try:
        fcntl.fcntl(pipe, _F_SETPIPE_SZ, _PIPE_BYTES)
    except OSError:
        return  # more than this user may have: it goes slower


def unpacked(packed: IO[bytes]) -> Iterator[bytes]:
    """The stream behind the packing, known by its first bytes."""
    first = packed.read(4)
    packed.seek(0)
    if first[:2] == b"\x1f\x8b":
        yield from _gunzip(packed)
    elif first == b"\x28\xb5\x2f\xfd":
        yield from _unzstd(packed)
    else:
        yield from _told(packed)


def _told(packed: IO[bytes]) -> Iterator[bytes]:
    read, told = 0, time.monotonic()
    while chunk := packed.read(_CHUNK):
        read += len(chunk)
        yield chunk
        if time.monotonic() - told > _TELL_EVERY_S:
            told = time.monotonic()
            tell({"read": read})


def _gunzip(packed: IO[bytes]) -> Iterator[bytes]:
    """Some tools write a layer as thousands of gzip members, one after another."""
    member = zlib.decompressobj(31)
    begun = False
    for chunk in _told(packed):
        rest = chunk
        while rest:
            if not begun:
                rest = rest.lstrip(b"\0")  # padding between members
                if not rest:
                    break
            try:
                yield member.decompress(rest)
            except zlib.error as error:
                raise UnpackError("image_damaged", f"a layer is not as gzip packs it: {error}") from None
            begun, rest = True, member.unused_data
            if member.eof:
                member, begun = zlib.decompressobj(31), False
    if begun:
        raise UnpackError("image_damaged", "a layer ends in the middle")


def _unzstd(packed: IO[bytes]) -> Iterator[bytes]:
    with subprocess.Popen(
        ("zstd", "-dcq", "--memory=512MB"), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as zstd:
        assert zstd.stdin is not None
        assert zstd.stdout is not None
        sink, source = zstd.stdin, zstd.stdout

        def feed() -> None:
            try:
                for chunk in _told(packed):
                    if not _write(sink.fileno(), chunk):
                        return
            finally:
                sink.close()

        feeder = threading.Thread(target=feed, daemon=True)
        feeder.start()
        try:
            while chunk := source.read(4 * _CHUNK):
                yield chunk
        finally:
            source.close()
            feeder.join()
            status = zstd.wait()
    if status:
        raise UnpackError("image_damaged", "a layer is not as zstd packs it")


class Words(threading.Thread):
    """What tar says; `telling` is the first line that is more than a remark."""

    def __init__(self, stderr: IO[bytes]) -> None:
        super().__init__(daemon=True)
        self._stderr = stderr
        self.telling = ""
        self.start()

    def run(self) -> None:
        while line := self._stderr.readline(8192):
            text = line.decode("utf-8", "replace").strip()
            if not self.telling and not _is_remark(text):
                self.telling = text.removeprefix("tar: ")[:300]


def _is_remark(text: str) -> bool:
    # Device nodes cannot be made here, and a sandbox has its own.
    return (
        text.endswith((": Cannot mknod: Operation not permitted", "Exiting with failure status due to previous errors"))
        or "Removing leading" in text
        or "Cannot set" in text  # an extended attribute that the file system does not take
        or "A lone zero block" in text
        or ": Warning: " in text
    )


def mark_whiteouts(target: bytes) -> None:
    """`.wh.NAME` says that NAME of a layer below is gone, `.wh..wh..opq` that everything in the folder is."""
    left = [target]
    while left:
        folder = left.pop()
        if len(folder) > _PATH_MAX - 512:
            raise UnpackError("bad_image", "a layer has folders nested deeper than a path can tell")
        with os.scandir(folder) as entries:
            found = [(entry.name, entry.is_dir(follow_symlinks=False)) for entry in entries]
        for name, is_folder in found:
            if name.startswith(_PREFIX):
                _mark(folder, name, is_folder)
            elif is_folder:
                left.append(folder + b"/" + name)


def _mark(folder: bytes, name: bytes, is_folder: bool) -> None:
    path = folder + b"/" + name
    if is_folder:
        shutil.rmtree(path)
    else:
        os.unlink(path)  # noqa: PTH108 - paths are bytes here: names may be no text
    if name == _OPAQUE:
        _make_opaque(folder)
        return
    hidden = name[len(_PREFIX) :]
    if hidden in {b"", b".", b".."} or hidden.startswith(_PREFIX):  # the latter: another union file system's own
        return
    place = folder + b"/" + hidden
    try:
        kind = os.lstat(place).st_mode
    except FileNotFoundError:
        os.mknod(place, stat.S_IFCHR, 0)
        return
    if stat.S_ISDIR(kind):  # gone from below, and made anew here
        _make_opaque(place)


def _make_opaque(folder: bytes) -> None:
    os.setxattr(folder, _OPAQUE_MARK, b"y", follow_symlinks=False)


if __name__ == "__main__":
    main()
