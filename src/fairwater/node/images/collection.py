"""Makes room for images: those not used for longest go first, and never one that is in use.

A layer goes when no image that is here names it.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from pathlib import Path

import structlog

from fairwater.domain.failure import Temporary
from fairwater.domain.units import format_bytes
from fairwater.node import linux, tree_removal
from fairwater.node.images.records import Records

SPARE_SHARE = 0.05
"""The part of the disk that is kept free: btrfs needs some to delete anything."""
GRACE_S = 120.0
"""An image used so lately stays: the start that asked for it may still be on its way."""


class Collection:
    """`root` is the images' disk; `in_use` tells the digests that sandboxes have."""

    def __init__(
        self, root: Path, records: Records, in_use: Callable[[], frozenset[str]], now: Callable[[], float]
    ) -> None:
        self._root = root
        self._records = records
        self._in_use = in_use
        self._now = now
        self._pinned: dict[str, int] = {}
        self._making_room = asyncio.Lock()
        self._log = structlog.get_logger().bind(part="images")

    def pin(self, diff_id: str) -> None:
        """A pull under way counts on this layer."""
        self._pinned[diff_id] = self._pinned.get(diff_id, 0) + 1

    def unpin(self, diff_id: str) -> None:
        left = self._pinned.get(diff_id, 0) - 1
        if left > 0:
            self._pinned[diff_id] = left
        else:
            self._pinned.pop(diff_id, None)

    def free(self) -> int:
        """Bytes that may be written now."""
        shown = os.statvfs(self._root)
        return int(shown.f_bavail * shown.f_frsize - SPARE_SHARE * shown.f_blocks * shown.f_frsize)

    async def make_room(self, needed: int) -> None:
        """Removes images until `needed` bytes are free, or none can go any more.

        Raises:
            Temporary: `disk_full`, where nothing is free at all afterwards.
        """
        async with self._making_room:
            lacking = needed - self.free()
            removed = False
            while lacking > 0 and (victim := self._longest_unused()) is not None:
                lacking -= await self._remove(victim)
                removed = True
            if removed:
                # What was deleted is free once that is on the disk.
                await asyncio.to_thread(linux.sync_file_system, self._root)
            if lacking > 0 and self.free() <= 0:
                raise Temporary(
                    f"the disk of images is full, and every image on it is in use: stop workspaces of other images, or "
                    f"ask the operator for more (images.disk); {format_bytes(needed)} are needed",
                    code="disk_full",
                    delay_s=10,
                )

    def _longest_unused(self) -> str | None:
        used, now = self._in_use(), self._now()
        candidates = [
            digest
            for digest in self._records.images
            if digest not in used and now - self._records.used_at(digest) > GRACE_S
        ]
        return min(candidates, key=self._records.used_at, default=None)

    async def _remove(self, digest: str) -> int:
        """Returns the bytes that its layers took."""
        self._records.forget_image(digest)
        freed = await self.remove_unnamed()
        self._log.info("image_removed", digest=digest, bytes=freed)
        return freed

    async def remove_unnamed(self) -> int:
        """Layers that no image names and no pull counts on."""
        named = {diff_id for image in self._records.images.values() for diff_id in image.layers}
        freed = 0
        for record in [*self._records.layers.values()]:
            if record.diff_id in named or record.diff_id in self._pinned:
                continue
            self._records.forget_layer(record.diff_id)
            freed += record.size
            await asyncio.to_thread(remove_tree, self._root, layer_folder(self._root, record.diff_id))
        return freed


def layer_folder(root: Path, diff_id: str) -> Path:
    return root / "layers" / diff_id.removeprefix("sha256:")


def remove_tree(root: Path, folder: Path) -> None:
    """First out of the way, so that a removal that is interrupted leaves nothing that looks whole."""
    aside = root / "removed" / f"{folder.name}-{os.urandom(4).hex()}"
    try:
        folder.rename(aside)
    except FileNotFoundError:
        return
    tree_removal.remove_tree(aside)
