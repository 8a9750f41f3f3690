"""Where a workspace's paths are on the machine, since a plain process has no mounts of its own.

Decides that `/workspace` and the home directory are folders of the volume, and that every other path is the
machine's own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

HOME = "/home/dev"
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
MARKER = "FAIRWATER_SANDBOX"
"""The variable by which the processes of a sandbox are found again."""


@dataclass(frozen=True, slots=True)
class Places:
    """The paths of one workspace: `volume` is the root of its volume, `home` its home directory as it sees it."""

    volume: Path
    home: str = HOME

    def on_machine(self, path: str) -> str:
        """The machine's path for `path` of the workspace."""
        pure = PurePosixPath(path)
        for prefix, folder in (("/workspace", "workspace"), (self.home, "home")):
            if pure.is_relative_to(prefix):
                return str(self.volume / folder / pure.relative_to(prefix))
        return path

    def environment(self, sandbox: str, *layers: Mapping[str, str]) -> dict[str, str]:
        """A command's whole environment: nothing is inherited. A value that is a path of the workspace is mapped."""
        merged: dict[str, str] = {"PATH": _PATH, "LANG": "C.UTF-8", "SHELL": "/bin/sh", "HOME": self.home}
        for layer in layers:
            merged.update(layer)
        mapped = {name: self.on_machine(value) if value.startswith("/") else value for name, value in merged.items()}
        return {**mapped, MARKER: sandbox}
