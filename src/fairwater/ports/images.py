"""What a sandbox's file system begins with."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol


@dataclass(frozen=True, slots=True)
class ImageRoot:
    """An image, ready to be used as a root file system.

    `layers` are folders, the uppermost first, ids on disk counted from 0; `binds` are folders of the machine shown
    read-only at a path of the image; `environment` is what the image sets.
    """

    reference: str
    layers: tuple[Path, ...]
    binds: tuple[tuple[Path, str], ...] = ()
    environment: tuple[tuple[str, str], ...] = ()


class Images(Protocol):
    """Images by reference: `host`, or an OCI reference where an adapter for those is configured."""

    async def prepare(self, reference: str) -> ImageRoot:
        """The image, brought in where it is not here yet. Raises Permanent (`no_such_image`)."""
        ...
