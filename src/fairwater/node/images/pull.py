"""One image brought in: its manifest, then what of it is not here, then its layers unpacked and its users read.

The chain of proof: the manifest has the digest asked for, or is what the registry says the tag is; the configuration
has the digest that the manifest names; each unpacked layer has the digest that the configuration names. Documents are
proven here, on the machine; layers as they are unpacked.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import time
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass, field
from typing import TypeVar

from fairwater.domain.images.config import Config, parse_config
from fairwater.domain.images.explain import damaged, stalled
from fairwater.domain.images.manifest import Descriptor, Manifest, Platform, parse_manifest, wrong_platform
from fairwater.domain.images.reference import Kind, Reference
from fairwater.domain.units import MIB
from fairwater.domain.workspaces.run import Progress
from fairwater.node import linux
from fairwater.node.images.layers import Unpacked, bytes_in, make_hole, too_large, unpack_layer
from fairwater.node.images.local import read_beneath, read_blob, read_layout
from fairwater.node.images.records import LayerRecord
from fairwater.node.images.sandbox import ORIGIN, PullSandbox
from fairwater.node.images.skopeo import Registry, copy_archive

T = TypeVar("T")
_LOOK_EVERY_S = 0.25
_UNPACKED_TIMES = 3
"""How much larger than packed a layer is taken to be before it is unpacked."""


@dataclass(frozen=True, slots=True)
class Found:
    """What a reference stands for: the manifest and its digest."""

    content: bytes
    digest: str
    manifest: Manifest


@dataclass(frozen=True, slots=True)
class Brought:
    """An image whose layers are all here or in the pull's `done` folder."""

    found: Found
    config: Config
    unpacked: tuple[Unpacked, ...]


@dataclass
class Pull:
    """`known` tells which layer a blob holds, where whoever asks has shown that they may have it; `here`, whether a
    layer is here and this blob was seen to unpack to it. `room` is asked for bytes before they are needed."""

    sandbox: PullSandbox
    reference: Reference
    platform: Platform
    registry: Registry | None
    origin: int | None
    archive: str
    known: Callable[[str], LayerRecord | None]
    here: Callable[[str, str], bool]
    room: Callable[[int], Awaitable[None]]
    report: Callable[[Progress], None]
    image_max: int
    stall_s: float
    _heard_at: float = field(default_factory=time.monotonic)

    async def find(self) -> Found | None:
        """None for an archive, of which nothing is known before it is read as a whole."""
        self.sandbox.heard = self._hear
        if self.registry is not None:
            return await self._guarded(self._ask(self.registry))
        if self.reference.kind is Kind.OCI_FOLDER:
            assert self.origin is not None
            return Found(*await asyncio.to_thread(read_layout, self.origin, self.reference, self.platform))
        return None

    async def _ask(self, registry: Registry) -> Found:
        await registry.sign_in()
        return Found(*await registry.manifest(self.platform))

    async def bring(self, found: Found | None) -> Brought:
        """Raises Permanent and Temporary as `ports.images.Images.prepare` does."""
        if found is None:
            found = await self._from_archive()
            blobs, place = "image", "/workspace/image"
        elif self.registry is not None:
            found, blobs, place = await self._from_registry(found), "blobs/sha256", "/workspace/blobs/sha256"
        else:
            self._check_size(found.manifest)
            await self.room(found.manifest.size * _UNPACKED_TIMES)
            blobs, place = "", f"{ORIGIN}/blobs/sha256"
        config = await asyncio.to_thread(self._config, found.manifest, blobs)
        return Brought(found, config, await self._unpack(found.manifest, config, place))

    def _check_size(self, manifest: Manifest) -> None:
        if manifest.size > self.image_max:
            raise too_large(self.reference, self.image_max)

    def _config(self, manifest: Manifest, blobs: str) -> Config:
        if blobs:
            with linux.opened(self.sandbox.workspace, os.O_PATH | os.O_DIRECTORY) as folder:
                content = read_blob(folder, blobs, manifest.config, self.reference)
        else:
            assert self.origin is not None
            content = read_blob(self.origin, "blobs/sha256", manifest.config, self.reference)
        config = parse_config(content)
        if (config.platform.os, config.platform.architecture) != (self.platform.os, self.platform.architecture):
            raise wrong_platform(str(config.platform), self.platform)
        if len(config.diff_ids) != len(manifest.layers):
            raise damaged(
                self.reference, f"it has {len(manifest.layers)} layers, and its configuration {len(config.diff_ids)}"
            )
        return config

    # --- bringing in --------------------------------------------------------------------------------------------

    async def _from_registry(self, found: Found) -> Found:
        assert self.registry is not None
        self._check_size(found.manifest)
        missing: dict[str, Descriptor] = {}
        for layer in found.manifest.layers:
            if self.known(layer.digest) is None:
                missing[layer.digest] = layer
            else:
                with contextlib.suppress(FileExistsError):  # the same layer twice in one image
                    make_hole(self.sandbox, layer.digest, layer.size)
        total = sum(layer.size for layer in missing.values())
        await self.room(total * (1 + _UNPACKED_TIMES))
        await self._downloading(self.registry.copy(found.digest), total)
        return Found(found.content, found.digest, await asyncio.to_thread(self._as_copied, found.manifest))

    def _as_copied(self, manifest: Manifest) -> Manifest:
        """skopeo packs what came without packing, and so gives it another digest; the order stays."""
        with linux.opened(self.sandbox.workspace, os.O_PATH | os.O_DIRECTORY) as folder:
            index = parse_manifest(read_beneath(folder, "image/index.json", self.reference))
            if isinstance(index, Manifest) or len(index.entries) != 1:
                raise damaged(self.reference, "skopeo left no image")
            copied = parse_manifest(read_blob(folder, "blobs/sha256", index.entries[0][0], self.reference))
        if not isinstance(copied, Manifest) or len(copied.layers) != len(manifest.layers):
            raise damaged(self.reference, "skopeo left another number of layers than its manifest names")
        return Manifest(manifest.config, copied.layers)

    async def _from_archive(self) -> Found:
        await self._downloading(copy_archive(self.sandbox, self.reference, self.archive), None)

        def read() -> Found:
            with linux.opened(self.sandbox.workspace, os.O_PATH | os.O_DIRECTORY) as folder:
                content = read_beneath(folder, "image/manifest.json", self.reference)
            manifest = parse_manifest(content)
            if not isinstance(manifest, Manifest):
                raise damaged(self.reference, "skopeo left an index in place of an image")
            return Found(content, sha256_of(content), manifest)

        found = await asyncio.to_thread(read)
        self._check_size(found.manifest)
        return found

    async def _downloading(self, copying: Coroutine[None, None, None], total: int | None) -> None:
        seen = -1

        def look() -> None:
            nonlocal seen
            done = bytes_in(self.sandbox)
            if total is None and done > 2 * self.image_max:  # skopeo may have it twice for a while
                raise too_large(self.reference, self.image_max)
            if total is not None and done > total * 2 + 64 * MIB:
                raise damaged(self.reference, f"more came than the {total} bytes that its manifest names")
            if done != seen:
                seen = done
                self._hear()
                self.report(Progress("pulling image", min(done, total or done), total, "bytes"))

        look()
        await self._guarded(copying, look)
        if total is not None:
            self.report(Progress("pulling image", total, total, "bytes"))

    # --- unpacking ----------------------------------------------------------------------------------------------

    async def _unpack(self, manifest: Manifest, config: Config, place: str) -> tuple[Unpacked, ...]:
        wanted: dict[str, Descriptor] = {}
        for layer, diff_id in zip(manifest.layers, config.diff_ids, strict=True):
            proven = self.known(self._remembered(layer))
            if proven is not None and proven.diff_id != diff_id:
                raise damaged(self.reference, f"{layer.digest} unpacks to {proven.diff_id}, not to {diff_id}")
            if proven is None and not self.here(diff_id, self._remembered(layer)):
                wanted[diff_id] = layer
        total, before, left = sum(layer.size for layer in wanted.values()), 0, self.image_max
        unpacked: list[Unpacked] = []
        for diff_id, layer in wanted.items():
            done_before = before

            def read(count: int, done_before: int = done_before) -> None:
                self.report(Progress("unpacking image", min(done_before + count, total), total, "bytes"))

            read(0)
            path = f"{place}/{layer.hex}"
            one = await self._guarded(
                unpack_layer(self.sandbox, self.reference, path, self._remembered(layer), diff_id, left, read)
            )
            read(layer.size)
            unpacked.append(one)
            before += layer.size
            left -= one.size
        return tuple(unpacked)

    def _remembered(self, layer: Descriptor) -> str:
        """The name under which it is remembered what the layer unpacks to. What a folder of the machine calls by a
        digest need not have it, nor be there at all: it says nothing of what registries call so."""
        return f"folder/{layer.digest}" if self.reference.kind is Kind.OCI_FOLDER else layer.digest

    # --- what stalls --------------------------------------------------------------------------------------------

    def _hear(self) -> None:
        self._heard_at = time.monotonic()

    async def _guarded(self, work: Coroutine[None, None, T], look: Callable[[], None] = lambda: None) -> T:
        """`work` to its end, unless `look` raises, or nothing is heard or seen for `stall_s`.

        Raises:
            Temporary: `registry_stalled`; and what `work` and `look` raise.
        """
        self._hear()
        task = asyncio.ensure_future(work)
        try:
            while not (await asyncio.wait({task}, timeout=_LOOK_EVERY_S))[0]:
                look()
                if time.monotonic() - self._heard_at > self.stall_s:
                    raise stalled(self.reference, self.stall_s)
            return task.result()
        finally:
            if not task.done():
                task.cancel()
                await asyncio.wait({task})


def sha256_of(content: bytes) -> str:
    return f"sha256:{hashlib.sha256(content).hexdigest()}"
