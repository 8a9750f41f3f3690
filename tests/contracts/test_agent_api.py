"""What the agent's API adds to its ports: versions, streams, bad requests, and what its client makes of them."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx2
import pytest
from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.websockets import WebSocket
from websockets.asyncio.client import unix_connect
from websockets.exceptions import InvalidStatus

from fairwater.domain.failure import Permanent, Temporary
from fairwater.domain.ids import RunNumber, WorkspaceId
from fairwater.engines.local.client import AgentClient
from fairwater.node.api import app as agent_app
from fairwater.ports.agent import VERSION_HEADER, StartRequest
from fairwater.ports.process import ExecRequest

if TYPE_CHECKING:
    from tests.contracts.conftest import Node

WORKSPACE = WorkspaceId("abcdefgh2345")
FIRST = RunNumber(1)
WITHIN_S = 20.0
remote = pytest.mark.parametrize("node", ["socket"], indirect=True)
Serving = Callable[..., AbstractAsyncContextManager[Any]]


async def ask(
    path: Path, method: str, url: str, *, version: str | None = "1", body: bytes | None = None, **headers: str
) -> httpx2.Response:
    transport = httpx2.AsyncHTTPTransport(uds=str(path))
    if version is not None:
        headers[VERSION_HEADER] = version
    async with httpx2.AsyncClient(transport=transport, base_url="http://agent") as client:
        return await client.request(method, url, content=body, headers=headers)


# --- versions -------------------------------------------------------------------------------------------------------


@remote
@pytest.mark.parametrize("version", ["0", "2", "99", "one", ""])
async def test_a_version_that_the_agent_does_not_speak_is_refused(node: Node, version: str) -> None:
    answer = await ask(node.socket, "GET", "/v1/hello", version=version)
    assert answer.status_code == 426
    assert answer.headers["content-type"] == "application/problem+json"
    assert (answer.json()["code"], answer.json()["supported"]) == ("unknown_version", [1])


@remote
async def test_a_request_without_a_version_is_refused(node: Node) -> None:
    answer = await ask(node.socket, "PUT", f"/v1/runs/{WORKSPACE}", version=None, body=b"{}")
    assert (answer.status_code, answer.json()["code"]) == (400, "no_version")


@remote
async def test_a_command_of_an_unknown_version_is_refused_before_it_is_read(node: Node) -> None:
    with pytest.raises(InvalidStatus) as told:
        await unix_connect(
            str(node.socket), f"ws://agent/v1/exec/{WORKSPACE}?run=1", additional_headers={VERSION_HEADER: "7"}
        )
    assert told.value.response.status_code == 426


async def test_the_client_names_both_versions_where_they_do_not_match(short_path: Path, serving: Serving) -> None:
    async with serving(of_another_version(), short_path / "s"), AgentClient(short_path / "s") as client:
        for asked in (client.hello(), client.exec(WORKSPACE, FIRST, ExecRequest(("true",)))):
            with pytest.raises(Permanent) as told:
                await asked
            assert told.value.code == "agent_version"
            assert "version 1" in told.value.message
            assert "3, 4" in told.value.message


def of_another_version() -> Any:
    """An agent of the far future."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            return
        body = {"code": "unknown_version", "status": 426, "detail": "", "supported": [3, 4]}
        response = JSONResponse(body, 426)
        if scope["type"] == "websocket":
            await WebSocket(scope, receive, send).send_denial_response(response)
        else:
            await response(scope, receive, send)

    return app


@remote
async def test_members_that_the_agent_does_not_know_are_left_out(node: Node) -> None:
    spec = {"image": "host", "limits": json_of(node.request().spec.limits), "colour": "blue"}
    body = json.dumps({"run": 1, "spec": spec, "from_the_future": {"x": 1}}).encode()
    answer = await ask(node.socket, "PUT", f"/v1/runs/{WORKSPACE}", body=body)
    assert answer.status_code == 200
    assert answer.json()["run"] == 1


def json_of(limits: Any) -> dict[str, Any]:
    return {name: getattr(limits, name) for name in ("name", "cpu_cores", "memory", "processes", "disk")}


# --- bad requests ---------------------------------------------------------------------------------------------------


@remote
@pytest.mark.parametrize(
    ("method", "url", "body", "status", "code"),
    [
        ("PUT", f"/v1/runs/{WORKSPACE}", b"", 422, "invalid_request"),
        ("PUT", f"/v1/runs/{WORKSPACE}", b"[]", 422, "invalid_request"),
        ("PUT", f"/v1/runs/{WORKSPACE}", b'{"run": 1}', 422, "invalid_request"),
        ("PUT", f"/v1/runs/{WORKSPACE}", b"x" * 2_000_000, 413, "too_large"),
        ("PUT", "/v1/runs/..%2f..%2fetc", None, 404, "not_found"),
        ("DELETE", "/v1/runs/NOT-AN-ID?run=1", None, 400, "bad_id"),
        ("DELETE", f"/v1/runs/{WORKSPACE}", None, 422, "invalid_request"),
        ("DELETE", f"/v1/runs/{WORKSPACE}?run=0", None, 422, "invalid_request"),
        ("DELETE", f"/v1/volumes/{WORKSPACE}?run=x", None, 422, "invalid_request"),
        ("POST", f"/v1/runs/{WORKSPACE}", None, 405, "method_not_allowed"),
        ("GET", "/", None, 404, "not_found"),
    ],
)
async def test_a_bad_request_is_told_as_a_problem(
    node: Node, method: str, url: str, body: bytes | None, status: int, code: str
) -> None:
    answer = await ask(node.socket, method, url, body=body)
    assert answer.headers["content-type"] == "application/problem+json"
    problem = answer.json()
    assert (answer.status_code, problem["status"], problem["code"]) == (status, status, code)
    assert problem["detail"]
    if status == 422:
        assert all(error["field"] and error["message"] for error in problem["errors"])


@remote
async def test_a_stale_run_is_a_conflict(node: Node) -> None:
    await node.up(run=2)
    answer = await ask(node.socket, "DELETE", f"/v1/runs/{WORKSPACE}?run=1")
    assert (answer.status_code, answer.json()["code"]) == (409, "stale_run")


@remote
async def test_a_run_that_must_wait_says_for_how_long(node: Node) -> None:
    await node.up()
    wanted = node.request(2)
    spec = {"image": "host", "limits": json_of(wanted.spec.limits)}
    answer = await ask(node.socket, "PUT", f"/v1/runs/{WORKSPACE}", body=json.dumps({"run": 2, "spec": spec}).encode())
    assert (answer.status_code, answer.json()["code"]) == (503, "run_alive")
    assert float(answer.headers["retry-after"]) >= answer.json()["retry_after_s"] > 0


# --- streams --------------------------------------------------------------------------------------------------------


@remote
async def test_silent_changes_have_an_empty_line_from_the_start_on(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agent_app, "BEAT_S", 0.05)
    transport = httpx2.AsyncHTTPTransport(uds=str(node.socket))
    async with (
        httpx2.AsyncClient(transport=transport, base_url="http://agent", headers={VERSION_HEADER: "1"}) as client,
        client.stream("GET", "/v1/changes") as answer,
    ):
        assert answer.headers["content-type"] == "application/x-ndjson"
        lines = b""
        async with asyncio.timeout(WITHIN_S):
            async for chunk in answer.aiter_bytes():
                lines += chunk
                if len(lines) >= 3:
                    break
        assert lines.strip() == b""


def test_the_beat_is_every_ten_seconds() -> None:
    assert agent_app.BEAT_S == 10.0


@remote
async def test_a_child_left_in_the_background_does_not_hold_the_command(node: Node) -> None:
    await node.up()
    status, out, _ = await node.run("sh", "-c", "sleep 1000 & echo begun")
    assert (status, out) == (0, b"begun\n")


@remote
@pytest.mark.parametrize("first", ["{}", "no json", '{"command": 5}'])
async def test_a_command_that_is_no_request_is_refused_in_a_frame(node: Node, first: str) -> None:
    await node.up()
    async with unix_connect(
        str(node.socket), f"ws://agent/v1/exec/{WORKSPACE}?run=1", additional_headers={VERSION_HEADER: "1"}
    ) as connection:
        await connection.send(first)
        last = await asyncio.wait_for(connection.recv(), WITHIN_S)
        assert isinstance(last, bytes)
        assert (last[0], json.loads(last[1:])["error"]["code"]) == (3, "bad_request")
        await asyncio.wait_for(connection.wait_closed(), WITHIN_S)


@remote
@pytest.mark.parametrize("bad", [b"", b"\x09x", b"\x03[]", b"\x03{", b"\x01x", b'\x03{"resize": [0, -1]}'])
async def test_a_frame_that_is_none_ends_the_command(node: Node, bad: bytes) -> None:
    await node.up()
    async with unix_connect(
        str(node.socket), f"ws://agent/v1/exec/{WORKSPACE}?run=1", additional_headers={VERSION_HEADER: "1"}
    ) as connection:
        await connection.send('{"command": ["sleep", "1000"]}')
        assert await asyncio.wait_for(connection.recv(), WITHIN_S) == b'\x03{"started": true}'
        await connection.send(bad)
        last = await asyncio.wait_for(connection.recv(), WITHIN_S)
        assert isinstance(last, bytes)
        assert json.loads(last[1:])["error"]["code"] == "bad_frame"


@remote
async def test_a_folder_is_told_from_a_file_without_asking_for_either(node: Node) -> None:
    await node.up()
    await node.run("sh", "-c", "echo x >file", cwd="/workspace")
    file = await ask(node.socket, "GET", f"/v1/files/{WORKSPACE}/workspace/file", accept="*/*")
    folder = await ask(node.socket, "GET", f"/v1/files/{WORKSPACE}/workspace", accept="*/*")
    assert (file.headers["content-type"], file.content) == ("application/octet-stream", b"x\n")
    assert [entry["name"] for entry in folder.json()] == ["file"]


# --- the client and an agent that is away ---------------------------------------------------------------------------


async def test_an_agent_that_is_away_is_temporary_and_says_what_to_do(short_path: Path) -> None:
    async with AgentClient(short_path / "none.sock") as client:
        for asked in (client.hello(), client.exec(WORKSPACE, FIRST, ExecRequest(("true",))), anext(client.changes())):
            with pytest.raises(Temporary) as told:
                await asked
            assert told.value.code == "agent_away"
            assert "none.sock" in told.value.message
            assert "fairwater node run" in told.value.message


async def test_an_agent_that_does_not_answer_is_slow(short_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(short_path / "s"))
        listener.listen(8)
        async with AgentClient(short_path / "s", answer_s=0.1) as client:
            for asked in (client.hello(), client.exec(WORKSPACE, FIRST, ExecRequest(("true",)))):
                with pytest.raises(Temporary) as told:
                    await asked
                assert told.value.code == "agent_slow"


@remote
async def test_a_restarted_agent_is_reached_by_the_same_client(node: Node) -> None:
    async with AgentClient(node.socket) as client:
        await client.hello()
        await node.restart()
        assert (await client.hello()).node == "test-node"


@remote
async def test_a_command_whose_agent_stops_is_lost_and_says_so(node: Node) -> None:
    await node.up()
    async with AgentClient(node.socket) as client:
        process = await client.exec(WORKSPACE, FIRST, ExecRequest(("sleep", "1000")))
        await node.restart()
        with pytest.raises(Temporary) as told:
            await asyncio.wait_for(process.wait(), WITHIN_S)
        assert told.value.code == "connection_lost"
        await process.close()


@remote
async def test_what_the_node_offers_is_told(node: Node) -> None:
    async with AgentClient(node.socket) as client:
        assert [fact.name for fact in await client.facts()] == ["isolation"]


@pytest.mark.parametrize("body", [b"{}", b"no json", b'{"api_version": "x"}'])
async def test_an_answer_that_is_none_is_told(short_path: Path, serving: Serving, body: bytes) -> None:
    app = FastAPI()

    @app.get("/v1/hello")
    async def hello(request: Request) -> Response:
        return Response(body)

    async with serving(app, short_path / "s"), AgentClient(short_path / "s") as client:
        with pytest.raises(Permanent) as told:
            await client.hello()
        assert told.value.code == "agent_protocol"


class Broken:
    """Ports whose methods fail as no port may."""

    async def hello(self) -> None:
        raise ZeroDivisionError("an inner detail")

    async def start_run(self, workspace: WorkspaceId, request: StartRequest) -> None:
        raise Temporary("slow down", code="rate_limited", delay_s=2.5)

    async def read_file(self, workspace: WorkspaceId, path: str) -> AsyncIterator[bytes]:
        async def content() -> AsyncIterator[bytes]:
            yield b"begun"
            raise ZeroDivisionError("an inner detail")

        return content()


async def test_a_bug_is_answered_without_inner_details(short_path: Path, serving: Serving) -> None:
    broken: Any = Broken()
    async with serving(agent_app.create_agent_app(broken, broken, broken.hello), short_path / "s"):
        answer = await ask(short_path / "s", "GET", "/v1/hello")
        assert (answer.status_code, answer.json()["code"]) == (500, "internal_error")
        assert "inner" not in answer.text
        async with AgentClient(short_path / "s") as client:
            with pytest.raises(Temporary) as told:
                await client.hello()
            assert told.value.code == "agent_failed"


async def test_an_answer_that_breaks_off_is_not_taken_for_a_whole_one(short_path: Path, serving: Serving) -> None:
    broken: Any = Broken()
    async with (
        serving(agent_app.create_agent_app(broken, broken, broken.hello), short_path / "s"),
        AgentClient(short_path / "s") as client,
    ):
        with pytest.raises(Temporary) as told:
            _ = [chunk async for chunk in await client.read_file(WORKSPACE, "/workspace/file")]
        assert told.value.code == "agent_away"


async def test_a_limited_rate_is_429(short_path: Path, serving: Serving, node: Node) -> None:
    broken: Any = Broken()
    async with (
        serving(agent_app.create_agent_app(broken, broken, broken.hello), short_path / "s"),
        AgentClient(short_path / "s") as client,
    ):
        with pytest.raises(Temporary) as told:
            await client.start_run(WORKSPACE, node.request())
        assert (told.value.code, told.value.delay_s) == ("rate_limited", 2.5)
