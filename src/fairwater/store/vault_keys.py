"""The keys that secrets are sealed with: how they are written, and the file they are made in at the first start.

Refuses to know what is sealed (`vault`). No message shows any part of a key.
"""

from __future__ import annotations

import base64
import binascii
import os
import re
import stat
from pathlib import Path

from fairwater.domain.failure import Permanent

KEY_BYTES = 32
KEYS_MAX = 16
_FILE_BYTES_MAX = 4096
_HEX = re.compile(r"[0-9A-Fa-f]{64}")


def parse_keys(text: str) -> tuple[bytes, ...]:
    """Keys of 32 bytes in base64 or hexadecimal, with spaces, commas or line ends between; `#` begins a comment.

    Raises:
        Permanent: `bad_master_key`.
    """
    words = [word for line in text.splitlines() for word in re.split(r"[\s,]+", line.partition("#")[0]) if word]
    keys = tuple(dict.fromkeys(_key(number, word) for number, word in enumerate(words, start=1)))
    if not 1 <= len(keys) <= KEYS_MAX:
        raise Permanent(f"a master key is needed, and {KEYS_MAX} are the most; {_HOW}", code="bad_master_key")
    return keys


def keys_in(path: Path, *, make: bool) -> tuple[bytes, ...]:
    """The keys in the file at `path`; with `make`, one is made there where there is no file, readable by its owner.

    Raises:
        Permanent: `bad_master_key`; `no_master_key`, where it cannot be read or made.
    """
    if make:
        _make(path)
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        with open(descriptor, encoding="ascii") as file:
            found = os.fstat(descriptor)
            if not stat.S_ISREG(found.st_mode):
                raise Permanent(f"{path} is not a file: name one with a master key", code="no_master_key")
            if found.st_mode & (stat.S_IROTH | stat.S_IWOTH | stat.S_IWGRP):
                raise Permanent(
                    f"{path} holds the master key, and others may read or change it: chmod 600 {path}",
                    code="no_master_key",
                )
            text = file.read(_FILE_BYTES_MAX)
    except OSError as error:
        raise Permanent(f"the master key cannot be read: {path}: {error.strerror}", code="no_master_key") from None
    except UnicodeDecodeError:
        raise Permanent(f"{path}: this is no master key; {_HOW}", code="bad_master_key") from None
    try:
        return parse_keys(text)
    except Permanent as failure:
        raise Permanent(f"{path}: {failure.message}", code=failure.code) from None


def _make(path: Path) -> None:
    """Complete, or not there: of two servers that begin at once, one makes it and both read it."""
    if path.exists():
        return
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        with open(descriptor, "w", encoding="ascii") as file:
            file.write(
                "# Credentials and secret variables are sealed with this key. Keep a copy apart from the database's\n"
                "# backups: without it they cannot be read. To change it, put the new one above the old.\n"
                f"{base64.b64encode(os.urandom(KEY_BYTES)).decode()}\n"
            )
            file.flush()
            os.fsync(file.fileno())
        try:
            os.link(draft, path)
        except FileExistsError:
            pass
        finally:
            draft.unlink()
        _fsync_folder(path.parent)
    except OSError as error:
        raise Permanent(
            f"the master key cannot be made: {path}: {error.strerror}; make its folder, writable for the server's "
            "user, or name another with server.master_key_file",
            code="no_master_key",
        ) from None


def _fsync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _key(number: int, word: str) -> bytes:
    try:
        key = bytes.fromhex(word) if _HEX.fullmatch(word) else base64.b64decode(word, altchars=None, validate=True)
    except (binascii.Error, ValueError):
        key = b""
    if len(key) != KEY_BYTES:
        raise Permanent(f"master key {number} is not {KEY_BYTES} bytes in base64 or hexadecimal; {_HOW}",
                        code="bad_master_key")  # fmt: skip
    return key


_HOW = "make one with: openssl rand -base64 32"
