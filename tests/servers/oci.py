"""OCI images made on the spot, well and badly: from dicts of files to a layout in a folder, without any tool.

A layer is what `layer` returns; an image is `Image`, written by `write_layout` and pushed by `registry.push`.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import subprocess
import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

MANIFEST = "application/vnd.oci.image.manifest.v1+json"
INDEX = "application/vnd.oci.image.index.v1+json"
CONFIG = "application/vnd.oci.image.config.v1+json"
LAYER = "application/vnd.oci.image.layer.v1.tar"

Entry = bytes | str | tarfile.TarInfo
"""A file's content, `-> TARGET` for a link, or a header of one's own."""


def digest_of(content: bytes) -> str:
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


def member(name: str, **fields: Any) -> tarfile.TarInfo:
    """A header of one's own: `type`, `linkname`, `mode`, `uid`, `devmajor`, `pax_headers`, …"""
    info = tarfile.TarInfo(name)
    for field_name, value in fields.items():
        setattr(info, field_name, value)
    return info


def tar(entries: Mapping[str, Entry] | Sequence[tuple[str, Entry]]) -> bytes:
    """Names that end in `/` are folders; a text `-> TARGET` is a symbolic link; a name may come twice in a sequence."""
    pairs = entries.items() if isinstance(entries, Mapping) else entries
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for name, content in pairs:
            if isinstance(content, tarfile.TarInfo):
                content.name = name
                archive.addfile(content, io.BytesIO(b"x" * content.size))
                continue
            info = tarfile.TarInfo(name.rstrip("/"))
            info.mode = 0o755
            if name.endswith("/"):
                info.type = tarfile.DIRTYPE
                archive.addfile(info)
            elif isinstance(content, str) and content.startswith("-> "):
                info.type, info.linkname = tarfile.SYMTYPE, content.removeprefix("-> ")
                archive.addfile(info)
            else:
                raw = content.encode() if isinstance(content, str) else content
                info.size = len(raw)
                archive.addfile(info, io.BytesIO(raw))
    return packed.getvalue()


@dataclass(frozen=True)
class Layer:
    """`packed` is what is kept, `diff_id` names it unpacked."""

    packed: bytes
    diff_id: str
    media_type: str = f"{LAYER}+gzip"

    @property
    def digest(self) -> str:
        return digest_of(self.packed)


def layer(entries: Mapping[str, Entry] | Sequence[tuple[str, Entry]], packing: str = "gzip") -> Layer:
    return layer_of(tar(entries), packing)


def layer_of(content: bytes, packing: str = "gzip") -> Layer:
    """`packing` is gzip, zstd or plain."""
    diff_id = digest_of(content)
    if packing == "gzip":
        return Layer(gzip.compress(content, 1, mtime=0), diff_id)
    if packing == "zstd":
        packed = subprocess.run(("zstd", "-1", "-qc"), input=content, capture_output=True, check=True).stdout
        return Layer(packed, diff_id, f"{LAYER}+zstd")
    return Layer(content, diff_id, LAYER)


@dataclass(frozen=True)
class Image:
    """`settings` is the configuration's `config`: User, Env, WorkingDir, Entrypoint, Cmd."""

    layers: tuple[Layer, ...]
    settings: Mapping[str, object] = field(default_factory=dict)
    architecture: str = "amd64"
    os: str = "linux"
    diff_ids: tuple[str, ...] | None = None
    """Others than the layers' own, for an image that lies."""

    @property
    def config(self) -> bytes:
        diff_ids = self.diff_ids or tuple(layer.diff_id for layer in self.layers)
        return json.dumps(
            {
                "architecture": self.architecture,
                "os": self.os,
                "config": dict(self.settings),
                "rootfs": {"type": "layers", "diff_ids": list(diff_ids)},
            }
        ).encode()

    @property
    def manifest(self) -> bytes:
        return json.dumps(
            {
                "schemaVersion": 2,
                "mediaType": MANIFEST,
                "config": descriptor(self.config, CONFIG),
                "layers": [descriptor(layer.packed, layer.media_type) for layer in self.layers],
            }
        ).encode()

    @property
    def digest(self) -> str:
        return digest_of(self.manifest)

    def blobs(self) -> dict[str, bytes]:
        found = {layer.digest: layer.packed for layer in self.layers}
        return {**found, digest_of(self.config): self.config, self.digest: self.manifest}

    def on(self, architecture: str) -> Image:
        return replace(self, architecture=architecture)


def descriptor(content: bytes, media_type: str) -> dict[str, object]:
    return {"mediaType": media_type, "digest": digest_of(content), "size": len(content)}


def index(*images: Image) -> bytes:
    """One for each platform."""
    return json.dumps(
        {
            "schemaVersion": 2,
            "mediaType": INDEX,
            "manifests": [
                {
                    **descriptor(image.manifest, MANIFEST),
                    "platform": {"os": image.os, "architecture": image.architecture},
                }
                for image in images
            ],
        }
    ).encode()


def write_layout(folder: Path, images: Mapping[str, Image]) -> Path:
    """An OCI folder with the images by their tags."""
    (folder / "blobs/sha256").mkdir(parents=True)
    entries = []
    for tag, image in images.items():
        for digest, content in image.blobs().items():
            blob_path(folder, digest).write_bytes(content)
        notes = {"org.opencontainers.image.ref.name": tag} if tag else {}
        entries.append({**descriptor(image.manifest, MANIFEST), "annotations": notes})
    (folder / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
    (folder / "index.json").write_text(json.dumps({"schemaVersion": 2, "mediaType": INDEX, "manifests": entries}))
    return folder


def blob_path(folder: Path, digest: str) -> Path:
    return folder / "blobs/sha256" / digest.removeprefix("sha256:")


def write_archive(file: Path, layout: Path) -> Path:
    """The folder as an archive."""
    with tarfile.open(file, "w") as archive:
        for name in ("oci-layout", "index.json", "blobs"):
            archive.add(layout / name, name)
    return file


PASSWD = "root:x:0:0:root:/root:/bin/sh\napp:x:1234:1234::/home/app:/bin/sh\n"
GROUP = "root:x:0:\napp:x:1234:\nstaff:x:50:app\n"


def busybox(**settings: object) -> Image:
    """A small image with a shell, users `root` and `app`."""
    program = Path("/bin/busybox").read_bytes()
    links = {f"bin/{name}": "-> busybox" for name in ("sh", "cat", "ls", "echo", "id", "sleep", "env", "mkdir", "rm")}
    base: dict[str, Entry] = {
        "bin/": b"",
        "etc/": b"",
        "bin/busybox": program,
        **links,
        "etc/passwd": PASSWD,
        "etc/group": GROUP,
    }
    return Image((layer(base),), settings)
