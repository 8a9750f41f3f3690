from __future__ import annotations

import os
import signal
import socket
import stat
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from fairwater.cli import installation, preparation
from fairwater.cli.client import Client
from fairwater.cli.connection import Target
from fairwater.cli.supervisor import Interrupted, Interrupts, Part, Supervisor, rotate, tail
from fairwater.data_dir import DataDir
from fairwater.domain.failure import Permanent
from fairwater.settings_values import Address

if TYPE_CHECKING:
    from tests.cli.conftest import Run, Served, Spawn, World

FREE = Address("127.0.0.1", 7999)


@pytest.fixture
def data(tmp_path: Path) -> DataDir:
    (tmp_path / "fairwater").mkdir()
    return DataDir(tmp_path / "fairwater")


def until(condition: Callable[[], bool], what: str) -> None:
    ends = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < ends, f"{what} did not come about in 20 s"
        threading.Event().wait(0.02)


def test_a_data_directory_of_a_newer_version_is_refused(run: Run, data: DataDir) -> None:
    data.format.write_text("99\n")
    result = run("up", "--data-dir", str(data.root))
    assert result.exit_code == 1
    assert "written by a newer Fairwater (format 99; this version knows up to 1)" in result.stderr
    assert not data.server.exists()


def test_the_format_is_written_for_older_versions_to_see(data: DataDir) -> None:
    preparation.mark_format(data)
    preparation.check_format(data)
    assert data.format.read_text() == "1\n"


def test_a_second_up_on_a_data_directory_is_refused_and_says_who_holds_it(run: Run, data: DataDir) -> None:
    held = preparation.lock(data, FREE, lambda line: None)
    try:
        result = run("up", "--data-dir", str(data.root), "--listen", "127.0.0.1:7998")
    finally:
        os.close(held)
    assert result.exit_code == 1
    assert f"already (process {os.getpid()}, on 127.0.0.1:7999)" in result.stderr
    assert "--data-dir" in result.stderr
    os.close(preparation.lock(data, FREE, lambda line: None))


def test_a_supervisor_that_was_killed_is_waited_for_while_its_parts_end(data: DataDir) -> None:
    held = preparation.lock(data, FREE, lambda line: None)
    gone = os.fork()
    if not gone:
        os._exit(0)
    os.waitpid(gone, 0)
    os.ftruncate(held, 0)
    os.pwrite(held, b'{"pid": %d, "listen": "x"}' % gone, 0)
    said: list[str] = []

    def tell(line: str) -> None:
        said.append(line)
        os.close(held)  # the last part ends

    os.close(preparation.lock(data, FREE, tell))
    assert said == ["an earlier Fairwater was killed; waiting for its server and agent to end"]


def test_a_port_in_use_is_refused_and_says_how_to_choose_another(run: Run, data: DataDir) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        result = run("up", "--data-dir", str(data.root), "--listen", f"127.0.0.1:{port}")
    assert result.exit_code == 1
    assert f"port {port} of 127.0.0.1 is in use" in result.stderr
    assert f"--listen 127.0.0.1:{port + 1}" in result.stderr


@pytest.mark.parametrize("url", ["https://example.org", "nonsense", "https://u:p@example.org/o/r"])
def test_a_bad_git_url_is_refused_before_anything_is_started(run: Run, data: DataDir, url: str) -> None:
    assert run("up", url, "--data-dir", str(data.root)).exit_code == 1
    assert not list(data.root.iterdir())


def test_an_unknown_key_in_the_configuration_stops_up(run: Run, data: DataDir, tmp_path: Path) -> None:
    (tmp_path / "fairwater.toml").write_text("[node]\nparkd = 3\n")
    result = run("up", "--data-dir", str(data.root), "--config", str(tmp_path / "fairwater.toml"))
    assert (result.exit_code, "did you mean 'node.parked'?" in result.stderr) == (1, True)


def test_the_layout_keeps_each_folder_to_its_owner(data: DataDir) -> None:
    preparation.lay_out(data, None)
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in data.root.iterdir()}
    assert modes == {"server": 0o700, "node": 0o700, "run": 0o1775, "logs": 0o750}


def test_a_folder_of_the_layout_that_is_a_link_is_refused(data: DataDir, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir(mode=0o755)
    data.server.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(Permanent):
        preparation.lay_out(data, None)
    assert stat.S_IMODE((tmp_path / "elsewhere").stat().st_mode) == 0o755


@pytest.mark.root
def test_a_data_directory_that_the_servers_user_cannot_enter_is_refused(data: DataDir) -> None:
    data.root.parent.chmod(0o700)
    with pytest.raises(Permanent, match="cannot enter"):
        preparation.check_reach(data, preparation.Account("nobody", 65_534, 65_534))


PART = """
import signal, sys, time, pathlib, threading, os
out, name = pathlib.Path(sys.argv[1]), sys.argv[2]
def end(*_):
    with out.open("a") as f: f.write(f"{name} ended\\n")
    os._exit(0)
signal.signal(signal.SIGTERM, signal.SIG_IGN if name == "stubborn" else end)
with out.open("a") as f: f.write(f"{name} began {os.getpid()}\\n")
print("hello from", name, flush=True)
(out.parent / f"{name}.ready").touch()
if name == "failing": sys.exit("cannot go on")
while os.read(0, 1): pass
with out.open("a") as f: f.write(f"{name} saw the supervisor go\\n")
"""


@pytest.fixture
def happened(tmp_path: Path) -> Path:
    (tmp_path / "happened").touch()
    return tmp_path / "happened"


@pytest.fixture
def make(happened: Path, data: DataDir) -> Iterator[Callable[..., Supervisor]]:
    held = preparation.lock(data, FREE, lambda line: None)
    made: list[Supervisor] = []

    def supervisor(*names: str, tell: Callable[[str], None] = lambda line: None) -> Supervisor:
        def part(name: str) -> Part:
            ready = happened.parent / f"{name}.ready"
            failing = name == "failing"
            command = (sys.executable, "-c", PART, str(happened), name)
            log = happened.parent / f"{name}.log"
            return Part(name, command, {"PATH": os.defpath}, log, lambda: ready.exists() and not failing)

        made.append(Supervisor([part(name) for name in names], held, tell, Interrupts()))
        return made[-1]

    yield supervisor
    for one in made:
        one.stop()
    os.close(held)


def test_parts_start_in_order_and_end_in_the_opposite_one(make: Callable[..., Supervisor], happened: Path) -> None:
    supervisor = make("node", "server")
    supervisor.start()
    supervisor.stop()
    words = [line.split()[:2] for line in happened.read_text().splitlines()]
    assert words == [["node", "began"], ["server", "began"], ["server", "ended"], ["node", "ended"]]


def test_a_part_that_fails_at_once_is_said_with_the_end_of_its_log(make: Callable[..., Supervisor]) -> None:
    with pytest.raises(Permanent, match=r"(?s)the failing ended with status 1.*hello from failing\n  cannot go on"):
        make("failing").start()


def test_a_part_that_dies_is_started_again(make: Callable[..., Supervisor], happened: Path) -> None:
    said: list[str] = []
    supervisor = make("node", tell=said.append)
    supervisor.start()
    os.kill(int(happened.read_text().split()[2]), signal.SIGKILL)
    until(lambda: happened.read_text().count("began") == 2, "the second start")
    assert "the node ended with signal SIGKILL; starting it again in 0.5 s" in said[0]


def test_a_part_that_does_not_end_is_killed(
    make: Callable[..., Supervisor], happened: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fairwater.cli.supervisor.END_S", 0.2)
    said: list[str] = []
    supervisor = make("stubborn", tell=said.append)
    supervisor.start()
    supervisor.stop()
    assert said == ["the stubborn did not end in time: killing it"]
    with pytest.raises(ProcessLookupError):
        os.kill(int(happened.read_text().split()[2]), 0)


def test_a_signal_breaks_off_what_is_under_way_but_not_what_is_held() -> None:
    def held() -> None:
        with Interrupts() as interrupts, interrupts.held():
            os.kill(os.getpid(), signal.SIGINT)
            done.append("held")

    def free() -> None:
        with Interrupts():
            os.kill(os.getpid(), signal.SIGTERM)
            threading.Event().wait(5)
            done.append("not broken off")

    done: list[str] = []
    for under_way in (held, free):
        with pytest.raises(Interrupted):
            under_way()
    assert done == ["held"]


WATCHED = """
import os, signal, sys, threading
from fairwater.cli.parts import prepare
ended = threading.Event()
signal.signal(signal.SIGTERM, lambda *_: ended.set())
prepare(None, None, int(sys.argv[1]))
assert not os.get_inheritable(int(sys.argv[1]))
print("ready", flush=True)
ended.wait()
print("ended in order", flush=True)
"""


def test_a_part_ends_in_order_when_its_supervisor_is_gone_and_holds_the_lock_until_then(
    data: DataDir, spawn: Spawn
) -> None:
    import subprocess

    held = preparation.lock(data, FREE, lambda line: None)
    reader, writer = os.pipe()
    process = subprocess.Popen(
        [sys.executable, "-c", WATCHED, str(held)], stdin=reader, stdout=subprocess.PIPE, pass_fds=(held,)
    )
    assert process.stdout is not None
    with process.stdout as output:
        assert output.readline() == b"ready\n"
        os.close(reader)
        os.close(held)
        with pytest.raises(Permanent, match="runs on"):
            preparation.lock(data, FREE, lambda line: None)
        os.close(writer)  # as when the supervisor is killed
        assert output.readline() == b"ended in order\n"
    assert process.wait(10) == 0
    os.close(preparation.lock(data, FREE, lambda line: None))


def test_logs_are_bounded(tmp_path: Path) -> None:
    log = tmp_path / "node.log"
    with log.open("ab") as part:
        for number in range(6):
            part.write(b"%d\n" % number)
            part.flush()
            rotate(log)
        part.write(b"after\n")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["node.log", "node.log.1", "node.log.2", "node.log.3"]
    assert (log.read_text(), (tmp_path / "node.log.1").read_text()) == ("after\n", "5\n")
    assert tail(log) == "  after"


@pytest.fixture
def client(served: Served) -> Iterator[Client]:
    with Client(Target("http://fairwater", served.data_dir / "run/server.sock")) as client:
        yield client


def test_the_end_stops_every_active_workspace_and_waits_for_it(client: Client, world: World) -> None:
    world.add("one")
    world.add("two", "stopped")
    world.add("three", "initializing")
    installation.stop_all(client, 10, force=True)
    assert {one["phase"] for one in world.workspaces.values()} == {"stopped"}
    assert [body for _, path, body in world.requests if path.endswith("/stop")] == [{"force": True}] * 2


def test_the_first_workspace_is_created_once_and_started_again_afterwards(client: Client, world: World) -> None:
    made = installation.first_workspace(client, "file:///srv/repo")
    world.workspaces[made["id"]]["phase"] = "stopped"
    again = installation.first_workspace(client, "file:///srv/repo")
    assert (again["id"], again["phase"], len(world.workspaces)) == (made["id"], "pending", 1)


def test_a_folder_given_to_up_becomes_a_root_of_this_run(tmp_path: Path) -> None:
    found = installation.Installation.prepared(str(tmp_path), tmp_path, None, [Path("/srv/git")], None)
    assert found.source == f"file://{tmp_path}"
    assert found.settings.node.git_file_roots == (Path("/srv/git"), tmp_path)
    assert found.settings.node.runtime == ("crun" if os.geteuid() == 0 else "plain")


def test_children_get_neither_secrets_in_their_arguments_nor_the_environment_of_the_shell(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAIRWATER_SERVER_DATABASE_URL", "postgresql://u:secret@h/d")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    found = installation.Installation.prepared(None, tmp_path, None, [], None)
    node, server = found._parts(None)
    assert "secret" not in " ".join([*node.command, *server.command])
    assert not any("secret" in value for value in node.environment.values())
    assert server.environment["FAIRWATER_SERVER_DATABASE_URL"] == "postgresql://u:secret@h/d"
    assert "AWS_SECRET_ACCESS_KEY" not in server.environment
