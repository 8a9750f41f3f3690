"""The one image of plain processes: the machine as it is."""

from __future__ import annotations

from fairwater.domain.failure import Permanent
from fairwater.ports.images import ImageRoot


class PlainImages:
    """Implements `ports.images.Images` with nothing to prepare."""

    async def prepare(self, reference: str) -> ImageRoot:
        if reference != "host":
            raise Permanent(
                f"there is no image {reference[:80]!r} here: without isolation only 'host' is offered",
                code="no_such_image",
            )
        return ImageRoot(reference, layers=())
