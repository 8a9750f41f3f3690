"""Where Fairwater keeps what: the layout of its data directory, and which directory that is by default.

Names paths only; creates, locks and reads nothing.

| path | whose | what |
| --- | --- | --- |
| `server/` | the server's user, 0700 | the database |
| `node/` | root, 0700 | volumes, sandboxes, what the node agent knows |
| `run/` | root and the server's group, 1775 | the sockets of server and agent |
| `logs/` | root, 0750 | `server.log`, `node.log` |
| `lock`, `format` | root | who runs on it; the number of this layout |
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

FORMAT = 1
"""The number of the layout that this version writes. A version refuses a directory with a greater one."""


@dataclass(frozen=True, slots=True)
class DataDir:
    root: Path

    @property
    def server(self) -> Path:
        return self.root / "server"

    @property
    def node(self) -> Path:
        return self.root / "node"

    @property
    def run(self) -> Path:
        return self.root / "run"

    @property
    def logs(self) -> Path:
        return self.root / "logs"

    @property
    def lock(self) -> Path:
        return self.root / "lock"

    @property
    def format(self) -> Path:
        return self.root / "format"

    @property
    def server_socket(self) -> Path:
        return self.run / "server.sock"

    @property
    def node_socket(self) -> Path:
        return self.run / "node.sock"


def default_data_dirs() -> tuple[Path, ...]:
    """Where a Fairwater of this machine may keep its data, the most likely place first."""
    system = Path("/var/lib/fairwater")
    if os.geteuid() == 0:
        return (system,)
    share = os.environ.get("XDG_DATA_HOME") or "~/.local/share"
    return (Path(share).expanduser() / "fairwater", system)
