"""What an image's manifest says, and which of an index's images fits a machine.

The JSON comes from a registry or a folder, and may be anything: every size and number is bounded here, and what is not
as the OCI image specification 1.0 (or Docker's schema 2) has it is refused with the place that is wrong.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fairwater.domain.failure import Permanent

DOCUMENT_MAX = 4 * 1024**2
"""The largest manifest or configuration that is read, in bytes; registries refuse larger ones."""
LAYERS_MAX = 127
"""As many as Docker makes; overlayfs takes 500."""
_SIZE_END = 1 << 50
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_INDEXES = frozenset(
    {"application/vnd.oci.image.index.v1+json", "application/vnd.docker.distribution.manifest.list.v2+json"}
)
_ENTRIES_MAX = 1024


@dataclass(frozen=True, slots=True)
class Descriptor:
    """A part of an image: `digest` (`sha256:…`) names its exact bytes, `size` counts them."""

    digest: str
    size: int
    media_type: str = ""

    @property
    def hex(self) -> str:
        return self.digest.removeprefix("sha256:")


@dataclass(frozen=True, slots=True)
class Platform:
    """As Go names them: `linux`, `amd64`; `variant` such as `v8`."""

    os: str
    architecture: str
    variant: str = ""

    def __str__(self) -> str:
        return "/".join(filter(None, (self.os, self.architecture, self.variant)))


@dataclass(frozen=True, slots=True)
class Index:
    """Several images of one name, one for each platform. `names` are the tags of a folder's index."""

    entries: tuple[tuple[Descriptor, Platform | None, str], ...]


@dataclass(frozen=True, slots=True)
class Manifest:
    """`layers` are in the order in which they lie, the lowest first."""

    config: Descriptor
    layers: tuple[Descriptor, ...]

    @property
    def size(self) -> int:
        """Bytes to be brought in, as packed."""
        return sum({layer.digest: layer.size for layer in self.layers}.values())


ARCHITECTURES: Mapping[str, str] = {
    "x86_64": "amd64", "aarch64": "arm64", "armv7l": "arm", "ppc64le": "ppc64le", "s390x": "s390x", "riscv64": "riscv64"
}  # fmt: skip
"""From what uname(2) says to Go's name."""


def parse_manifest(content: bytes) -> Manifest | Index:
    """Raises Permanent: `bad_image`."""
    document = parse_object(content, "manifest")
    kind = document.get("mediaType")
    if (isinstance(kind, str) and kind in _INDEXES) or ("manifests" in document and "layers" not in document):
        return Index(tuple(_entry(entry) for entry in _array(document, "manifests", _ENTRIES_MAX)))
    if document.get("schemaVersion") != 2 or "fsLayers" in document:
        raise bad_image(
            "its manifest is of Docker's first schema, which is out of use: push it again with a newer tool"
        )
    if not isinstance(document.get("config"), dict):
        raise bad_image("its manifest names no configuration: it is no image to run")
    layers = tuple(_descriptor(layer, "layers") for layer in _array(document, "layers", LAYERS_MAX))
    for layer in layers:
        if "foreign" in layer.media_type or "nondistributable" in layer.media_type:
            raise bad_image("one of its layers is kept elsewhere than in its registry, as Windows images have it")
        if "encrypted" in layer.media_type:
            raise bad_image("its layers are encrypted")
    return Manifest(_descriptor(document["config"], "config"), layers)


def choose(index: Index, wanted: Platform, name: str = "") -> Descriptor:
    """The image of `index` for the platform `wanted`; with `name`, of those only that carry that tag.

    Raises:
        Permanent: `wrong_architecture`, telling which there are; `no_such_image`, where none carries the tag.
    """
    entries = [entry for entry in index.entries if entry[1] is None or entry[1].os != "unknown"]
    if name:
        entries = [entry for entry in entries if entry[2] == name]
    if not entries:
        tags = ", ".join(sorted({entry[2] for entry in index.entries if entry[2]})[:20]) or "none"
        raise Permanent(f"there is no image tagged {name!r}: there are {tags}", code="no_such_image")
    fitting = [
        (descriptor, platform)
        for descriptor, platform, _ in entries
        if platform is not None and (platform.os, platform.architecture) == (wanted.os, wanted.architecture)
    ]
    if fitting:
        # The plainest variant runs on every machine of the architecture.
        return min(fitting, key=lambda pair: pair[1].variant)[0]
    unsaid = [descriptor for descriptor, platform, _ in entries if platform is None]
    if unsaid:
        return unsaid[0]
    raise wrong_platform(", ".join(sorted({str(entry[1]) for entry in entries})[:12]), wanted)


def wrong_platform(found: str, wanted: Platform) -> Permanent:
    return Permanent(
        f"the image is for {found}, and this machine is {wanted}: choose a tag that is made for {wanted}, or build one",
        code="wrong_architecture",
    )


def _array(document: Mapping[str, Any], key: str, length_max: int) -> list[Any]:
    found = document.get(key)
    if not isinstance(found, list):
        raise bad_image(f"{key!r} in its manifest is not a list")
    if len(found) > length_max:
        raise bad_image(f"{key!r} in its manifest has {len(found)} entries, more than {length_max}")
    return found


def _descriptor(found: object, where: str) -> Descriptor:
    if not isinstance(found, dict) or not is_digest(found.get("digest")):
        raise bad_image(f"an entry of {where!r} in its manifest has no sha256 digest")
    size, media_type = found.get("size"), found.get("mediaType", "")
    if not isinstance(size, int) or isinstance(size, bool) or not 0 <= size < _SIZE_END:
        raise bad_image(f"an entry of {where!r} in its manifest has no size")
    return Descriptor(found["digest"], size, media_type if isinstance(media_type, str) else "")


def _entry(found: object) -> tuple[Descriptor, Platform | None, str]:
    descriptor = _descriptor(found, "manifests")
    assert isinstance(found, dict)
    platform = found.get("platform")
    notes = found.get("annotations")
    name = notes.get("org.opencontainers.image.ref.name", "") if isinstance(notes, dict) else ""
    return (
        descriptor,
        parse_platform(platform) if isinstance(platform, dict) else None,
        name if isinstance(name, str) else "",
    )


def parse_object(content: bytes, what: str) -> dict[str, Any]:
    if len(content) > DOCUMENT_MAX:
        raise bad_image(f"its {what} is larger than {DOCUMENT_MAX // 1024**2} MiB")
    try:
        document = json.loads(content)
    except (ValueError, RecursionError):
        raise bad_image(f"its {what} is not JSON") from None
    if not isinstance(document, dict):
        raise bad_image(f"its {what} is not a JSON object")
    return document


def parse_platform(found: Mapping[str, Any]) -> Platform | None:
    parts = [found.get(key) or "" for key in ("os", "architecture", "variant")]
    if not all(isinstance(part, str) and len(part) <= 32 and part.isprintable() for part in parts):
        raise bad_image("it says in a strange way which machine it is for")
    return Platform(*parts) if parts[0] and parts[1] else None


def is_digest(found: object) -> bool:
    return isinstance(found, str) and _DIGEST.fullmatch(found) is not None


def bad_image(why: str) -> Permanent:
    return Permanent(f"the image cannot be used: {why}", code="bad_image")
