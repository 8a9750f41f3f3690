from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import threading
import time
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.cli.conftest import Served, Spawn, World


def control(**message: object) -> tuple[int, bytes]:
    return 3, json.dumps(message).encode()


@pytest.fixture
def execute(spawn: Spawn, served: Served, world: World) -> Spawn:
    world.add("one")
    return lambda *arguments, **options: spawn("ws", "exec", "--data-dir", str(served.data_dir), *arguments, **options)


def test_the_streams_stay_apart_and_the_exit_status_is_the_commands_own(execute: Spawn, world: World) -> None:
    world.exec_answer = [(1, b"out\xff"), (2, b"err"), (1, b"more"), control(exit=42)]
    process = execute("one", "--cwd", "/tmp", "-e", "A=1", "--", "ls", "-l", "--", "x")
    out, err = process.communicate(timeout=20)
    assert (out, err, process.returncode) == (b"out\xffmore", b"err", 42)
    assert world.exec_request == {
        "command": ["ls", "-l", "--", "x"], "cwd": "/tmp", "environment": {"A": "1"}, "user": "workspace",
        "terminal": None,
    }  # fmt: skip


def test_standard_input_is_handed_on_to_its_end(execute: Spawn, world: World) -> None:
    world.exec_echo = True
    data = os.urandom(300_000)
    process = execute("-i", "one", "--", "cat")
    out, _ = process.communicate(data, timeout=20)
    assert (out == data, process.returncode) == (True, 0)


def test_a_regular_file_is_fine_as_standard_input(
    execute: Spawn, world: World, tmp_path_factory: pytest.TempPathFactory
) -> None:
    world.exec_echo = True
    path = tmp_path_factory.mktemp("input") / "file"
    path.write_bytes(b"text")
    with path.open("rb") as file:
        process = execute("one", "--", "cat", stdin=file)
        assert process.communicate(timeout=20)[0] == b"text"


def test_without_standard_input_the_command_sees_its_end_at_once(execute: Spawn, world: World) -> None:
    world.exec_echo = True
    process = execute("-n", "one", "--", "cat")
    assert process.wait(20) == 0
    assert world.exec_frames == [control(eof=True)]


def test_an_interrupt_is_handed_on(execute: Spawn, world: World) -> None:
    world.exec_echo = True
    process = execute("one", "--", "sleep", "60")
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(b"ready")
    process.stdin.flush()
    assert os.read(process.stdout.fileno(), 5) == b"ready"
    process.send_signal(signal.SIGINT)
    assert process.wait(20) == 130
    assert world.exec_frames[-1] == control(signal="INT")


def test_a_command_that_does_not_exist_has_exit_status_127_and_a_message(execute: Spawn, world: World) -> None:
    world.exec_answer = [control(error={"code": "command_not_found", "message": "'nope' is not in this workspace"})]
    process = execute("one", "--", "nope")
    _, err = process.communicate(timeout=20)
    assert (process.returncode, err) == (127, b"error: 'nope' is not in this workspace\n")


def test_a_workspace_that_is_not_there_is_said(execute: Spawn) -> None:
    process = execute("two", "--", "true")
    _, err = process.communicate(timeout=20)
    assert (process.returncode, err) == (1, b"error: there is no workspace 'two'\n")


def test_a_connection_lost_before_the_end_is_no_success(execute: Spawn, world: World) -> None:
    world.exec_answer = [(1, b"half")]
    process = execute("one", "--", "true")
    out, err = process.communicate(timeout=20)
    assert (out, process.returncode) == (b"half", 3)
    assert b"before the command ended" in err


def test_over_tcp_the_token_is_sent(spawn: Spawn, served: Served, world: World) -> None:
    world.add("one")
    world.exec_answer = [control(exit=0)]
    environment = {**os.environ, "FAIRWATER_URL": served.url, "FAIRWATER_TOKEN": "fw_right"}
    assert spawn("ws", "exec", "one", "--", "true", env=environment).wait(20) == 0


def test_an_away_server_is_said_with_how_to_start_it(spawn: Spawn) -> None:
    process = spawn("ws", "exec", "--server", "http://127.0.0.1:9", "one", "--", "true")
    _, err = process.communicate(timeout=20)
    assert (process.returncode, b"fairwater up" in err) == (1, True)


def test_on_a_terminal_one_is_asked_for_keys_go_through_raw_and_the_terminal_is_as_before(
    execute: Spawn, world: World
) -> None:
    import fcntl
    import struct
    import termios

    world.exec_echo = True
    leader, follower = pty.openpty()
    fcntl.ioctl(follower, termios.TIOCSWINSZ, struct.pack("HHHH", 33, 111, 0, 0))
    before = termios.tcgetattr(follower)
    process = execute(
        "one", "--", "bash", stdin=follower, stdout=follower, stderr=subprocess.DEVNULL,
        env={**os.environ, "TERM": "vt100", "COLUMNS": "", "LINES": ""},
    )  # fmt: skip
    try:
        assert world.exec_started.wait(20)
        assert world.exec_request is not None
        assert world.exec_request["terminal"] == {"rows": 33, "columns": 111}
        assert world.exec_request["environment"] == {"TERM": "vt100"}
        os.write(leader, b"\x03x")  # Ctrl-C is a key here, no signal
        seen = b""
        while not seen.endswith(b"x"):
            seen += os.read(leader, 10)
        assert seen == b"\x03x"
        fcntl.ioctl(follower, termios.TIOCSWINSZ, struct.pack("HHHH", 20, 90, 0, 0))
        process.send_signal(signal.SIGWINCH)
        ends = time.monotonic() + 20
        while control(resize=[20, 90]) not in world.exec_frames and time.monotonic() < ends:
            threading.Event().wait(0.01)
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0
        assert control(resize=[20, 90]) in world.exec_frames
        assert termios.tcgetattr(follower) == before
    finally:
        os.close(leader)
        os.close(follower)
