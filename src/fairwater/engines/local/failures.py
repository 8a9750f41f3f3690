"""What the agent's answers and a broken connection mean for the control plane."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2

from fairwater.domain.failure import Permanent, Temporary
from fairwater.ports.agent import API_VERSION

AWAY_DELAY_S = 1.0


def away(socket: Path, why: str) -> Temporary:
    """Nobody answers on the agent's socket."""
    return Temporary(
        f"the node agent does not answer on {socket} ({why}): start it with `fairwater node run`, or look into its log",
        code="agent_away",
        delay_s=AWAY_DELAY_S,
    )


@contextmanager
def connection_failures(socket: Path) -> Iterator[None]:
    """Turns what can break a connection into `Temporary` (`agent_away`, `agent_slow`)."""
    try:
        yield
    except httpx2.TimeoutException as error:
        raise Temporary(
            f"the node agent on {socket} took too long to answer; the machine may be overloaded",
            code="agent_slow",
            delay_s=AWAY_DELAY_S,
        ) from error
    except httpx2.TransportError as error:
        raise away(socket, str(error) or type(error).__name__) from error


def read_problem(status: int, body: bytes) -> Temporary | Permanent:
    """The failure that a problem details answer tells of."""
    try:
        told: Any = json.loads(body)
    except ValueError:
        told = None
    if not isinstance(told, dict) or "code" not in told:
        return Permanent(f"the node agent answered {status} without saying why", code="agent_protocol")
    code, detail = str(told["code"]), str(told.get("detail", ""))
    if status == 426:
        spoken = ", ".join(str(version) for version in told.get("supported") or ["unknown"])
        return Permanent(
            f"the server speaks version {API_VERSION} of the node agent's API, the agent {spoken}: run server and "
            "agent of neighbouring versions",
            code="agent_version",
        )
    delay_s = told.get("retry_after_s")
    if isinstance(delay_s, (int, float)):
        return Temporary(detail, code=code, delay_s=float(delay_s))
    if status >= 500 and code == "internal_error":
        return Temporary(f"the node agent failed: {detail}", code="agent_failed", delay_s=AWAY_DELAY_S)
    return Permanent(detail, code=code)
