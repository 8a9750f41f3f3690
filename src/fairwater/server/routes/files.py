"""Files in and out of a workspace, as streams. What may be reached is the node's to decide."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Annotated

from fastapi import APIRouter, Path, Request
from starlette.responses import Response

from fairwater.domain.failure import Permanent
from fairwater.domain.ids import WorkspaceId
from fairwater.server.authentication import Principal
from fairwater.server.authorisation import Caller, workspace_for
from fairwater.server.documents import file_document
from fairwater.server.idempotency import json_response
from fairwater.server.services import services_of
from fairwater.server.streams import ClosingStream, Watched

router = APIRouter(prefix="/workspaces", tags=["files"])
_PATH_LENGTH_MAX = 4096
_FIRST_BYTES_S = 30.0
_UNTRUSTED = {"X-Content-Type-Options": "nosniff", "Content-Security-Policy": "sandbox", "Cache-Control": "no-store"}
"""What stands in a workspace was written by anybody: no browser may take it for a page of Fairwater's."""
FilePath = Annotated[str, Path(max_length=_PATH_LENGTH_MAX, description="Absolute, without its first slash.")]


@router.get("/{workspace}/files/{path:path}")
async def read_file(request: Request, who: Caller, workspace: str, path: FilePath) -> Response:
    """A file's bytes, or the entries of a folder as JSON."""
    services = services_of(request)
    key = await _workspace(request, who, workspace)
    try:
        chunks = await services.access.read_file(key, _absolute(path))
    except Permanent as failure:
        if failure.code != "is_folder":
            raise
        entries = await services.access.list_folder(key, _absolute(path))
        return json_response(200, {"items": [file_document(entry) for entry in entries]}, _UNTRUSTED)
    stream = Watched(chunks)
    await stream.begin(_FIRST_BYTES_S)
    return ClosingStream(stream.items(), stream.close, "application/octet-stream", _UNTRUSTED)


@router.put("/{workspace}/files/{path:path}", status_code=201)
async def write_file(request: Request, who: Caller, workspace: str, path: FilePath) -> Response:
    """Replaces the file as a whole, or leaves it as it was."""
    services = services_of(request)
    key = await _workspace(request, who, workspace)
    size = await services.access.write_file(key, _absolute(path), _body(request))
    return json_response(201, {"size": size})


async def _body(request: Request) -> AsyncIterator[bytes]:
    async for chunk in request.stream():
        if chunk:
            yield chunk


async def _workspace(request: Request, who: Principal, reference: str) -> WorkspaceId:
    async with services_of(request).database.read() as transaction:
        entry = await workspace_for(request, transaction, who, reference)
    return entry.workspace.id


def _absolute(path: str) -> str:
    if "\0" in path:
        raise Permanent("a path must not hold a NUL character", code="bad_path")
    return "/" + path.lstrip("/")
