"""Which images were started how often on this node, kept over a restart of the agent in a small file.

Beside the counts it keeps what is needed to park an image again without asking anybody for it. Decides nothing.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import structlog
from pydantic import TypeAdapter, ValidationError

from fairwater.domain.workspaces.parking import UNUSED, Use, is_forgotten
from fairwater.ports.clock import Clock
from fairwater.ports.images import ImageRoot

IMAGES_MAX = 256


@dataclass(frozen=True, slots=True)
class _Known:
    image: ImageRoot
    use: Use


_FILE = TypeAdapter(tuple[_Known, ...])


class ImageUsage:
    """Read from `file` at once; `save` blocks."""

    def __init__(self, file: Path, clock: Clock) -> None:
        self._file = file
        self._clock = clock
        self._known: dict[str, _Known] = {known.image.digest: known for known in _read(file)}
        self._default: ImageRoot | None = None
        self._changed = False

    def now(self) -> float:
        """Seconds since 1970."""
        return self._clock.now().timestamp()

    def uses(self) -> dict[str, Use]:
        return {digest: known.use for digest, known in self._known.items()}

    def image(self, digest: str) -> ImageRoot | None:
        if self._default is not None and self._default.digest == digest:
            return self._default
        known = self._known.get(digest)
        return known.image if known else None

    def note_start(self, image: ImageRoot) -> None:
        self._note(image, self._use(image).started(self.now()))

    def expect_start(self, image: ImageRoot) -> None:
        self._note(image, self._use(image).expected(self.now()))

    def forget(self, digest: str) -> None:
        self._changed |= self._known.pop(digest, None) is not None

    def forget_old(self) -> None:
        """Forgets what was not started for long, and the least used where there are too many."""
        now = self.now()
        by_use = sorted(self._known.items(), key=lambda pair: pair[1].use.as_of(now).overall, reverse=True)
        for place, (digest, known) in enumerate(by_use):
            if place >= IMAGES_MAX or is_forgotten(known.use, now):
                self.forget(digest)

    def set_default(self, image: ImageRoot) -> None:
        """The image that is always known; what its reference stood for before is forgotten."""
        self._default = image
        for digest, known in tuple(self._known.items()):
            if known.image.reference == image.reference and digest != image.digest:
                self.forget(digest)

    @property
    def default_digest(self) -> str | None:
        return self._default.digest if self._default else None

    def save(self) -> None:
        """Writes what has changed. A full disk is no reason to stop: what is lost is only about being quick."""
        if not self._changed:
            return
        self._changed = False
        try:
            self._write()
        except OSError as error:
            self._changed = True
            structlog.get_logger().warning("image_usage_not_saved", file=str(self._file), reason=str(error))

    def _write(self) -> None:
        aside = self._file.with_suffix(".new")
        with open(os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600), "wb") as file:
            file.write(_FILE.dump_json(tuple(self._known.values())))
        aside.replace(self._file)

    def _use(self, image: ImageRoot) -> Use:
        known = self._known.get(image.digest)
        return known.use if known else UNUSED

    def _note(self, image: ImageRoot, use: Use) -> None:
        self._known[image.digest] = _Known(image, use)
        self._changed = True


def _read(file: Path) -> tuple[_Known, ...]:
    """What is kept; nothing where the file is damaged: it is only about being quick."""
    try:
        return _FILE.validate_json(file.read_bytes())
    except FileNotFoundError:
        return ()
    except ValidationError:
        structlog.get_logger().warning("image_usage_damaged", file=str(file))
        return ()
