"""Serving on unix sockets and TCP: who is at the other end, what is bounded, and how it begins and ends."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import socket
import stat
import subprocess
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from io import StringIO
from pathlib import Path
from typing import Any

import httpx2
import pytest
import structlog
import uvloop
from fastapi import FastAPI, WebSocket
from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import StreamingResponse
from websockets.asyncio.client import unix_connect
from websockets.exceptions import InvalidStatus

from fairwater.domain.failure import Permanent, Temporary
from fairwater.serving import peers
from fairwater.serving.logs import configure_logs
from fairwater.serving.problems import install_problems
from fairwater.serving.serve import Limits, Listening, serve
from fairwater.serving.sockets import bind_unix, remove_unix
from fairwater.serving.streams import kept_alive

WITHIN_S = 20.0
NOBODY = 65534
Serving = Callable[..., AbstractAsyncContextManager[Any]]


class Body(BaseModel):
    name: str
    count: int


def app() -> FastAPI:
    app = FastAPI()
    install_problems(app, {"gone": 410})

    @app.get("/who")
    async def who(request: Request) -> dict[str, Any]:
        client = request.client.host if request.client else None
        return {"uid": request.scope.get("fairwater.peer_uid", "absent"), "client": client, "url": str(request.url)}

    @app.websocket("/who")
    async def who_by_websocket(websocket: WebSocket) -> None:
        await websocket.accept()
        await websocket.send_json({"uid": websocket.scope.get("fairwater.peer_uid", "absent")})
        await websocket.close()

    @app.get("/fail/{how}")
    async def fail(how: str) -> None:
        failures = {
            "later": Temporary("later", code="later", delay_s=1.2),
            "rate": Temporary("slow down", code="rate_limited", delay_s=3),
            "gone": Permanent("gone", code="gone"),
            "state": Permanent("in this state", code="wrong_phase"),
            "bad": Permanent("bad", code="bad_thing"),
        }
        raise failures[how]

    @app.websocket("/fail")
    async def fail_by_websocket(websocket: WebSocket) -> None:
        raise Permanent("gone", code="gone")

    @app.post("/body")
    async def body(body: Body) -> Body:
        return body

    @app.get("/forever")
    async def forever(request: Request) -> StreamingResponse:
        async def silence() -> AsyncIterator[bytes]:
            yield b"begun"
            await asyncio.Event().wait()

        return StreamingResponse(kept_alive(silence(), request.scope))

    return app


def over_unix(path: Path) -> httpx2.AsyncClient:
    return httpx2.AsyncClient(transport=httpx2.AsyncHTTPTransport(uds=str(path)), base_url="http://local")


def over_tcp(listening: Listening) -> httpx2.AsyncClient:
    assert listening.tcp is not None
    return httpx2.AsyncClient(base_url=f"http://{listening.tcp[0]}:{listening.tcp[1]}", trust_env=False)


# --- peers ----------------------------------------------------------------------------------------------------------


async def test_the_peers_uid_is_told_on_the_unix_socket_and_absent_on_tcp(short_path: Path, serving: Serving) -> None:
    async with (
        serving(app(), short_path / "s", tcp=("127.0.0.1", 0)) as listening,
        over_unix(short_path / "s") as local,
        over_tcp(listening) as network,
    ):
        assert (await local.get("/who")).json()["uid"] == os.getuid()
        assert (await network.get("/who")).json()["uid"] == "absent"


async def test_a_websocket_has_its_peers_uid(short_path: Path, serving: Serving) -> None:
    async with serving(app(), short_path / "s"), unix_connect(str(short_path / "s"), "ws://local/who") as connection:
        assert json.loads(await connection.recv()) == {"uid": os.getuid()}


async def test_a_client_cannot_claim_a_uid_or_an_address(serving: Serving) -> None:
    claims = {
        "fairwater.peer_uid": "0", "Fairwater-Peer-Uid": "0", "X-Forwarded-For": "10.9.9.9",
        "X-Forwarded-Proto": "https", "Forwarded": "for=10.9.9.9;proto=https",
    }  # fmt: skip
    async with serving(app(), tcp=("127.0.0.1", 0)) as listening, over_tcp(listening) as network:
        seen = (await network.get("/who", headers=claims)).json()
    assert (seen["uid"], seen["client"]) == ("absent", "127.0.0.1")
    assert seen["url"].startswith("http://")


async def test_a_peer_that_is_not_allowed_is_refused(short_path: Path, serving: Serving) -> None:
    async with (
        serving(app(), short_path / "s", allowed_uids=frozenset({os.getuid() + 1})),
        over_unix(short_path / "s") as client,
    ):
        answer = await client.get("/who")
        assert (answer.status_code, answer.json()["code"]) == (403, "peer_refused")
        assert answer.headers["content-type"] == "application/problem+json"
        with pytest.raises(InvalidStatus) as told:
            await unix_connect(str(short_path / "s"), "ws://local/who")
        assert told.value.response.status_code == 403


async def test_tcp_is_not_kept_to_uids(serving: Serving) -> None:
    async with (
        serving(app(), tcp=("127.0.0.1", 0), allowed_uids=frozenset()) as listening,
        over_tcp(listening) as network,
    ):
        assert (await network.get("/who")).status_code == 200


@pytest.mark.root
async def test_a_process_of_another_user_is_refused(short_path: Path, serving: Serving) -> None:
    short_path.chmod(0o755)
    asked = f"""
import socket
s = socket.socket(socket.AF_UNIX)
s.connect({str(short_path / "s")!r})
s.sendall(b"GET /who HTTP/1.1\\r\\nHost: x\\r\\nFairwater-Peer-Uid: 0\\r\\nConnection: close\\r\\n\\r\\n")
print(b"".join(iter(lambda: s.recv(65536), b"")).decode())
"""
    async with serving(app(), short_path / "s", socket_mode=0o666, allowed_uids=frozenset({0})):
        done = await asyncio.to_thread(
            subprocess.run,
            ("/usr/bin/python3", "-I", "-c", asked),
            user=NOBODY,
            group=NOBODY,
            extra_groups=[],
            cwd="/",
            capture_output=True,
            text=True,
            timeout=WITHIN_S,
            check=True,
        )
    assert done.stdout.startswith("HTTP/1.1 403 ")
    assert "peer_refused" in done.stdout


# --- sockets --------------------------------------------------------------------------------------------------------


async def test_the_socket_has_its_mode_and_is_removed_at_the_end(short_path: Path, serving: Serving) -> None:
    async with serving(app(), short_path / "s", socket_mode=0o660):
        assert stat.S_IMODE((short_path / "s").stat().st_mode) == 0o660
    assert list(short_path.iterdir()) == []


async def test_a_stale_socket_is_replaced(short_path: Path, serving: Serving) -> None:
    bind_unix(short_path / "s").close()
    assert (short_path / "s").exists()
    async with serving(app(), short_path / "s"), over_unix(short_path / "s") as client:
        assert (await client.get("/who")).status_code == 200


async def test_a_socket_that_somebody_listens_on_is_left_alone(short_path: Path, serving: Serving) -> None:
    async with serving(app(), short_path / "s"), over_unix(short_path / "s") as client:
        with pytest.raises(Permanent) as told:
            await serve(app(), unix_socket=short_path / "s", stop=asyncio.Event())
        assert told.value.code == "already_running"
        assert (await client.get("/who")).status_code == 200


def test_another_kind_of_file_is_left_alone(short_path: Path) -> None:
    (short_path / "s").write_text("precious")
    with pytest.raises(Permanent) as told:
        bind_unix(short_path / "s")
    assert told.value.code == "socket_path"
    assert (short_path / "s").read_text() == "precious"


def test_a_path_that_is_too_long_is_told(tmp_path: Path) -> None:
    with pytest.raises(Permanent) as told:
        bind_unix(tmp_path / ("x" * 100))
    assert told.value.code == "socket_path"


async def test_a_port_in_use_is_told(serving: Serving) -> None:
    async with serving(app(), tcp=("127.0.0.1", 0)) as listening:
        with pytest.raises(Permanent) as told:
            await serve(app(), tcp=listening.tcp, stop=asyncio.Event())
    assert told.value.code == "port_in_use"
    assert str(listening.tcp[1]) in told.value.message


async def test_an_address_that_is_none_is_told() -> None:
    with pytest.raises(Permanent) as told:
        await serve(app(), tcp=("192.0.2.1", 0), stop=asyncio.Event())
    assert told.value.code == "bad_listen_address"


# --- the end --------------------------------------------------------------------------------------------------------


async def test_an_endless_answer_ends_when_the_server_stops(short_path: Path) -> None:
    stop, ready = asyncio.Event(), asyncio.Event()
    serving = asyncio.create_task(
        serve(app(), unix_socket=short_path / "s", stop=stop, ready=lambda _: ready.set(), limits=Limits(grace_s=1000))
    )
    await asyncio.wait_for(ready.wait(), WITHIN_S)
    async with over_unix(short_path / "s") as client, client.stream("GET", "/forever") as answer:
        chunks = answer.aiter_bytes()
        assert await anext(chunks) == b"begun"
        stop.set()
        async with asyncio.timeout(WITHIN_S):
            assert [chunk async for chunk in chunks] == []
    await asyncio.wait_for(serving, WITHIN_S)


async def test_serving_interrupted_leaves_nothing(short_path: Path) -> None:
    ready = asyncio.Event()
    serving = asyncio.create_task(
        serve(app(), unix_socket=short_path / "s", stop=asyncio.Event(), ready=lambda _: ready.set())
    )
    await asyncio.wait_for(ready.wait(), WITHIN_S)
    serving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(serving, WITHIN_S)
    assert list(short_path.iterdir()) == []


def test_it_works_on_uvloop(short_path: Path) -> None:
    async def ask() -> Any:
        stop, ready = asyncio.Event(), asyncio.Event()
        serving = asyncio.create_task(
            serve(
                app(), unix_socket=short_path / "s", tcp=("127.0.0.1", 0), stop=stop, ready=lambda _: ready.set(),
                allowed_uids=frozenset({os.getuid()}),
            )
        )  # fmt: skip
        await asyncio.wait_for(ready.wait(), WITHIN_S)
        async with over_unix(short_path / "s") as client:
            told = (await client.get("/who")).json()
        stop.set()
        await asyncio.wait_for(serving, WITHIN_S)
        return told

    assert uvloop.run(ask())["uid"] == os.getuid()


# --- bounds ---------------------------------------------------------------------------------------------------------


async def raw(path: Path, *parts: bytes) -> bytes:
    reader, writer = await asyncio.open_unix_connection(str(path))
    try:
        for part in parts:
            writer.write(part)
            await writer.drain()
        return await asyncio.wait_for(reader.read(65536), WITHIN_S)
    except (BrokenPipeError, ConnectionResetError):
        return b"cut"
    finally:
        writer.close()


async def test_an_endless_head_is_cut_off(short_path: Path, serving: Serving) -> None:
    async with serving(app(), short_path / "s"):
        endless = [b"X-%d: %s\r\n" % (number, b"x" * 1000) for number in range(500)]
        answer = await raw(short_path / "s", b"GET /who HTTP/1.1\r\nHost: x\r\n", *endless)
        assert answer.startswith(b"HTTP/1.1 431 ") or answer == b"cut"


async def test_an_endless_header_is_cut_off(short_path: Path, serving: Serving) -> None:
    async with serving(app(), short_path / "s"):
        answer = await raw(short_path / "s", b"GET /who HTTP/1.1\r\nX: ", *([b"x" * 10_000] * 50))
        assert answer.startswith(b"HTTP/1.1 431 ") or answer == b"cut"


async def test_a_head_that_does_not_come_is_not_waited_for(
    short_path: Path, serving: Serving, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(peers, "HEAD_S_MAX", 0.05)
    async with serving(app(), short_path / "s"):
        assert await raw(short_path / "s") == b""
        assert await raw(short_path / "s", b"GET / HTTP/1.1\r\nHo") == b""


async def test_a_large_body_and_many_requests_pass_the_bound_on_heads(short_path: Path, serving: Serving) -> None:
    async with serving(app(), short_path / "s"), over_unix(short_path / "s") as client:
        for _ in range(3):
            answer = await client.post("/body", json={"name": "x" * 300_000, "count": 1})
            assert answer.status_code == 200


# --- problems -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("how", "status", "retry_after"),
    [("later", 503, "2"), ("rate", 429, "3"), ("gone", 410, None), ("state", 409, None), ("bad", 400, None)],
)
async def test_a_failure_is_told_as_a_problem(
    short_path: Path, serving: Serving, how: str, status: int, retry_after: str | None
) -> None:
    async with serving(app(), short_path / "s"), over_unix(short_path / "s") as client:
        answer = await client.get(f"/fail/{how}")
    assert (answer.status_code, answer.headers.get("retry-after")) == (status, retry_after)
    assert set(answer.json()) >= {"type", "title", "status", "detail", "code"}


async def test_a_failure_before_the_handshake_refuses_a_websocket(short_path: Path, serving: Serving) -> None:
    async with serving(app(), short_path / "s"):
        with pytest.raises(InvalidStatus) as told:
            await unix_connect(str(short_path / "s"), "ws://local/fail")
    assert told.value.response.status_code == 410


async def test_invalid_fields_are_listed(short_path: Path, serving: Serving) -> None:
    async with serving(app(), short_path / "s"), over_unix(short_path / "s") as client:
        answer = await client.post("/body", json={"count": "many", "secret": "hunter2"})
    assert (answer.status_code, answer.json()["code"]) == (422, "invalid_request")
    assert {error["field"] for error in answer.json()["errors"]} == {"body.name", "body.count"}
    assert "hunter2" not in answer.text


async def test_a_bug_is_logged_and_not_told(short_path: Path, serving: Serving) -> None:
    with structlog.testing.capture_logs() as logged:
        async with serving(app(), short_path / "s"), over_unix(short_path / "s") as client:
            answer = await client.get("/fail/unheard-of")
    assert (answer.status_code, answer.json()["code"]) == (500, "internal_error")
    assert "unheard-of" not in answer.text
    assert [entry["event"] for entry in logged if entry["log_level"] == "error"] == ["request_failed"]


# --- logs -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def logs() -> Any:
    """Whatever a test sets up is taken back."""
    handlers, level = logging.root.handlers[:], logging.root.level
    yield
    logging.root.handlers[:] = handlers
    logging.root.setLevel(level)
    structlog.reset_defaults()


@pytest.mark.usefixtures("logs")
def test_every_log_is_a_line_of_json() -> None:
    stream = StringIO()
    configure_logs("info", part="node", stream=stream)
    structlog.get_logger().info("run_failed", workspace="abc", code="no_such_ref")
    structlog.get_logger().debug("not told")
    logging.getLogger("somebody").warning("said %s", "this")
    try:
        raise ValueError("two\nlines")
    except ValueError:
        structlog.get_logger().exception("loop_iteration_failed")
    lines = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert [(line["event"], line["level"], line["part"]) for line in lines] == [
        ("run_failed", "info", "node"),
        ("said this", "warning", "node"),
        ("loop_iteration_failed", "error", "node"),
    ]
    assert lines[0]["workspace"] == "abc"
    assert "ValueError: two" in lines[2]["exception"]
    assert all(line["timestamp"] for line in lines)


def test_a_socket_of_a_successor_is_not_removed(short_path: Path) -> None:
    first = bind_unix(short_path / "s")
    found = (short_path / "s").lstat()
    (short_path / "s").rename(short_path / "moved")
    second = bind_unix(short_path / "s")
    remove_unix(first, short_path / "s", (found.st_dev, found.st_ino))
    with socket.socket(socket.AF_UNIX) as probe:
        probe.connect(str(short_path / "s"))
    second.close()
