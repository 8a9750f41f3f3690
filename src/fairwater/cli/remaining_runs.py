"""Runs that the node still holds once the server has stopped all that it knows: those of workspaces that a backup, put
in the database's place, does not have. Asked of the node agent itself, by whoever has started it."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import httpx2

from fairwater.cli.connection import Target
from fairwater.ports.agent import API_VERSION, VERSION_HEADER

_LOOK_AGAIN_S = 0.2


def stop_remaining_runs(node: Target, bound_s: float, tell: Callable[[str], None]) -> bool:
    """Stops them in order and waits, `bound_s` at most; whether none is left."""
    transport = httpx2.HTTPTransport(uds=str(node.socket))
    headers = {VERSION_HEADER: str(API_VERSION)}
    try:
        with httpx2.Client(transport=transport, headers=headers, timeout=30, base_url=node.url) as client:
            remaining = _remaining(client)
            for run in remaining:
                tell(f"stopping workspace {run['workspace']}, which the node runs and the database does not know")
                client.delete(f"/v1/runs/{run['workspace']}", params={"run": run["run"]})
            ends = time.monotonic() + bound_s
            while remaining and time.monotonic() < ends:
                time.sleep(_LOOK_AGAIN_S)
                remaining = _remaining(client)
    except httpx2.TransportError:
        return False
    return not remaining


def _remaining(client: httpx2.Client) -> list[dict[str, Any]]:
    answer = client.get("/v1/runs")
    return [run for run in answer.json() if run["state"] != "ended"] if answer.is_success else []
