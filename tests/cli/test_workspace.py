from __future__ import annotations

import json
import signal
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from fairwater.cli.output import age, clean
from fairwater.cli.wait import PlainDisplay

if TYPE_CHECKING:
    from tests.cli.conftest import Run, Served, Spawn, World


def test_create_waits_and_shows_how_far_it_is(ws: Run, world: World) -> None:
    world.progress = [{"step": "cloning", "done": done, "total": 100, "unit": "%"} for done in (5, 42, 44)]
    result = ws("create", "https://example.org/org/repo", "--name", "first", "--wait")
    assert result.exit_code == 0
    assert "first: initializing" in result.stderr
    assert result.stderr.count("cloning 40 %") == 1
    assert result.stdout.split()[-1] == "running"
    assert "fairwater ws exec first -- bash -l" in result.stderr


def test_a_pull_is_shown_in_bytes(ws: Run, world: World) -> None:
    mib = 1 << 20
    world.progress = [
        {"step": "pulling image", "done": done * mib, "total": 95 * mib, "unit": "bytes"} for done in (1, 12, 13, 60)
    ]
    result = ws("create", "https://example.org/org/repo", "--name", "first", "--wait")
    assert "first: pulling image 10 %, 12 MiB of 95 MiB\n" in result.stderr
    assert "13 MiB" not in result.stderr, "one line for each tenth"
    assert "first: pulling image 60 %, 60 MiB of 95 MiB\n" in result.stderr


SETUP = {
    "image": "debian:12", "image_why": "asked for in .gitpod.yml:1", "digest": "sha256:" + "0f" * 32,
    "file": ".gitpod.yml", "user": "gitpod", "home": "/home/gitpod", "folder": "/workspace/repo/app",
    "repository": "/workspace/repo", "tasks": [{"number": 0, "name": "build"}, {"number": 1, "name": ""}],
    "ports": [
        {"first": 8080, "last": 8080, "name": "web", "visibility": "public"},
        {"first": 9000, "last": 9999, "name": "", "visibility": "private"},
    ],
    "notices": [
        {"level": "error", "code": "x", "message": "no features\x1b[2J yet", "file": ".devcontainer.json", "line": 3,
         "column": 5},
        {"level": "info", "code": "y", "message": "nothing else", "file": None, "line": None, "column": None},
    ],
}  # fmt: skip


def test_a_workspace_that_was_waited_for_says_what_it_was_set_up_with(ws: Run, world: World) -> None:
    world.setup = SETUP
    said = ws("create", "https://example.org/org/repo", "--wait").stderr
    assert "image: debian:12 (asked for in .gitpod.yml:1, sha256:0f0f0f0f0f0f)" in said
    assert "tasks started: build, #1; fairwater ws tasks repo --wait waits for them" in said
    assert "error: .devcontainer.json:3:5: no features" in said
    assert "\x1b" not in said


def test_show_names_image_configuration_and_every_notice_with_its_place(ws: Run, world: World) -> None:
    world.add("one", setup=SETUP, image_asked=None)
    world.add("two", setup=None, image_asked=None)
    world.add("three", setup=None, image_asked="host")
    lines = {" ".join(line.split()) for line in ws("show", "one").stdout.splitlines()}
    assert {
        "configuration .gitpod.yml", "user gitpod", "folder /workspace/repo/app", "tasks build, #1",
        "ports 8080 (web, public), 9000-9999", "info: nothing else",
    } <= lines  # fmt: skip
    assert any(line.startswith("error: .devcontainer.json:3:5: no features") for line in lines)
    assert "host (unless the repository asks for another)" in ws("show", "two").stdout
    assert "unless" not in ws("show", "three").stdout
    assert json.loads(ws("show", "one", "--json").stdout)["setup"] == SETUP


def task(state: str, number: int = 0, name: str = "build", status: int | None = None) -> dict[str, object]:
    return {"number": number, "name": name, "state": state, "exit_status": status, "started_at": None, "ended_at": None}


def test_tasks_are_listed_with_how_they_ended(ws: Run, world: World) -> None:
    world.add("one")
    world.tasks = [[task("failed", status=2), task("running", 1, "")]]
    rows = [line.split() for line in ws("tasks", "one").stdout.splitlines()[1:]]
    assert rows == [["0", "build", "failed", "2", "-"], ["1", "-", "running", "-", "-"]]
    assert ws("tasks", "one").exit_code == 0, "without --wait it only shows"
    assert [one["state"] for one in json.loads(ws("tasks", "one", "--json").stdout)] == ["failed", "running"]


def test_tasks_are_waited_for_until_each_has_gone_through_what_runs_once(ws: Run, world: World) -> None:
    world.add("one", "pending")
    world.tasks = [[task("waiting")], [task("initializing")], [task("running")]]
    result = ws("tasks", "one", "--wait")
    assert result.exit_code == 0
    said = [line for line in result.stderr.splitlines() if "task build" in line]
    assert said == ["one: task build: waiting", "one: task build: initializing", "one: task build: running"]


@pytest.mark.parametrize("state", ["failed", "stopped"])
def test_a_task_that_fails_ends_the_wait_with_exit_code_1_and_where_its_output_is(
    ws: Run, world: World, state: str
) -> None:
    world.add("one")
    world.tasks = [[task("initializing"), task("initializing", 1, "")], [task("initializing"), task(state, 1, "")]]
    result = ws("tasks", "one", "--wait")
    assert result.exit_code == 1
    assert f"error: task 1 {state}: fairwater ws logs one --task 1 shows its output" in result.stderr


def test_a_task_that_never_ends_is_no_longer_waited_for_with_exit_code_3(ws: Run, world: World) -> None:
    world.add("one")
    world.tasks = [[task("initializing")]]
    result = ws("tasks", "one", "--wait", "--timeout", "250ms")
    assert result.exit_code == 3
    assert "task build is initializing" in result.stderr


def test_tasks_of_a_workspace_that_does_not_come_up_are_not_waited_for(ws: Run, world: World) -> None:
    world.add("one", "stopped")
    world.tasks = [[task("initializing")]]
    assert ws("tasks", "one", "--wait").exit_code == 1


def test_the_output_of_a_task_is_found_by_name_and_by_number(ws: Run, world: World) -> None:
    world.add("one")
    world.tasks = [[task("running"), task("running", 1, "0"), task("running", 2, "a"), task("running", 3, "a")]]
    assert ws("logs", "one", "--task", "build").stdout == "task 0, follow False\n"
    assert ws("logs", "one", "--task", "3", "--follow").stdout == "task 3, follow True\n"
    assert ws("logs", "one", "--task", "0").stdout == "task 1, follow False\n", "a name goes before a number"
    ambiguous, missing = ws("logs", "one", "--task", "a"), ws("logs", "one", "--task", "test")
    assert (ambiguous.exit_code, "by its number: 2, 3" in ambiguous.stderr) == (1, True)
    assert (missing.exit_code, "there are: 0 build, 1 0" in missing.stderr) == (1, True)


def test_json_is_one_object_and_nothing_else_on_standard_output(ws: Run, world: World) -> None:
    result = ws("create", "https://example.org/org/repo", "--wait", "--json")
    assert json.loads(result.stdout)["phase"] == "running"


def test_create_hands_on_what_is_asked_for(ws: Run, world: World, tmp_path: Path) -> None:
    (tmp_path / "my repo").mkdir()
    options = ("--class", "xl", "--env", "A=b=c", "--command", "make 'all of it'", "--no-start")
    assert ws("create", str(tmp_path / "my repo"), *options).exit_code == 0
    assert world.requests[0][2] == {
        "context_url": f"file://{tmp_path}/my%20repo", "class": "xl", "environment": {"A": "b=c"},
        "command": ["make", "all of it"], "start": False,
    }  # fmt: skip
    assert ws("create", "https://example.org/a/b", "--image", "debian:12", "--no-start").exit_code == 0
    assert world.requests[1][2]["image"] == "debian:12"


def test_a_start_that_fails_says_why_with_exit_code_1(ws: Run, world: World) -> None:
    world.after_start = ("creating", "stopping", "failed")
    result = ws("create", "https://example.org/org/repo#nope", "--wait")
    assert result.exit_code == 1
    assert "failed: there is no branch 'nope'" in result.stderr


def test_a_wait_that_runs_out_has_exit_code_3_and_says_what_it_waits_for(ws: Run, world: World) -> None:
    world.after_start = ("creating",)
    result = ws("create", "https://example.org/org/repo", "--wait", "--timeout", "400ms")
    assert result.exit_code == 3
    assert "repo is still creating (made up)" in result.stderr


def test_list_follows_every_page(ws: Run, world: World) -> None:
    for number in range(5):
        world.add(f"name-{number}")
    assert len(json.loads(ws("list", "--json").stdout)) == 5
    lines = ws("list").stdout.splitlines()
    assert lines[0].startswith("NAME")
    assert len(lines) == 6


def test_an_empty_list_is_an_empty_array_and_says_how_to_create_one(ws: Run) -> None:
    assert json.loads(ws("list", "--json").stdout) == []
    assert "fairwater ws create GIT_URL" in ws("list").stderr


def test_a_workspace_is_found_by_name_and_by_prefix_and_an_ambiguous_prefix_is_refused(ws: Run, world: World) -> None:
    world.add("one", id="abcdefghijkm")
    world.add("two", id="abcxxxxxxxxx")
    assert json.loads(ws("show", "one", "--json").stdout)["id"] == "abcdefghijkm"
    assert json.loads(ws("show", "abcd", "--json").stdout)["name"] == "one"
    result = ws("show", "abc")
    assert result.exit_code == 1
    assert "write more of it" in result.stderr


def test_a_name_cannot_leave_its_place_in_the_path(ws: Run, world: World) -> None:
    assert ws("show", "../me").exit_code == 1


def test_stop_and_start_wait_until_it_is_so(ws: Run, world: World) -> None:
    world.add("one")
    assert ws("stop", "one", "--wait", "--force").stdout.split()[-1] == "stopped"
    assert world.requests[0][2] == {"force": True}
    assert ws("start", "one", "--wait").stdout.split()[-1] == "running"


def test_what_happened_in_earlier_runs_does_not_end_a_wait(ws: Run, world: World) -> None:
    world.add("one", "stopped", run=2)
    world.history = [{"event": "fail", "phase": "failed", "reason": "long ago", "run": 1, "at": "2025-01-01T00:00:00Z"}]
    world.after_start = ("creating", "running")
    result = ws("start", "one", "--wait")
    assert result.exit_code == 0
    assert "long ago" not in result.stderr


def test_delete_asks_first_and_without_anybody_to_ask_it_wants_yes(ws: Run, world: World) -> None:
    world.add("one")
    result = ws("delete", "one")
    assert (result.exit_code, len(world.workspaces)) == (2, 1)
    assert "--yes" in result.stderr
    assert ws("delete", "one", "--yes", "--wait").exit_code == 0
    assert not world.workspaces


def test_logs_come_as_they_are(ws: Run, world: World) -> None:
    world.add("one")
    assert ws("logs", "one").stdout_bytes == b"cloned\n\x1b[1mready\x1b[0m\n"


def test_events_without_follow_end_by_themselves(ws: Run, world: World) -> None:
    world.add("one")
    world.events = [{"event": "start", "phase": "pending", "reason": "asked", "run": 1, "at": "2026-01-01T00:00:00Z"}]
    assert json.loads(ws("events", "one", "--json").stdout)[0]["phase"] == "pending"
    assert "pending  asked" in ws("events", "one").stdout


@pytest.fixture
def files(run: Run, served: Served) -> Run:
    return lambda verb, *arguments: run("ws", "files", verb, "--data-dir", str(served.data_dir), *arguments)


def test_a_file_goes_in_and_comes_out_the_same_whatever_its_name(files: Run, world: World, tmp_path: Path) -> None:
    world.add("one")
    source, target = tmp_path / "source", tmp_path / "target"
    source.write_bytes(bytes(range(256)) * 3000)
    assert files("put", "one", str(source), "repo/a b#?.bin").exit_code == 0
    assert list(world.files) == ["/workspace/repo/a b#?.bin"]
    assert files("get", "one", "/workspace/repo/a b#?.bin", str(target)).exit_code == 0
    assert target.read_bytes() == source.read_bytes()
    assert files("get", "one", "repo/a b#?.bin", "-").stdout_bytes == source.read_bytes()
    assert "0644  file  750 KiB" in files("ls", "one", "repo").stdout


def test_a_file_that_is_not_there_leaves_nothing_behind(files: Run, world: World, tmp_path: Path) -> None:
    world.add("one")
    result = files("get", "one", "nope", str(tmp_path / "target"))
    assert (result.exit_code, "is not there" in result.stderr) == (1, True)
    assert not list(tmp_path.glob("*target*"))


def test_a_folder_is_not_fetched_as_a_file(files: Run, world: World, tmp_path: Path) -> None:
    world.add("one")
    world.files["/workspace/repo/x"] = b"x"
    result = files("get", "one", "repo", str(tmp_path / "target"))
    assert (result.exit_code, "is a folder" in result.stderr) == (1, True)


@pytest.mark.parametrize(
    ("problem", "exit_code", "said"),
    [
        ((429, {"detail": "too many starts: try again in 7 s", "code": "rate_limited"}), 3, "not now: too many starts"),
        ((503, {"detail": "the node is away", "code": "x", "retry_after_s": 2}), 3, "not now: the node is away"),
        ((409, {"detail": "16 are active", "code": "too_many_workspaces"}), 1, "error: 16 are active"),
        ((403, {"detail": "you are blocked", "code": "blocked"}), 1, "error: you are blocked"),
        (
            (422, {"title": "Bad", "errors": [{"loc": ["body", "class"], "msg": "no such class"}]}),
            1,
            "class: no such class",
        ),
        ((500, {}), 1, "the server answered 500"),
    ],
)
def test_a_problem_is_said_in_plain_words_with_its_exit_code(
    ws: Run, world: World, problem: tuple[int, dict[str, object]], exit_code: int, said: str
) -> None:
    world.problem = problem
    result = ws("create", "https://example.org/org/repo")
    assert result.exit_code == exit_code
    assert said in result.stderr
    assert result.stdout == ""


def test_a_server_that_is_away_is_said_with_how_to_start_it(run: Run, tmp_path: Path) -> None:
    result = run("ws", "list", "--data-dir", str(tmp_path))
    assert result.exit_code == 1
    assert "no Fairwater runs on this machine" in result.stderr
    assert "fairwater up" in result.stderr
    assert "Connection refused" in run("ws", "list", "--server", "http://127.0.0.1:9").stderr


def test_what_the_server_says_cannot_move_the_cursor(ws: Run, world: World) -> None:
    world.add("evil", reason="\x1b[2Jgone\x9b2J")
    assert "\x1b" not in ws("show", "evil").stdout
    assert clean("a\x1b]0;x\x07\u202eb") == "a\ufffd]0;x\ufffd\ufffdb"


def test_ages_are_short() -> None:
    now = datetime(2026, 1, 2, tzinfo=UTC)
    times = ("2026-01-01T23:59:50Z", "2026-01-01T23:00:00+00:00", "2025-12-30T00:00:00", "x")
    assert [age(at, now) for at in times] == ["10s", "1h", "3d", "-"]


def test_ctrl_c_while_waiting_leaves_the_workspace_alone(spawn: Spawn, served: Served, world: World) -> None:
    world.after_start = ("creating",)
    process = spawn("ws", "create", "https://example.org/org/repo", "--wait", "--data-dir", str(served.data_dir))
    assert process.stderr is not None
    while b"creating" not in (line := process.stderr.readline()):
        assert line, "it ended before it waited"
    process.send_signal(signal.SIGINT)
    assert process.wait(10) == 130
    assert [path for _, path, _ in world.requests] == ["/workspaces"]


def test_why_a_workspace_failed_is_said_once_on_its_way_down(capsys: pytest.CaptureFixture[str]) -> None:
    shown = PlainDisplay()
    for phase, reason in (("pending", "asked for"), ("stopping", "no such branch"), ("failed", "no such branch")):
        shown.phase("demo", phase, reason)
    assert capsys.readouterr().err.splitlines() == [
        "demo: pending (asked for)", "demo: stopping (no such branch)", "demo: failed",
    ]  # fmt: skip
