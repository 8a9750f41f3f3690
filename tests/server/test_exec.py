"""Commands by POST and by WebSocket: output, status, input, and what ends them."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncIterator
from functools import partial

import pytest
from starlette.testclient import TestClient, WebSocketTestSession

from fairwater.domain.failure import Permanent
from fairwater.ports.process import Channel, ExecRequest, TerminalSize
from fairwater.serving.frames import STARTED

from .conftest import API, World
from .streaming import Listener
from .tiny_agent import ScriptedProcess

OUTPUT = [(Channel.STDOUT, b"hello "), (Channel.STDERR, b"oh\xff"), (Channel.STDOUT, b"world\n")]


async def running(world: World) -> tuple[str, str]:
    """The path of a workspace's exec, and its owner's token."""
    _, token = await world.account("ada")
    made = await world.create(world.client(token))
    return f"{API}/workspaces/{made['id']}/exec", token


async def test_output_and_status_come_back_in_one_answer(world: World) -> None:
    path, token = await running(world)
    world.agent.process = ScriptedProcess(OUTPUT, status=3)
    body = {"command": ["sh", "-c", "x"], "cwd": "/workspace", "environment": {"A": "b"}, "user": "root"}
    answer = await world.client(token).post(path, json=body)
    assert answer.json() == {
        "exit_code": 3,
        "stdout": "hello world\n",
        "stderr": "oh�",
        "stdout_truncated": False,
        "stderr_truncated": False,
    }
    assert world.agent.requests == [ExecRequest(("sh", "-c", "x"), "/workspace", (("A", "b"),), "root")]
    assert world.agent.process.closed.is_set()


async def test_more_than_a_mebibyte_is_cut_off_and_said_to_be(world: World) -> None:
    path, token = await running(world)
    world.agent.process = ScriptedProcess([(Channel.STDOUT, b"x" * 700_000)] * 2 + [(Channel.STDERR, b"e")])
    answer = (await world.client(token).post(path, json={"command": ["yes"]})).json()
    assert len(answer["stdout"]) == 1024 * 1024
    assert (answer["stdout_truncated"], answer["stderr_truncated"], answer["stderr"]) == (True, False, "e")


async def test_standard_input_is_written_and_ended(world: World) -> None:
    path, token = await running(world)
    process = world.agent.process = ScriptedProcess([], until_input_ends=True)
    data = bytes(range(256)) * 1000
    await world.client(token).post(path, json={"command": ["cat"], "stdin": base64.b64encode(data).decode()})
    assert b"".join(process.written) == data
    assert process.written[-1] == b""


async def test_lines_come_as_the_command_prints(world: World) -> None:
    path, token = await running(world)
    world.agent.process = ScriptedProcess(OUTPUT, status=1)
    accept = {"Accept": "application/x-ndjson"}
    answer = await world.client(token).post(path, json={"command": ["x"]}, headers=accept)
    assert answer.headers["content-type"] == "application/x-ndjson"
    lines = [json.loads(line) for line in answer.text.splitlines()]
    assert [line.get("stream") for line in lines] == ["stdout", "stderr", "stdout", None]
    assert base64.b64decode(lines[1]["data"]) == b"oh\xff"
    assert lines[-1] == {"exit_code": 1}


async def test_lines_end_with_the_reason_where_time_ran_out(world: World) -> None:
    path, token = await running(world)
    process = world.agent.process = ScriptedProcess(OUTPUT, until_hung_up=True)
    body = {"command": ["sleep"], "timeout_s": 0.05}
    answer = await world.client(token).post(path, json=body, headers={"Accept": "application/x-ndjson"})
    assert json.loads(answer.text.splitlines()[-1])["error"]["code"] == "exec_timeout"
    assert process.closed.is_set()


@pytest.mark.parametrize("accept", ["application/json", "application/x-ndjson"])
async def test_a_command_whose_caller_left_is_hung_up(world: World, accept: str) -> None:
    path, token = await running(world)
    process = world.agent.process = ScriptedProcess(OUTPUT, until_hung_up=True)
    headers = {"Accept": accept, "Content-Type": "application/json"}
    async with Listener(world.app, path, token, "", headers, "POST", b'{"command": ["sleep"]}') as listener:
        if accept != "application/json":
            assert await listener.status() == 200
        else:
            await asyncio.wait_for(world.agent.asked.wait(), 5)
    await asyncio.wait_for(process.closed.wait(), 5)


async def test_blocking_hangs_commands_up(world: World) -> None:
    path, token = await running(world)
    world.agent.process = ScriptedProcess([], until_hung_up=True)
    waiting = asyncio.create_task(world.client(token).post(path, json={"command": ["sleep"]}))
    await asyncio.wait_for(world.agent.asked.wait(), 5)
    await world.client(uid=0).patch(f"{API}/users/ada", json={"blocked": True})
    answer = await asyncio.wait_for(waiting, 5)
    assert answer.json()["code"] == "cut_off"


async def test_what_the_node_refuses_is_told(world: World) -> None:
    path, token = await running(world)
    world.agent.failure = Permanent("there is no command 'nope'", code="command_not_found")
    answer = await world.client(token).post(path, json={"command": ["nope"]})
    assert (answer.status_code, answer.json()["code"]) == (422, "command_not_found")


async def test_a_stopped_workspace_runs_nothing(world: World) -> None:
    client = await world.member()
    made = await world.create(client, start=False)
    answer = await client.post(f"{API}/workspaces/{made['id']}/exec", json={"command": ["true"]})
    assert (answer.status_code, answer.json()["code"]) == (409, "not_running")
    assert world.agent.requests == []


@pytest.mark.parametrize(
    "body",
    [
        {"command": "ls"},
        {"command": [""] * 2000},
        {"command": ["x" * 200_000]},
        {"command": ["ls"], "cwd": "relative"},
        {"command": ["ls"], "user": "nobody"},
        {"command": ["ls"], "stdin": "not base64!"},
        {"command": ["ls"], "timeout_s": 0},
        {"command": ["ls"], "timeout_s": "NaN"},
    ],
)
async def test_bad_commands_are_refused(world: World, body: dict[str, object]) -> None:
    path, token = await running(world)
    assert (await world.client(token).post(path, json=body)).status_code == 422
    assert world.agent.requests == []


@pytest.mark.parametrize("announced", [True, False])
async def test_a_body_beyond_its_bound_is_refused(world: World, announced: bool) -> None:
    path, token = await running(world)

    async def pieces() -> AsyncIterator[bytes]:
        for _ in range(5):
            yield b"x" * 1024 * 1024

    headers = {"Content-Type": "application/json"}
    content = b"x" * 5 * 1024 * 1024 if announced else pieces()
    answer = await world.client(token).post(path, content=content, headers=headers)
    assert answer.status_code == 413
    assert answer.headers["content-type"] == "application/problem+json"


def session(world: World, path: str, token: str) -> WebSocketTestSession:
    headers = {"Authorization": f"Bearer {token}"}
    return TestClient(world.app).websocket_connect(path, ["fairwater.exec.v1"], headers=headers)


async def test_a_terminal_carries_both_ways_and_ends_with_the_status(world: World) -> None:
    path, token = await running(world)
    process = world.agent.process = ScriptedProcess(OUTPUT, status=7, until_hung_up=True)
    with session(world, path, token) as socket:
        assert str(socket.accepted_subprotocol) == "fairwater.exec.v1"
        socket.send_text(json.dumps({"command": ["bash"], "terminal": {"rows": 30, "columns": 100}}))
        assert socket.receive_bytes() == STARTED
        assert [socket.receive_bytes() for _ in range(3)] == [b"\1hello ", b"\2oh\xff", b"\1world\n"]
        socket.send_bytes(b"\0ls\n")
        socket.send_bytes(b'\3{"resize": [40, 120]}')
        socket.send_bytes(b'\3{"signal": "INT"}')
        socket.send_bytes(b'\3{"eof": true}')
        socket.portal.call(process.ended_input.wait)
        socket.portal.call(process.closed.set)
        assert socket.receive_bytes() == b'\3{"exit": 7}'
        assert socket.receive()["code"] == 1000
    assert process.closed.is_set()
    assert world.agent.requests[0].terminal == TerminalSize(30, 100)
    assert (process.written, process.sizes, process.signals) == ([b"ls\n", b""], [TerminalSize(40, 120)], ["INT"])


@pytest.mark.parametrize(
    ("first", "code"),
    [("{", "bad_first_message"), ('{"command": []}', "bad_first_message"), ('{"x": 1}', "bad_first_message")],
)
async def test_a_first_message_that_is_none_ends_the_terminal(world: World, first: str, code: str) -> None:
    path, token = await running(world)
    with session(world, path, token) as socket:
        socket.send_text(first)
        frame = socket.receive_bytes()
    assert frame[0] == Channel.CONTROL
    assert json.loads(frame[1:])["error"]["code"] == code
    assert world.agent.requests == []


@pytest.mark.parametrize(
    "frame",
    [b"\1x", b"\3not json", b'\3{"resize": [0, 0]}', b'\3{"resize": ["a"]}', b"\x09"],
)
async def test_a_bad_frame_ends_the_terminal_and_hangs_the_command_up(world: World, frame: bytes) -> None:
    path, token = await running(world)
    process = world.agent.process = ScriptedProcess([], until_hung_up=True)
    with session(world, path, token) as socket:
        socket.send_text('{"command": ["bash"]}')
        assert socket.receive_bytes() == STARTED
        socket.send_bytes(frame)
        assert json.loads(socket.receive_bytes()[1:])["error"]["code"] == "bad_frame"
    assert process.closed.is_set()


async def test_leaving_a_terminal_hangs_the_command_up(world: World) -> None:
    path, token = await running(world)
    process = world.agent.process = ScriptedProcess(OUTPUT, until_hung_up=True)
    with session(world, path, token) as socket:
        socket.send_text('{"command": ["bash"]}')
        socket.receive_bytes()
        socket.close()
        socket.portal.call(asyncio.wait_for, process.closed.wait(), 5)
    assert process.closed.is_set()


async def test_another_sub_protocol_is_refused_before_the_handshake(world: World) -> None:
    from starlette.testclient import WebSocketDenialResponse

    path, token = await running(world)
    headers = {"Authorization": f"Bearer {token}"}
    with pytest.raises(WebSocketDenialResponse) as refused:
        TestClient(world.app).websocket_connect(path, ["other"], headers=headers).__enter__()
    assert refused.value.json()["code"] == "bad_subprotocol"


async def test_blocking_hangs_terminals_up(world: World) -> None:
    path, token = await running(world)
    process = world.agent.process = ScriptedProcess([], until_hung_up=True)
    with session(world, path, token) as socket:
        socket.send_text('{"command": ["bash"]}')
        assert socket.receive_bytes() == STARTED
        socket.portal.call(partial(world.client(uid=0).patch, f"{API}/users/ada", json={"blocked": True}))
        assert json.loads(socket.receive_bytes()[1:])["error"]["code"] == "cut_off"
    assert process.closed.is_set()
