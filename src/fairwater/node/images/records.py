"""What is known of the images and layers that are here: small JSON files beside the layers, read once at the start.

A record is written whole or not at all, after what it tells of is on the disk. Proofs of access are fingerprints that
only this node can compute, never credentials.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import json
import os
import secrets
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from fairwater.domain.images.users import User
from fairwater.domain.workspaces.secrets import Credential

ANYBODY = "anybody"
"""The proof of what was had without a credential."""
THIS_MACHINE = "this-machine"
"""The proof of what came from a folder of the machine."""


@dataclass(frozen=True, slots=True)
class LayerRecord:
    """`diff_id` names the unpacked content; `blobs` are the digests it was packed under; `size` is unpacked, in bytes.

    `proofs` are those who have shown that they may have it.
    """

    diff_id: str
    size: int
    blobs: tuple[str, ...]
    proofs: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ImageRecord:
    """`digest` is the manifest's, `layers` the diff ids, the lowest first; `sources` are where it was fetched from."""

    digest: str
    layers: tuple[str, ...]
    proofs: tuple[str, ...]
    sources: tuple[str, ...]
    user: User
    users: tuple[User, ...]
    environment: tuple[tuple[str, str], ...]
    working_directory: str
    entrypoint: tuple[str, ...]
    command: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class NameRecord:
    """What `name`, a reference by tag, stood for at `checked_at` (seconds since 1970), as shown to the holder of
    `proof`; `stamp` tells a folder or archive of the machine from a later one of the same path."""

    name: str
    digest: str
    proof: str
    checked_at: float
    stamp: str = ""


_KEPT_MAX = 1024
"""As many proofs are kept of an image or a layer, and as many names times four."""
Record = TypeVar("Record", ImageRecord, LayerRecord, NameRecord)


class Records:
    """Below `folder`. `images` are by digest, `layers` by diff id, `names` by name and proof. Not for threads."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.images: dict[str, ImageRecord] = {}
        self.layers: dict[str, LayerRecord] = {}
        self.names: dict[tuple[str, str], NameRecord] = {}
        self._used: dict[str, float] = {}
        self._key = b""

    def load(self) -> None:
        """Reads what there is; a record that cannot be read is removed, and what it told of counts as not here."""
        for part in ("images", "layers", "names"):
            (self._folder / part).mkdir(parents=True, exist_ok=True, mode=0o700)
        self._key = self._read_key()
        self.images = {record.digest: record for record in self._read("images", _image)}
        self.layers = {record.diff_id: record for record in self._read("layers", _layer)}
        self.names = {(record.name, record.proof): record for record in self._read("names", _name)}

    def fingerprint(self, credential: Credential | None) -> str:
        """The proof that stands for a credential; it tells nothing of it to whoever reads the disk."""
        if credential is None:
            return ANYBODY
        said = "\0".join((credential.host, credential.username, credential.secret))
        return hmac.new(self._key, said.encode(), hashlib.sha256).hexdigest()

    def put_layer(self, record: LayerRecord) -> None:
        known = self.layers.get(record.diff_id)
        if known is not None:
            record = replace(
                known, blobs=_joined(known.blobs, record.blobs), proofs=_joined(known.proofs, record.proofs)
            )
        self._write("layers", record.diff_id, record)
        self.layers[record.diff_id] = record

    def put_image(self, record: ImageRecord) -> ImageRecord:
        known = self.images.get(record.digest)
        if known is not None:
            record = replace(
                record, proofs=_joined(known.proofs, record.proofs), sources=_joined(known.sources, record.sources)
            )
        self._write("images", record.digest, record)
        self.images[record.digest] = record
        return record

    def put_name(self, record: NameRecord) -> None:
        self._write("names", _name_key(record.name, record.proof), record)
        self.names[record.name, record.proof] = record
        if len(self.names) > 4 * _KEPT_MAX:
            oldest = min(self.names.values(), key=lambda known: known.checked_at)
            self._forget_name(oldest)

    def _forget_name(self, name: NameRecord) -> None:
        self._path("names", _name_key(name.name, name.proof)).unlink(missing_ok=True)
        del self.names[name.name, name.proof]

    def layer_of(self, blob: str) -> LayerRecord | None:
        """The layer that a blob was seen to unpack to."""
        return next((record for record in self.layers.values() if blob in record.blobs), None)

    def prove_layer(self, diff_id: str, proof: str) -> None:
        if proof not in self.layers[diff_id].proofs:
            self.put_layer(replace(self.layers[diff_id], proofs=(proof,)))

    def prove_image(self, digest: str, proof: str) -> ImageRecord:
        return self.put_image(replace(self.images[digest], proofs=(proof,)))

    def disprove(self, name: str, proof: str) -> None:
        """The name is not shown any more to the holder of `proof`, who may not have the image by it either."""
        known = self.names.get((name, proof))
        if known is None:
            return
        self._forget_name(known)
        others = any(other.digest == known.digest and other.proof == proof for other in self.names.values())
        image = self.images.get(known.digest)
        if image is not None and not others:
            image = replace(image, proofs=tuple(one for one in image.proofs if one != proof))
            self._write("images", image.digest, image)
            self.images[image.digest] = image

    def forget_image(self, digest: str) -> None:
        for name in [name for name in self.names.values() if name.digest == digest]:
            self._forget_name(name)
        self._path("images", digest).unlink(missing_ok=True)
        self.images.pop(digest, None)
        self._used.pop(digest, None)

    def forget_layer(self, diff_id: str) -> None:
        self._path("layers", diff_id).unlink(missing_ok=True)
        self.layers.pop(diff_id, None)

    def touch(self, digest: str, now: float) -> None:
        """Notes that the image is used now; on the disk once a minute at most, so that asking costs nothing."""
        if now - self.used_at(digest) > 60:
            with contextlib.suppress(OSError):  # a full disk: it is kept in memory
                os.utime(self._path("images", digest), (now, now))
        self._used[digest] = now

    def used_at(self, digest: str) -> float:
        """Seconds since 1970."""
        if digest not in self._used:
            try:
                self._used[digest] = self._path("images", digest).stat().st_mtime
            except FileNotFoundError:
                return 0.0
        return self._used[digest]

    def _path(self, part: str, name: str) -> Path:
        return self._folder / part / f"{name.removeprefix('sha256:')}.json"

    def _write(self, part: str, name: str, record: ImageRecord | LayerRecord | NameRecord) -> None:
        path = self._path(part, name)
        aside = path.with_suffix(".new")
        with open(os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600), "w") as file:
            json.dump(asdict(record), file)
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)

    def _read(self, part: str, build: Callable[[dict[str, Any]], Record]) -> Iterator[Record]:
        for path in (self._folder / part).iterdir():
            try:
                if path.suffix != ".json":
                    raise ValueError(path.name)
                yield build(json.loads(path.read_text()))
            except (ValueError, KeyError, TypeError):
                path.unlink()

    def _read_key(self) -> bytes:
        path = self._folder / "key"
        try:
            key = path.read_bytes()
        except FileNotFoundError:
            key = b""
        if len(key) != 32:  # the first start, or one that was interrupted: proofs begin anew
            key = secrets.token_bytes(32)
            with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600), "wb") as file:
                file.write(key)
        return key


def _image(found: dict[str, Any]) -> ImageRecord:
    return ImageRecord(
        digest=found["digest"],
        layers=tuple(found["layers"]),
        proofs=tuple(found["proofs"]),
        sources=tuple(found["sources"]),
        user=_user(found["user"]),
        users=tuple(_user(user) for user in found["users"]),
        environment=tuple((name, value) for name, value in found["environment"]),
        working_directory=found["working_directory"],
        entrypoint=tuple(found["entrypoint"]),
        command=tuple(found["command"]),
    )


def _user(found: dict[str, Any]) -> User:
    return User(**{**found, "groups": tuple(found["groups"])})


def _layer(found: dict[str, Any]) -> LayerRecord:
    return LayerRecord(found["diff_id"], int(found["size"]), tuple(found["blobs"]), tuple(found["proofs"]))


def _name(found: dict[str, Any]) -> NameRecord:
    return NameRecord(**found)


def _joined(known: tuple[str, ...], added: tuple[str, ...]) -> tuple[str, ...]:
    """Both, each once, the latest last; of too many, the latest."""
    return tuple(dict.fromkeys((*(word for word in known if word not in added), *added)))[-_KEPT_MAX:]


def _name_key(name: str, proof: str) -> str:
    return hashlib.sha256(f"{name}\0{proof}".encode()).hexdigest()
