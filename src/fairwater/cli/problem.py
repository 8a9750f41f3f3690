"""What an answer that is no success means, told apart by what a person can do about it."""

from __future__ import annotations

from typing import Any
from urllib.parse import quote

from fairwater.domain.failure import Permanent, Temporary


class NotFound(Permanent):
    """There is no such thing, or it is somebody else's."""


class LostConnection(Temporary):
    """The connection broke after it was made: whether the request took effect is not known."""


def failure_of(status: int, problem: dict[str, Any]) -> Temporary | Permanent:
    """A problem (RFC 9457) as a failure."""
    code = str(problem.get("code") or f"http_{status}")
    message = str(problem.get("detail") or problem.get("title") or f"the server answered {status}")
    for error in problem.get("errors") or ():
        if isinstance(error, dict):
            where = ".".join(str(part) for part in error.get("loc", ()) if part != "body")
            what = str(error.get("msg") or error.get("message") or error.get("detail") or "")
            if what and what not in message:
                message += f"\n  {where}: {what}" if where else f"\n  {what}"
    if status == 401:
        message += ". Log in with: fairwater login --server URL, or give a token with FAIRWATER_TOKEN."
    retry_after_s = problem.get("retry_after_s")
    if retry_after_s is not None or status in {429, 503}:
        return Temporary(message, code=code, delay_s=float(retry_after_s or 1.0))
    if status == 404:
        return NotFound(message, code=code)
    return Permanent(message, code=code)


def workspace_path(workspace: str, *rest: str) -> str:
    """The path of a workspace, named by a person: whatever the name holds, it stays one segment."""
    return "/".join(["/workspaces", quote(workspace, safe=""), *rest])
