"""The images that a node offers: the machine's own programs as `host`, everything else from the store."""

from __future__ import annotations

from collections.abc import Callable

from fairwater.domain.images.reference import Kind, parse_reference
from fairwater.domain.workspaces.run import Progress
from fairwater.domain.workspaces.secrets import RunSecrets
from fairwater.ports.images import ImageRoot, Images


class OfferedImages:
    """Implements `ports.images.Images`. `brought` hears of each image that was prepared: a start of it follows."""

    def __init__(self, host: Images, store: Images, brought: Callable[[ImageRoot], None] = lambda _: None) -> None:
        self._host = host
        self._store = store
        self._brought = brought

    async def find(self, reference: str, secrets: RunSecrets = RunSecrets()) -> ImageRoot | None:
        return await self._of(reference).find(reference, secrets)

    async def prepare(
        self,
        reference: str,
        secrets: RunSecrets = RunSecrets(),
        report: Callable[[Progress], None] = lambda _: None,
        *,
        local_allowed: bool = False,
    ) -> ImageRoot:
        images = self._of(reference)
        image = await images.prepare(reference, secrets, report, local_allowed=local_allowed)
        if images is not self._host:
            self._brought(image)
        return image

    def _of(self, reference: str) -> Images:
        return self._host if parse_reference(reference).kind is Kind.HOST else self._store
