"""A server of the API made for these tests, in this process: it listens on a unix socket and on a loopback port."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from fastapi import FastAPI, Request, Response, WebSocket
from fastapi.responses import JSONResponse, StreamingResponse
from typer.testing import CliRunner, Result

from fairwater.cli.main import app as fairwater

TOKEN = "fw_right"


@dataclass
class World:
    """What the made-up server knows, what it was asked, and how it is to answer."""

    workspaces: dict[str, dict[str, Any]] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)
    events: list[dict[str, Any]] = field(default_factory=list)
    progress: list[dict[str, Any]] = field(default_factory=list)
    requests: list[tuple[str, str, Any]] = field(default_factory=list)
    users: list[dict[str, Any]] = field(default_factory=list)
    files: dict[str, bytes] = field(default_factory=dict)
    problem: tuple[int, dict[str, Any]] | None = None
    after_start: tuple[str, ...] = ("creating", "initializing", "running")
    exec_request: dict[str, Any] | None = None
    exec_frames: list[tuple[int, bytes]] = field(default_factory=list)
    exec_answer: list[tuple[int, bytes]] = field(default_factory=list)
    exec_echo: bool = False
    tasks: list[list[dict[str, Any]]] = field(default_factory=list)
    setup: dict[str, Any] | None = None
    looked: asyncio.Event = field(default_factory=asyncio.Event)
    exec_started: threading.Event = field(default_factory=threading.Event)

    def add(self, name: str, phase: str = "running", **more: Any) -> dict[str, Any]:
        identifier = more.pop("id", f"{name.replace('-', '')[:6]}{len(self.workspaces):06d}".replace("0", "a"))
        workspace = {
            "id": identifier, "name": name, "phase": phase, "reason": "made up", "since": "2026-01-01T00:00:00+00:00",
            "created_at": "2026-01-01T00:00:00+00:00", "url": f"http://{identifier}.ws.localhost:7080",
            "context_url": "https://example.org/org/repo", "class": "standard", "image": "host", "cluster": "local",
            "owner": "admin", "organisation": "default", "run": 1, "progress": None, "failure": None, "deadline": None,
            "command": None, "snapshot_age_s": None, **more,
        }  # fmt: skip
        self.workspaces[identifier] = workspace
        return workspace


def _problem(status: int, code: str, detail: str) -> JSONResponse:
    return JSONResponse(
        {"type": "about:blank", "title": "Problem", "status": status, "detail": detail, "code": code},
        status,
        media_type="application/problem+json",
    )


def _find(world: World, identifier: str) -> dict[str, Any] | JSONResponse:
    found = [one for one in world.workspaces.values() if one["name"] == identifier or one["id"].startswith(identifier)]
    if not found:
        return _problem(404, "no_such_workspace", f"there is no workspace {identifier!r}")
    if len(found) > 1:
        return _problem(409, "ambiguous", f"{identifier!r} is the beginning of {len(found)} ids: write more of it")
    return found[0]


def make_api(world: World) -> FastAPI:
    api = FastAPI()

    @api.middleware("http")
    async def _guard(request: Request, proceed: Any) -> Response:
        local = request.client is None or not request.client.host
        open_to_all = request.url.path.endswith(("/readyz", "/version", "/login/exchange"))
        if not local and not open_to_all and request.headers.get("authorization") != f"Bearer {TOKEN}":
            return _problem(401, "unauthenticated", "this needs a token")
        if world.problem is not None and "/workspaces" in request.url.path:
            return JSONResponse(world.problem[1], world.problem[0], media_type="application/problem+json")
        answer: Response = await proceed(request)
        return answer

    @api.get("/readyz")
    async def readyz() -> dict[str, Any]:
        return {"database": "ok", "agent": "ok"}

    @api.get("/api/v1/version")
    async def version() -> dict[str, str]:
        return {"version": "0.1.0", "api": "v1"}

    @api.get("/api/v1/me")
    async def me() -> dict[str, Any]:
        return {"id": "u1", "name": "ada", "role": "member", "organisations": []}

    @api.post("/api/v1/login/exchange", response_model=None)
    async def exchange(body: dict[str, Any]) -> Any:
        if body["code"] != "good":
            return _problem(403, "bad_code", "this code is used up or was never given out: ask for another")
        return {"token": TOKEN}

    @api.api_route("/api/v1/users", methods=["GET", "POST"])
    async def users(request: Request) -> Any:
        if request.method == "GET":
            return {"items": world.users, "next": None}
        user = {"id": f"u{len(world.users)}", "blocked": False, "organisation": "default", **await request.json()}
        world.users.append(user)
        return user

    @api.patch("/api/v1/users/{identifier}")
    async def change_user(identifier: str, body: dict[str, Any]) -> Any:
        user = next(one for one in world.users if one["id"] == identifier)
        user.update(body)
        return user

    @api.post("/api/v1/users/{identifier}/tokens")
    async def tokens(identifier: str, body: dict[str, Any]) -> Any:
        world.requests.append(("POST", "tokens", body))
        return {"id": "t1", "token": "fw_made"}

    @api.get("/api/v1/workspaces")
    async def workspaces(limit: int, cursor: int = 0, owner: str = "me", phase: str | None = None) -> Any:
        found = [one for one in world.workspaces.values() if phase in {None, one["phase"]}]
        page = found[cursor : cursor + 2]  # small pages, so that paging is seen
        return {"items": page, "next": str(cursor + 2) if cursor + 2 < len(found) else None}

    @api.post("/api/v1/workspaces", status_code=201)
    async def create(request: Request, body: dict[str, Any]) -> Any:
        world.requests.append(("POST", "/workspaces", body))
        assert request.headers["idempotency-key"]
        made = world.add(body.get("name") or "repo", "pending", context_url=body["context_url"], setup=world.setup)
        return JSONResponse(made, 201, headers={"Location": f"/api/v1/workspaces/{made['id']}"})

    @api.get("/api/v1/workspaces/{identifier}")
    async def show(identifier: str) -> Any:
        asyncio.get_running_loop().call_later(0.05, world.looked.set)
        return _find(world, identifier)

    @api.delete("/api/v1/workspaces/{identifier}", status_code=202)
    async def delete(identifier: str) -> Any:
        world.requests.append(("DELETE", identifier, None))
        return world.workspaces.pop(identifier)

    @api.post("/api/v1/workspaces/{identifier}/{what}", status_code=202)
    async def act(identifier: str, what: str, body: dict[str, Any]) -> Any:
        found = _find(world, identifier)
        if isinstance(found, dict):
            world.requests.append(("POST", f"{identifier}/{what}", body))
            found["phase"] = {"start": "pending", "stop": "stopping"}[what]
        return found

    @api.get("/api/v1/workspaces/{identifier}/tasks")
    async def tasks(identifier: str) -> Any:
        """What comes next, and the last of it again and again."""
        return {"items": world.tasks.pop(0) if len(world.tasks) > 1 else world.tasks[0], "next": None}

    @api.get("/api/v1/workspaces/{identifier}/tasks/{number}/log")
    async def task_log(identifier: str, number: int, follow: bool = False) -> Any:
        return Response(f"task {number}, follow {follow}\n", media_type="text/plain")

    @api.get("/api/v1/workspaces/{identifier}/logs")
    async def logs(identifier: str, follow: bool = False) -> Any:
        return Response(b"cloned\n\x1b[1mready\x1b[0m\n", media_type="text/plain")

    @api.get("/api/v1/workspaces/{identifier}/events")
    async def events(identifier: str, after: int | None = None) -> Any:
        found = _find(world, identifier)
        return found if isinstance(found, JSONResponse) else StreamingResponse(
            _stream(world, found, after), media_type="text/event-stream"
        )  # fmt: skip

    _add_files(api, world)
    _add_exec(api, world)
    return api


async def _stream(world: World, workspace: dict[str, Any], after: int | None) -> Any:
    yield "retry: 2000\n\n: keep-alive\n\n"
    for sequence, event in enumerate(world.events, start=1):
        if after is not None and sequence > after:
            data = {"sequence": sequence, "workspace": workspace["id"], **event}
            yield f"id: {sequence}\nevent: workspace\ndata: {json.dumps(data)}\n\n"
    if after is None:
        with contextlib.suppress(TimeoutError):  # who waits looks once the stream is open, unless it has gone
            await asyncio.wait_for(world.looked.wait(), 5)
    for event in world.history:
        yield f"event: workspace\ndata: {json.dumps(event)}\n\n"
    goes = world.after_start if workspace["phase"] == "pending" else ()
    goes = ("stopped",) if workspace["phase"] == "stopping" else goes
    for phase in goes:
        for progress in world.progress if phase == "running" else ():
            yield f"event: progress\ndata: {json.dumps({'workspace': workspace['id'], 'progress': progress})}\n\n"
        workspace["phase"] = phase
        if phase == "failed":
            workspace["failure"] = "there is no branch 'nope'"
        data = {
            "sequence": 9,
            "workspace": workspace["id"],
            "event": "x",
            "phase": phase,
            "reason": "made up",
            "run": workspace["run"],
        }
        yield f"id: 9\nevent: workspace\ndata: {json.dumps(data)}\n\n"
    await asyncio.sleep(30)  # an open stream that has nothing to say; the client leaves first


def _add_files(api: FastAPI, world: World) -> None:
    @api.get("/api/v1/workspaces/{identifier}/files/{path:path}")
    async def get_file(identifier: str, path: str) -> Any:
        if f"/{path}" in world.files:
            return Response(world.files[f"/{path}"], media_type="application/octet-stream")
        below = [name for name in world.files if name.startswith(f"/{path}/")]
        if not below:
            return _problem(404, "no_such_file", f"/{path} is not there")
        entries = [
            {"name": Path(name).name, "kind": "file", "size": len(world.files[name]), "mode": 0o100644,
             "modified_at": 0.0} for name in below
        ]  # fmt: skip
        return {"items": entries}

    @api.put("/api/v1/workspaces/{identifier}/files/{path:path}", status_code=201)
    async def put_file(identifier: str, path: str, request: Request) -> Any:
        world.files[f"/{path}"] = await request.body()
        return {"size": len(world.files[f"/{path}"])}


def _add_exec(api: FastAPI, world: World) -> None:
    @api.websocket("/api/v1/workspaces/{identifier}/exec")
    async def execute(socket: WebSocket, identifier: str) -> None:
        found = _find(world, identifier)
        if isinstance(found, JSONResponse):
            await socket.send_denial_response(found)
            return
        await socket.accept("fairwater.exec.v1")
        world.exec_request = await socket.receive_json()
        world.exec_started.set()
        if not world.exec_echo:
            for channel, data in world.exec_answer:
                await socket.send_bytes(bytes([channel]) + data)
            await socket.close()
            return
        while True:
            frame = await socket.receive_bytes()
            world.exec_frames.append((frame[0], frame[1:]))
            if frame[0] == 0:
                await socket.send_bytes(b"\x01" + frame[1:])
            elif b"eof" in frame or b"signal" in frame:
                status = 130 if b"INT" in frame else 0
                await socket.send_bytes(b"\x03" + json.dumps({"exit": status}).encode())
                await socket.close()
                return


@pytest.fixture
def world() -> World:
    return World()


@dataclass(frozen=True)
class Served:
    """Where the made-up server listens."""

    data_dir: Path
    url: str


@pytest.fixture
def served(world: World, tmp_path: Path) -> Iterator[Served]:
    data_dir = tmp_path / "data"
    (data_dir / "run").mkdir(parents=True)
    near = socket.socket(socket.AF_UNIX)
    near.bind(str(data_dir / "run" / "server.sock"))
    far = socket.socket()
    far.bind(("127.0.0.1", 0))
    url = f"http://127.0.0.1:{far.getsockname()[1]}"
    config = uvicorn.Config(
        make_api(world), log_level="error", lifespan="off", ws="websockets-sansio", timeout_graceful_shutdown=1
    )
    server = uvicorn.Server(config)
    for listener in (near, far):
        listener.listen(16)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [near, far]}, daemon=True)
    thread.start()
    yield Served(data_dir, url)
    server.should_exit = True
    thread.join(timeout=10)
    for listener in (near, far):
        listener.close()
    assert not thread.is_alive()


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No login, no server and no setting of the person who runs the tests."""
    for name in list(os.environ):
        if name.startswith("FAIRWATER_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "share"))


Run = Callable[..., Result]


@pytest.fixture
def run() -> Run:
    """Runs the command line in this process."""

    def invoke(*arguments: str, **options: Any) -> Result:
        result = CliRunner().invoke(fairwater, list(arguments), prog_name="fairwater", **options)
        if result.exception and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result

    return invoke


@pytest.fixture
def ws(run: Run, served: Served) -> Run:
    """Runs `fairwater workspace …` against the made-up server, as the local administrator."""

    def invoke(command: str, *arguments: str, **options: Any) -> Result:
        return run("workspace", command, "--data-dir", str(served.data_dir), *arguments, **options)

    return invoke


Spawn = Callable[..., "subprocess.Popen[bytes]"]


@pytest.fixture
def spawn() -> Iterator[Spawn]:
    """Starts the command line as a process of its own, which does not outlive the test."""
    started: list[subprocess.Popen[bytes]] = []

    def start(*arguments: str, **options: Any) -> subprocess.Popen[bytes]:
        streams = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
        command = [sys.executable, "-m", "fairwater.cli.main", *arguments]
        started.append(subprocess.Popen(command, **{**streams, **options}))
        return started[-1]

    yield start
    for process in started:
        if process.poll() is None:
            process.kill()
        process.wait()
        for stream in (process.stdin, process.stdout, process.stderr):
            if stream is not None:
                stream.close()
