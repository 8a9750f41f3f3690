"""The classes of workspaces: a fixed, generous set of limits for each."""

from __future__ import annotations

from dataclasses import dataclass

from fairwater.domain.units import GIB, Bytes


@dataclass(frozen=True, slots=True)
class WorkspaceClass:
    """What a workspace of this class may use at most.

    `cpu_cores` is a ceiling in cores, `memory` and `disk` are in bytes, `processes` counts threads too, as the
    kernel's pids controller does.
    """

    name: str
    cpu_cores: float
    memory: Bytes
    processes: int
    disk: Bytes


STANDARD = WorkspaceClass("standard", cpu_cores=4, memory=Bytes(8 * GIB), processes=4096, disk=Bytes(30 * GIB))
XL = WorkspaceClass("xl", cpu_cores=8, memory=Bytes(16 * GIB), processes=8192, disk=Bytes(60 * GIB))
