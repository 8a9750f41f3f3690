from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from fairwater.cli import completion
from fairwater.cli.connection import find_target, kept_login
from fairwater.cli.main import NOUNS
from fairwater.domain.failure import Permanent

if TYPE_CHECKING:
    from tests.cli.conftest import Run, Served, World

HEAVY = (
    "rich", "httpx2", "websockets", "fastapi", "pydantic", "sqlalchemy", "fairwater.settings", "uvicorn",
    "cryptography", "asyncssh", "yaml", "psycopg",
)  # fmt: skip


def test_help_loads_nothing_heavy() -> None:
    code = "import sys, fairwater.cli.main as m\ntry: m.app(['--help'])\nexcept SystemExit: pass\nprint(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(done.stdout.splitlines()[-1].split())
    assert "typer" in loaded
    assert not loaded.intersection(HEAVY)


def test_no_noun_loads_cryptography_before_it_is_needed() -> None:
    modules = sorted({f"fairwater.cli.{place.partition(':')[0]}" for place, _ in NOUNS.values()})
    code = f"import sys\nfor name in {modules}: __import__(name)\nprint(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not set(done.stdout.split()).intersection({"cryptography", "asyncssh", "httpx2", "sqlalchemy"})


@pytest.mark.parametrize("noun", NOUNS)
def test_every_noun_has_help(run: Run, noun: str) -> None:
    result = run(noun, "--help")
    assert (result.exit_code, result.stdout.startswith("Usage: fairwater")) == (0, True)


def test_a_mistyped_command_is_wrong_use_and_names_the_nearest(run: Run) -> None:
    result = run("worspace", "list")
    assert (result.exit_code, "Did you mean 'workspace'?" in result.stderr) == (2, True)
    assert run("ws", "lst").exit_code == 2
    assert run("ws", "list", "--nope").exit_code == 2


def test_login_with_a_code_keeps_a_token_that_only_its_owner_can_read(run: Run, served: Served) -> None:
    result = run("login", "good", "--server", served.url)
    assert (result.exit_code, result.stdout) == (0, f"logged in to {served.url} as ada (member)\n")
    path = Path(os.environ["XDG_CONFIG_HOME"]) / "fairwater/credentials.toml"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert run("ws", "list", "--json").stdout == "[]\n"
    assert find_target().url == served.url


def test_a_token_that_does_not_let_in_is_not_kept(run: Run, served: Served) -> None:
    result = run("login", "--server", served.url, "--token", "fw_wrong")
    assert (result.exit_code, kept_login()) == (1, None)
    assert run("login", "bad", "--server", served.url).stderr.startswith("error: this code is used up")


def test_a_token_may_come_by_standard_input_and_be_forgotten(run: Run, served: Served) -> None:
    assert run("login", "--server", served.url, "--token", "-", input="fw_right\n").exit_code == 0
    assert "removed" in run("login", "--forget").stderr
    assert kept_login() is None


def test_without_a_token_a_server_says_how_to_log_in(run: Run, served: Served) -> None:
    result = run("ws", "list", "--server", served.url)
    assert (result.exit_code, "fairwater login" in result.stderr) == (1, True)


def test_a_kept_token_goes_to_no_other_server(run: Run, served: Served) -> None:
    assert run("login", "good", "--server", served.url).exit_code == 0
    assert find_target(served.url).token == "fw_right"
    assert find_target("https://elsewhere.example").token is None
    assert find_target(data_dir=Path("/x")).token is None


def test_the_order_of_ways_to_name_a_server(tmp_path: Path) -> None:
    environment = {"FAIRWATER_URL": "https://a.example/", "FAIRWATER_TOKEN": "t", "FAIRWATER_DATA_DIR": str(tmp_path)}
    assert find_target("b.example:99", None, None, environment).url == "http://b.example:99"
    assert find_target(None, None, None, environment).url == "https://a.example"
    del environment["FAIRWATER_URL"]
    assert find_target(None, None, None, environment).socket == tmp_path / "run/server.sock"
    assert find_target("unix:/run/x.sock").socket == Path("/run/x.sock")
    with pytest.raises(Permanent):
        find_target("ftp://x")


def test_a_token_is_not_part_of_what_is_printed_of_a_target() -> None:
    assert "hidden" not in repr(find_target("https://a.example", "hidden"))


def test_users_are_created_blocked_and_given_tokens(run: Run, served: Served, world: World) -> None:
    where = ("--data-dir", str(served.data_dir))
    assert run("user", "create", "ada", "--role", "operator", *where).exit_code == 0
    assert run("user", "block", "ada", *where).stdout == "ada  blocked\n"
    assert world.users[0]["blocked"] is True
    assert json.loads(run("user", "list", "--json", *where).stdout)[0]["role"] == "operator"
    token = run("user", "token", "ada", "--expires", "2h", *where)
    assert (token.stdout, world.requests[-1][2]) == ("fw_made\n", {"name": "cli", "expires_in_s": 7200.0})
    assert run("user", "block", "eve", *where).exit_code == 1


def test_config_check_says_what_a_file_would_do(run: Run, tmp_path: Path) -> None:
    file = tmp_path / "fairwater.toml"
    file.write_text('[classes.xl]\nmemory = "20GiB"\n')
    assert "classes.xl.memory  20GiB" in run("config", "check", str(file)).stdout
    file.write_text('[classes.xl]\nmemroy = "20GiB"\n')
    result = run("config", "check", str(file))
    assert (result.exit_code, "did you mean 'classes.xl.memory'?" in result.stderr) == (1, True)
    assert run("config", "check", str(tmp_path / "none")).exit_code == 1


def test_config_show_lists_every_key_with_its_origin(run: Run) -> None:
    shown = json.loads(run("config", "show", "--json", env={"FAIRWATER_NODE_PARKED": "3"}).stdout)
    entry = next(entry for entry in shown if entry["key"] == "node.parked")
    assert (entry["value"], entry["origin"]) == ("3", "environment FAIRWATER_NODE_PARKED")


def test_status_and_version(run: Run, served: Served, world: World) -> None:
    world.add("one")
    where = ("--data-dir", str(served.data_dir))
    assert json.loads(run("status", "--json", *where).stdout)["workspaces"] == {"running": 1}
    assert json.loads(run("version", "--json", *where).stdout) == {"cli": "0.1.0", "server": "0.1.0", "api": "v1"}
    assert json.loads(run("version", "--json", "--server", "http://127.0.0.1:9").stdout)["server"] is None


def test_completion_offers_names_and_then_ids_and_nothing_when_the_server_is_away(
    served: Served, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.add("one", id="abcdefghijkm")
    monkeypatch.setenv("FAIRWATER_DATA_DIR", str(served.data_dir))
    assert completion.workspaces(None, [], "o") == [("one", "running abcdefghijkm")]
    assert completion.workspaces(None, [], "abc") == [("abcdefghijkm", "one")]
    monkeypatch.setenv("FAIRWATER_URL", "http://127.0.0.1:9")
    assert completion.workspaces(None, [], "o") == []


def test_the_shell_completes_nouns_and_workspaces(served: Served, world: World) -> None:
    world.add("one")
    command = [sys.executable, "-c", "from fairwater.cli.main import run; run()"]

    def complete(line: str) -> str:
        environment = {
            **os.environ, "_FAIRWATER_COMPLETE": "complete_bash", "COMP_WORDS": line,
            "COMP_CWORD": str(len(line.split(" ")) - 1), "FAIRWATER_DATA_DIR": str(served.data_dir),
        }  # fmt: skip
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=False).stdout

    assert complete("fairwater work").split() == ["workspace"]
    assert complete("fairwater ws st").split() == ["start", "stop"]
    assert complete("fairwater ws stop o").split() == ["one"]
