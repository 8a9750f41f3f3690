"""What the server is told about itself: a frozen value, made by whoever wires it together."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from fairwater.domain.abuse.rate import StartLimit
from fairwater.domain.ids import WorkspaceId
from fairwater.domain.workspaces.classes import STANDARD, XL, WorkspaceClass


@dataclass(frozen=True, slots=True)
class ServerOptions:
    """`administrator_uids` are the peers of the unix socket that are the local administrator.

    `configuration` is what `GET /config` shows, secrets masked already. `account_cache_s` is for how long a token's
    account is believed without asking the database: a change made through another server takes that long to be felt,
    one made through this server acts at once. `default_image` is that of a workspace for which neither a person nor the
    repository names one. Times are in seconds.
    """

    public_url: str = "http://localhost:7080"
    classes: Mapping[str, WorkspaceClass] = field(default_factory=lambda: {STANDARD.name: STANDARD, XL.name: XL})
    start_limit: StartLimit = field(default_factory=StartLimit)
    administrator_uids: frozenset[int] = frozenset({0})
    configuration: Mapping[str, Any] = field(default_factory=dict)
    cluster: str = "local"
    default_image: str = "host"
    account_cache_s: float = 3.0
    keep_alive_s: float = 15.0

    def workspace_url(self, workspace: WorkspaceId) -> str:
        """`http://{id}.ws.localhost:7080`; an address of this machine is named `localhost`, which browsers resolve."""
        parts = urlsplit(self.public_url)
        host = parts.hostname or "localhost"
        if host.startswith("127.") or ":" in host or host == "0.0.0.0":
            host = "localhost"
        port = f":{parts.port}" if parts.port else ""
        return f"{parts.scheme}://{workspace}.ws.{host}{port}"
