"""`fairwater config explain`: a folder or a git URL, what is shown of it, and the exit status."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from tests.servers.git_server import git_server
from typer.testing import CliRunner, Result

from fairwater.cli import repository_files
from fairwater.cli.main import app
from fairwater.domain.failure import Permanent
from fairwater.domain.workspaces.context import parse_context

_GITPOD = """\
image: node:20
checkoutLocation: web/shop
tasks:
  - name: web
    init: npm ci
    command: npm start
    env: {TOKEN: s3cret}
ports:
  - {port: 3000, name: Shop, onOpen: open-preview}
additionalRepositories: [{url: "https://github.com/a/backend"}]
vscode: {extensions: [a.b]}
"""
_DEVCONTAINER = '{"image": "python:3.12", "remoteUser": "vscode", "hostRequirements": {"cpus": 4, "memory": "8gb"}}'


def explain(*words: str | Path) -> Result:
    return CliRunner().invoke(app, ["config", "explain", *map(str, words)])


def write(folder: Path, files: dict[str, str]) -> Path:
    for path, text in files.items():
        place = folder / path
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(text)
    return folder


def git(folder: Path, *words: str) -> str:
    identity = ("-c", "user.name=a", "-c", "user.email=a@example.org", "-c", "init.defaultBranch=main")
    environment = {"PATH": os.environ["PATH"], "GIT_CONFIG_GLOBAL": "/dev/null", "GIT_CONFIG_NOSYSTEM": "1"}
    done = subprocess.run(
        ["git", *identity, *words], cwd=folder, env=environment, check=True, capture_output=True, text=True
    )
    return done.stdout.strip()


@pytest.fixture
def shop(tmp_path: Path) -> Path:
    return write(tmp_path / "shop", {".gitpod.yml": _GITPOD, ".devcontainer/a/devcontainer.json": _DEVCONTAINER})


@pytest.fixture
def repository(shop: Path) -> Path:
    (shop / ".devcontainer.json").symlink_to("/etc/passwd")
    git(shop, "init", "--quiet")
    git(shop, "add", "--all")
    git(shop, "commit", "--quiet", "-m", "one")
    git(shop, "tag", "v1")
    git(shop, "checkout", "--quiet", "-b", "side/one")
    write(shop, {".gitpod.yml": "image: side:1\n"})
    git(shop, "commit", "--quiet", "--all", "-m", "two")
    git(shop, "checkout", "--quiet", "main")
    return shop


def test_a_folder_is_explained_with_every_place(shop: Path) -> None:
    result = explain(shop)
    assert result.exit_code == 0, result.output
    shown = [" ".join(line.split()) for line in result.stdout.splitlines()]
    for line in (
        "repository shop, in /workspace/web/shop",
        "read .gitpod.yml",
        "image node:20 (.gitpod.yml:1)",
        "user the image's own",
        "folder /workspace/web/shop",
        "web init (once) → command TOKEN",
        "3000 Shop private open-preview http",
        "https://github.com/a/backend /workspace/backend",
        "warning .gitpod.yml:11:1: vscode is for an editor, and is not supported yet: set the editor up itself",
        "info .devcontainer/a/devcontainer.json:1:1: this file is not used: .gitpod.yml counts before it",
    ):
        assert line in shown
    assert "s3cret" not in result.output


def test_json_is_all_that_is_on_standard_output_and_holds_no_values_of_variables(shop: Path) -> None:
    result = explain(shop, "--json")
    said = json.loads(result.stdout)
    assert (said["file"], said["image"], said["image_line"]) == (".gitpod.yml", "node:20", 1)
    assert [stage["name"] for stage in said["tasks"][0]["stages"]] == ["init", "command"]
    assert [(one["level"], one["file"], one["line"], one["column"]) for one in said["notices"]] == [
        ("warning", ".gitpod.yml", 11, 1),
        ("info", ".devcontainer/a/devcontainer.json", 1, 1),
    ]
    assert "s3cret" not in result.stdout


def test_a_devcontainer_shows_user_and_needs(tmp_path: Path) -> None:
    result = explain(write(tmp_path / "x", {".devcontainer.json": _DEVCONTAINER}))
    assert result.exit_code == 0
    assert "user vscode" in " ".join(result.stdout.split())
    assert "4 cores, 8 GiB of memory" in result.stdout


def test_an_error_is_shown_with_its_place_and_is_exit_status_1(tmp_path: Path) -> None:
    result = explain(write(tmp_path / "x", {".gitpod.yml": "image: x\nports:\n\t- port: 1\n"}))
    assert result.exit_code == 1
    assert "error   .gitpod.yml:3:1: a tab" in result.stdout
    assert "the default image (what the repository asks for cannot be followed" in result.stdout
    assert explain(tmp_path / "x", "--json").exit_code == 1


def test_nothing_to_read_is_no_failure(tmp_path: Path) -> None:
    result = explain(tmp_path)
    assert result.exit_code == 0
    assert "there is no .gitpod.yml and no devcontainer.json" in result.stdout


@pytest.mark.parametrize("words", [[], ["nothing-here"], ["ftp://x/y"], ["https://"], ["https://u:p@example.org/a/b"]])
def test_wrong_use_is_exit_status_2_and_says_why(words: list[str]) -> None:
    result = explain(*words)
    assert result.exit_code == 2
    assert result.stdout == ""
    assert "rror" in result.stderr
    assert "u:p" not in result.output


def test_a_link_is_not_followed_and_is_told(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("image: [s3cret\n")
    folder = tmp_path / "x"
    (folder / ".devcontainer").mkdir(parents=True)
    (folder / ".gitpod.yml").symlink_to(secret)
    os.mkfifo(folder / ".devcontainer.json")
    result = explain(folder)
    assert result.exit_code == 0
    assert "s3cret" not in result.output
    assert ".gitpod.yml is no regular file" in result.stderr
    assert ".devcontainer.json is no regular file" in result.stderr


def test_names_and_values_cannot_move_the_cursor(tmp_path: Path) -> None:
    text = 'image: "x\\e[2Jy"\ntasks: [{name: "a\\e[1Ab", command: x}]\n"k\\e[5m": 1\n'
    result = explain(write(tmp_path / "x", {".gitpod.yml": text}))
    assert "\x1b" not in result.output


@pytest.mark.parametrize(
    ("ref", "image"), [("", "node:20"), ("#v1", "node:20"), ("#side/one", "side:1"), ("#main", "node:20")]
)
def test_a_git_url_is_fetched_and_explained(repository: Path, ref: str, image: str) -> None:
    result = explain(f"file://{repository}{ref}", "--json")
    assert result.exit_code == 0, result.output
    said = json.loads(result.stdout)
    assert (said["repository"], said["image"]) == ("shop", image)
    assert said["passed_over"] == [".devcontainer/a/devcontainer.json"]
    assert ".devcontainer.json is no regular file" in result.stderr


def test_a_commit_is_fetched_by_its_name(repository: Path) -> None:
    commit = git(repository, "rev-parse", "side/one")
    assert json.loads(explain(f"file://{repository}#{commit}", "--json").stdout)["image"] == "side:1"


def test_a_repository_that_is_not_there_is_exit_status_1(tmp_path: Path, repository: Path) -> None:
    result = explain(f"file://{tmp_path}/nothing")
    assert result.exit_code == 1
    assert result.stderr.startswith("error: ")
    result = explain(f"file://{repository}#nothing")
    assert result.exit_code == 1
    assert "'nothing'" in result.stderr


def test_nothing_is_left_behind_and_no_hook_of_the_persons_runs(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    temporary, template = tmp_path / "tmp", tmp_path / "template"
    temporary.mkdir()
    write(template, {"hooks/reference-transaction": f"#!/bin/sh\ntouch {tmp_path}/hooked\n"})
    (template / "hooks/reference-transaction").chmod(0o755)
    monkeypatch.setattr("tempfile.tempdir", str(temporary))
    monkeypatch.setenv("GIT_TEMPLATE_DIR", str(template))
    monkeypatch.setenv("GIT_DIR", str(tmp_path / "elsewhere"))
    assert explain(f"file://{repository}").exit_code == 0
    assert list(temporary.iterdir()) == []
    assert not (tmp_path / "hooked").exists()
    assert not (tmp_path / "elsewhere").exists()


def test_a_server_that_says_nothing_is_left_in_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tools = tmp_path / "tools"
    write(tools, {"git": "#!/bin/sh\nfor word; do [ $word = fetch ] && exec sleep 600; done\nmkdir -p repository\n"})
    (tools / "git").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tools}:{os.environ['PATH']}")
    monkeypatch.setattr(repository_files, "FETCH_S_MAX", 0.5)
    with pytest.raises(Permanent, match="took longer"):
        repository_files.fetch_repository(parse_context("https://example.org/a/b"))


def test_the_help_of_config_loads_neither_yaml_nor_rich() -> None:
    script = "import sys; import fairwater.cli.config; print({'yaml', 'rich.console'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


def test_a_private_repository_is_read_by_the_persons_own_git_and_the_refusal_says_so(tmp_path: Path) -> None:
    with git_server(tmp_path / "git", "127.0.0.1") as server:
        server.repository("team/private")
        server.private.add("team/private")
        done = explain(server.url_of("team/private"))
    assert done.exit_code == 1
    assert "your own git" in done.stderr
    assert "credential add" not in done.stderr
