"""Images in folders and archives of the machine: opened below the folders that the operator has listed, and only so.

A folder is read here, its documents bounded and proven by digest; an archive is left to skopeo, in a sandbox.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path

from fairwater.domain.failure import Permanent
from fairwater.domain.images.explain import damaged
from fairwater.domain.images.manifest import DOCUMENT_MAX, Descriptor, Index, Manifest, Platform, choose, parse_manifest
from fairwater.domain.images.reference import Kind, Reference
from fairwater.node import linux

_RULES = linux.RESOLVE_BENEATH | linux.RESOLVE_NO_SYMLINKS | linux.RESOLVE_NO_MAGICLINKS
_INDEXES_MAX = 4


@contextlib.contextmanager
def opened_listed(reference: Reference, folders: Sequence[Path]) -> Iterator[int]:
    """What a local reference names, held open (O_PATH), so that what was checked is what is used.

    Raises:
        Permanent: `not_a_listed_root`, `no_such_image`.
    """
    path = Path(reference.path)
    wanted = os.O_PATH | (os.O_DIRECTORY if reference.kind is Kind.OCI_FOLDER else 0)
    for root in folders:
        if not path.is_relative_to(root):
            continue
        try:
            with linux.opened(root, os.O_PATH | os.O_DIRECTORY) as folder:
                found = linux.openat2(folder, os.fspath(path.relative_to(root)), wanted, resolve=_RULES)
        except OSError as error:
            raise _not_there(path, error) from error
        try:
            yield found
        finally:
            os.close(found)
        return
    listed = ", ".join(map(str, folders)) or "none is"
    raise Permanent(
        f"{path} is not below a folder listed for images ({listed}): add its folder to images.folders in the "
        "configuration",
        code="not_a_listed_root",
    )


def _not_there(path: Path, error: OSError) -> Permanent:
    if error.errno in {errno.ELOOP, errno.EXDEV}:
        return Permanent(f"{path} leads through a symbolic link: give its real path", code="not_a_listed_root")
    return Permanent(f"there is no image at {path}: {error.strerror}", code="no_such_image")


def stamp(reference: Reference, folders: Sequence[Path]) -> str:
    """Tells what is at the path now from what is put there later. Raises as `opened_listed` does."""
    with opened_listed(reference, folders) as found:
        info = os.fstat(found)
        if reference.kind is Kind.OCI_FOLDER:
            with contextlib.suppress(FileNotFoundError):
                info = os.stat("index.json", dir_fd=found, follow_symlinks=False)
    return f"{info.st_dev}.{info.st_ino}.{info.st_size}.{info.st_mtime_ns}"


def read_layout(folder: int, reference: Reference, platform: Platform) -> tuple[bytes, str, Manifest]:
    """The manifest of an OCI folder for `platform`: its bytes, its digest, and what it says.

    Raises:
        Permanent: `no_such_image`, `wrong_architecture`, `bad_image`, `image_damaged`.
    """
    content = read_beneath(folder, "index.json", reference)
    found, name, digest = parse_manifest(content), reference.tag, ""
    for _ in range(_INDEXES_MAX):
        if isinstance(found, Manifest):
            if not digest:
                raise Permanent(f"{reference.path} is not an OCI folder: it has no index", code="bad_image")
            return content, digest, found
        chosen = _of_name(found, platform, name, reference)
        content, digest, name = read_blob(folder, "blobs/sha256", chosen, reference), chosen.digest, ""
        found = parse_manifest(content)
    raise Permanent(f"{reference.path}: its indexes are nested deeper than {_INDEXES_MAX}", code="bad_image")


def _of_name(index: Index, platform: Platform, name: str, reference: Reference) -> Descriptor:
    if not name and len({entry[2] for entry in index.entries}) > 1:
        tags = ", ".join(sorted({entry[2] for entry in index.entries if entry[2]})[:20])
        raise Permanent(f"{reference.path} has several images: add one of their tags ({tags})", code="no_such_image")
    return choose(index, platform, name)


def read_blob(folder: int, below: str, descriptor: Descriptor, reference: Reference) -> bytes:
    """A document, proven by its digest. Raises Permanent: `image_damaged`, `bad_image`."""
    content = read_beneath(folder, f"{below}/{descriptor.hex}", reference)
    digest = f"sha256:{hashlib.sha256(content).hexdigest()}"
    if digest != descriptor.digest:
        raise damaged(reference, f"what should be {descriptor.digest} is {digest}")
    return content


def read_beneath(folder: int, path: str, reference: Reference) -> bytes:
    """A small file below a folder that somebody else writes to; no link is followed.

    Raises:
        Permanent: `bad_image`, where there is no such file or it is too large.
    """
    flags = os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY
    try:
        with os.fdopen(linux.openat2(folder, path, flags, resolve=_RULES), "rb") as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise Permanent(f"{reference}: {path} in it is not a file", code="bad_image")
            content = file.read(DOCUMENT_MAX + 1)
    except OSError as error:
        raise Permanent(f"{reference}: {path} in it cannot be read: {error.strerror}", code="bad_image") from error
    if len(content) > DOCUMENT_MAX:
        raise Permanent(f"{reference}: {path} in it is larger than {DOCUMENT_MAX // 1024**2} MiB", code="bad_image")
    return content
