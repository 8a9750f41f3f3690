"""What reading one configuration file leads to, before it is put together as `setup.Wanted`."""

from __future__ import annotations

from dataclasses import dataclass

from fairwater.domain.workspaces.config.tasks import Stage
from fairwater.domain.workspaces.setup import Wanted


@dataclass(frozen=True, slots=True)
class Explanation:
    """`stages` are those of `wanted.tasks`, one for one; `passed_over` are files that were there and are not used."""

    wanted: Wanted
    stages: tuple[tuple[Stage, ...], ...] = ()
    passed_over: tuple[str, ...] = ()
