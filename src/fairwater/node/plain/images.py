"""The one image of plain processes: the machine as it is."""

from __future__ import annotations

import os
from collections.abc import Callable

from fairwater.domain.failure import Permanent
from fairwater.domain.workspaces.run import Progress
from fairwater.domain.workspaces.secrets import RunSecrets
from fairwater.node.plain.places import HOME
from fairwater.ports.images import ImageRoot, ImageUser

_HOST = ImageRoot("host", layers=(), digest="host", user=ImageUser("dev", os.geteuid(), os.getegid(), HOME))


class PlainImages:
    """Implements `ports.images.Images` with nothing to prepare."""

    async def find(self, reference: str, secrets: RunSecrets = RunSecrets()) -> ImageRoot | None:
        return _HOST if reference == _HOST.reference else None

    async def prepare(
        self,
        reference: str,
        secrets: RunSecrets = RunSecrets(),
        report: Callable[[Progress], None] = lambda _: None,
        *,
        local_allowed: bool = False,
    ) -> ImageRoot:
        if reference != _HOST.reference:
            raise Permanent(
                f"there is no image {reference[:80]!r} here: without isolation only 'host' is offered; for others, "
                "run Fairwater as root",
                code="no_such_image",
            )
        return _HOST
