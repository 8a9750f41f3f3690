"""Server-sent events of workspaces."""

from __future__ import annotations

import asyncio
from contextlib import ExitStack
from typing import Annotated, Literal

from fastapi import APIRouter, Header, Query, Request
from starlette.responses import Response

from fairwater.domain.failure import Permanent
from fairwater.domain.ids import UserId, WorkspaceId
from fairwater.server.authentication import Principal
from fairwater.server.authorisation import Caller, workspace_for
from fairwater.server.event_stream import EventStream
from fairwater.server.services import services_of
from fairwater.server.streams import ClosingStream
from fairwater.serving.peers import STOPPING

router = APIRouter(tags=["events"])
_HEADERS = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
_SEQUENCE_MAX = 2**63 - 1
After = Annotated[int | None, Query(ge=0, le=_SEQUENCE_MAX, description="Take up after this sequence number.")]
LastEventId = Annotated[str | None, Header(alias="Last-Event-ID")]


@router.get("/workspaces/{workspace}/events")
async def workspace_events(
    request: Request, who: Caller, workspace: str, after: After = None, last_event_id: LastEventId = None
) -> Response:
    """From its first event on, unless told after which one."""
    async with services_of(request).database.read() as transaction:
        entry = await workspace_for(request, transaction, who, workspace)
    return _stream(request, who, _last(after, last_event_id) or 0, None, entry.workspace.id)


@router.get("/events")
async def all_events(
    request: Request,
    who: Caller,
    owner: Literal["me", "all"] = "me",
    after: After = None,
    last_event_id: LastEventId = None,
) -> Response:
    """From now on, unless told after which one. `all` is all that you may see, as in the list of workspaces."""
    last = _last(after, last_event_id)
    if last is None:
        async with services_of(request).database.read() as transaction:
            last = await transaction.history.newest()
    return _stream(request, who, last, None if owner == "all" and who.is_staff else who.id, None)


def _stream(
    request: Request, who: Principal, after: int, owner: UserId | None, workspace: WorkspaceId | None
) -> Response:
    services = services_of(request)
    revoked, stack = asyncio.Event(), ExitStack()
    stopping: asyncio.Event | None = request.scope.get(STOPPING)
    stack.enter_context(services.authenticator.staying(who, revoked))
    ends = (revoked,) if stopping is None else (revoked, stopping)
    frames = EventStream(services, after, owner, workspace, *ends).frames()

    async def ended() -> None:
        stack.close()
        await frames.aclose()

    return ClosingStream(frames, ended, "text/event-stream", _HEADERS)


def _last(after: int | None, last_event_id: str | None) -> int | None:
    """The header is what a client sends by itself when it connects again, so it is newer than the address."""
    if last_event_id is None or not last_event_id:
        return after
    if not (last_event_id.isascii() and last_event_id.isdigit() and int(last_event_id) <= _SEQUENCE_MAX):
        raise Permanent(f"Last-Event-ID {last_event_id[:40]!r} is not a sequence number", code="bad_event_id")
    return int(last_event_id)
