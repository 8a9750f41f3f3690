"""The tasks of a workspace's run: where they stand, and what their terminals have shown."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Path, Request
from starlette.responses import Response

from fairwater.server.authorisation import Caller, workspace_for
from fairwater.server.documents import task_document
from fairwater.server.idempotency import json_response
from fairwater.server.routes.logs import text_stream
from fairwater.server.services import services_of

router = APIRouter(prefix="/workspaces", tags=["tasks"])
_NUMBER_MAX = 9999


@router.get("/{workspace}/tasks")
async def list_tasks(request: Request, who: Caller, workspace: str) -> Response:
    """Of the current run, or the last; in the order in which they are written."""
    services = services_of(request)
    async with services.database.read() as transaction:
        entry = await workspace_for(request, transaction, who, workspace)
    found = await services.access.tasks(entry.workspace.id, entry.workspace.run)
    return json_response(200, {"items": [task_document(task) for task in found], "next": None})


@router.get("/{workspace}/tasks/{number}/log")
async def read_task_log(
    request: Request,
    who: Caller,
    workspace: str,
    number: Annotated[int, Path(ge=0, le=_NUMBER_MAX)],
    follow: bool = False,
) -> Response:
    """The last of what its terminal has shown; with `follow`, on until the task ends."""
    services = services_of(request)
    async with services.database.read() as transaction:
        entry = await workspace_for(request, transaction, who, workspace)
    chunks = services.access.task_log(entry.workspace.id, entry.workspace.run, number, follow=follow)
    return await text_stream(request, who, chunks)
