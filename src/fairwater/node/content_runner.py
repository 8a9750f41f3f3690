"""Where git runs for content, and by when it must be done. Refuses to know what is run."""

from __future__ import annotations

import asyncio
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from fairwater.domain.workspaces.run import Source

PART_S = 300.0
"""How long one submodule, the large files of one checkout, or one repository beside the main one may take."""


class GitRunner(Protocol):
    """Where git runs. Paths in its commands are as seen there."""

    @property
    def home(self) -> str:
        """An empty folder."""
        ...

    @property
    def config(self) -> str:
        """The file with `git.CONFIG`."""
        ...

    async def run(self, command: tuple[str, ...], environment: Mapping[str, str], printed_max: int = 0) -> bytes:
        """As `git_words.listen`."""
        ...

    async def show(self, source: Source) -> tuple[str, ...]:
        """Makes a `file://` source readable there; the options git needs to find it.

        Raises:
            Permanent: `not_a_listed_root`, `not_a_repository`.
        """
        ...

    def offers_key(self, source: Source) -> bool:
        """Whether the person has an SSH key for the source's host."""
        ...


@dataclass(slots=True)
class Deadline:
    """`at` is when all must be done, by the event loop's clock; `all_s` is how long that was at the beginning."""

    at: float
    all_s: float

    def part(self) -> float:
        return min(self.at, asyncio.get_running_loop().time() + PART_S)


def script(*lines: str, **names: str) -> tuple[str, ...]:
    """A command of `sh`: `lines` in order until one fails, with each `{name}` replaced by its quoted value."""
    quoted = {name: shlex.quote(value) for name, value in names.items()}
    return ("sh", "-c", " && ".join(line.format(**quoted) for line in lines))
