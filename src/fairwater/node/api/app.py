"""The node agent's API: each row of the table in `ports/agent.py` as a route.

Decides how messages travel; what happens is the business of the ports behind it. Who may connect was decided by the
socket (`serving.peers`). The answers are made by hand from the ports' dataclasses: a start is on this path.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Annotated, TypeVar

from fastapi import FastAPI, Query, Request, WebSocket
from fastapi.exceptions import RequestValidationError
from pydantic import TypeAdapter, ValidationError
from starlette.responses import Response, StreamingResponse
from starlette.websockets import WebSocketDisconnect

from fairwater.domain.failure import Permanent, Temporary
from fairwater.domain.ids import RunNumber, parse_workspace_id
from fairwater.node.api.version import RequireVersion
from fairwater.ports.agent import Fact, RunAgent, WorkspaceAccess
from fairwater.ports.process import Process
from fairwater.serving.agent_messages import (
    ALL_RUN_FACTS,
    EXEC_REQUEST,
    FACTS,
    FOLDER,
    HELLO,
    MAYBE_RUN_FACTS,
    RUN_FACTS,
    START_REQUEST,
    TASKS,
)
from fairwater.serving.command_session import serve_command
from fairwater.serving.problems import install_problems
from fairwater.serving.streams import kept_alive

BEAT_S = 10.0
MESSAGE_BYTES_MAX = 1024 * 1024
_FIRST_MESSAGE_S = 10.0
_FIRST_CHUNK_S = 0.25
_JSON = "application/json"
_BYTES = "application/octet-stream"
_STATUSES = {
    "no_such_file": 404,
    "no_such_folder": 404,
    "outside": 403,
    "access_denied": 403,
    "too_large": 413,
    "quota_exceeded": 507,
}
_Run = Annotated[int, Query(ge=1)]
T = TypeVar("T")


def create_agent_app(
    runs: RunAgent, access: WorkspaceAccess, facts: Callable[[], Awaitable[tuple[Fact, ...]]]
) -> FastAPI:
    """The app that `serving.serve` serves on the agent's socket."""
    app = FastAPI(title="Fairwater node agent", openapi_url=None)
    install_problems(app, _STATUSES)
    app.add_middleware(RequireVersion)
    _add_runs(app, runs)
    _add_access(app, access)
    _add_tasks(app, access)

    @app.get("/v1/facts")
    async def node_facts() -> Response:
        return Response(FACTS.dump_json(await facts()), media_type=_JSON)

    return app


def _add_runs(app: FastAPI, runs: RunAgent) -> None:
    @app.get("/v1/hello")
    async def hello() -> Response:
        return Response(HELLO.dump_json(await runs.hello()), media_type=_JSON)

    @app.get("/v1/runs")
    async def list_runs() -> Response:
        return Response(ALL_RUN_FACTS.dump_json(await runs.runs()), media_type=_JSON)

    @app.put("/v1/runs/{workspace}")
    async def start_run(workspace: str, request: Request) -> Response:
        wanted = _read(START_REQUEST, await _body(request))
        if wanted.run < 1:
            raise Permanent(f"runs are counted from 1, not {wanted.run}", code="bad_run")
        found = await runs.start_run(parse_workspace_id(workspace), wanted)
        return Response(RUN_FACTS.dump_json(found), media_type=_JSON)

    @app.delete("/v1/runs/{workspace}")
    async def stop_run(workspace: str, run: _Run, force: bool = False) -> Response:
        found = await runs.stop_run(parse_workspace_id(workspace), RunNumber(run), force=force)
        return Response(MAYBE_RUN_FACTS.dump_json(found), media_type=_JSON)

    @app.delete("/v1/volumes/{workspace}")
    async def delete_volume(workspace: str, run: _Run) -> Response:
        await runs.delete_volume(parse_workspace_id(workspace), RunNumber(run))
        return Response(status_code=204)

    @app.get("/v1/changes")
    async def changes(request: Request) -> Response:
        return await _streamed(_lines(runs), request, "application/x-ndjson", beat_s=BEAT_S)


async def _lines(runs: RunAgent) -> AsyncIterator[bytes]:
    async for found in runs.changes():
        yield RUN_FACTS.dump_json(found) + b"\n"


def _add_access(app: FastAPI, access: WorkspaceAccess) -> None:
    @app.websocket("/v1/exec/{workspace}")
    async def run_command(websocket: WebSocket, workspace: str, run: _Run) -> None:
        identity = parse_workspace_id(workspace)
        await websocket.accept()

        async def start() -> Process:
            wanted = await _first_message(websocket)
            try:
                request = EXEC_REQUEST.validate_json(wanted)
            except ValidationError as error:
                first = error.errors()[0]
                field = ".".join(map(str, first["loc"])) or "request"
                raise Permanent(f"{field}: {first['msg']}", code="bad_request") from None
            return await access.exec(identity, RunNumber(run), request)

        await serve_command(websocket, start())

    @app.get("/v1/files/{workspace}/{path:path}")
    async def read(workspace: str, path: str, request: Request) -> Response:
        identity, absolute = parse_workspace_id(workspace), f"/{path}"
        asked = request.headers.get("accept", "")
        if _JSON not in asked:
            try:
                content = await access.read_file(identity, absolute)
                return await _streamed(content, request, _BYTES)
            except Permanent as failure:
                if failure.code != "is_folder" or _BYTES in asked:
                    raise
        return Response(FOLDER.dump_json(await access.list_folder(identity, absolute)), media_type=_JSON)

    @app.put("/v1/files/{workspace}/{path:path}")
    async def write(workspace: str, path: str, request: Request) -> Response:
        size = await access.write_file(parse_workspace_id(workspace), f"/{path}", request.stream())
        return Response(b'{"size": %d}' % size, 201, media_type=_JSON)

    @app.get("/v1/logs/{workspace}")
    async def logs(workspace: str, run: _Run, request: Request, follow: bool = False) -> Response:
        chunks = access.logs(parse_workspace_id(workspace), RunNumber(run), follow=follow)
        return await _streamed(chunks, request, "text/plain; charset=utf-8")


def _add_tasks(app: FastAPI, access: WorkspaceAccess) -> None:
    @app.get("/v1/tasks/{workspace}")
    async def tasks(workspace: str, run: _Run) -> Response:
        found = await access.tasks(parse_workspace_id(workspace), RunNumber(run))
        return Response(TASKS.dump_json(found), media_type=_JSON)

    @app.get("/v1/tasks/{workspace}/{number}/log")
    async def task_log(workspace: str, number: int, run: _Run, request: Request, follow: bool = False) -> Response:
        chunks = access.task_log(parse_workspace_id(workspace), RunNumber(run), number, follow=follow)
        return await _streamed(chunks, request, "text/plain; charset=utf-8")


async def _streamed(
    chunks: AsyncIterator[bytes], request: Request, media_type: str, *, beat_s: float | None = None
) -> Response:
    """`chunks` as an answer. What fails at once is told by its status; a source that is silent is not waited for."""
    stream = kept_alive(chunks, request.scope, beat=b"\n", beat_s=beat_s)
    first = asyncio.ensure_future(anext(stream, b""))
    await asyncio.wait({first}, timeout=_FIRST_CHUNK_S)
    if first.done():
        first.result()

    async def body() -> AsyncIterator[bytes]:
        try:
            yield await first
            async for chunk in stream:
                yield chunk
        finally:
            first.cancel()
            await asyncio.gather(first, return_exceptions=True)
            await stream.aclose()

    return StreamingResponse(body(), media_type=media_type)


async def _body(request: Request) -> bytes:
    """The whole body. Raises Permanent: `too_large`."""
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > MESSAGE_BYTES_MAX:
            raise Permanent(f"a message has at most {MESSAGE_BYTES_MAX} bytes", code="too_large")
    return bytes(body)


def _read(adapter: TypeAdapter[T], body: bytes) -> T:
    try:
        return adapter.validate_json(body)
    except ValidationError as error:
        raise RequestValidationError(error.errors(include_url=False, include_input=False)) from None


async def _first_message(websocket: WebSocket) -> str:
    try:
        async with asyncio.timeout(_FIRST_MESSAGE_S):
            message = await websocket.receive()
    except TimeoutError:
        raise Temporary("no command came within 10 s of connecting", code="no_request") from None
    if message["type"] == "websocket.disconnect":
        raise WebSocketDisconnect(message.get("code", 1006))
    return str(message.get("text") or "")
