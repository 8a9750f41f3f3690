"""Credentials, variables, dotfiles and backups from the command line, against the real server in a thread."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import stat
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import structlog
import uvicorn
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import BestAvailableEncryption, Encoding, NoEncryption, PrivateFormat
from tests.server.conftest import FromPeer
from tests.server.tiny_agent import HandClock, TinyAgent, TinyCopies

from fairwater.cli import completion
from fairwater.domain.failure import Temporary
from fairwater.domain.ids import WorkspaceId
from fairwater.domain.workspaces.deadlines import DeadlinePolicy
from fairwater.server.app import create_app
from fairwater.server.bus import EventBus
from fairwater.server.options import ServerOptions
from fairwater.store.database import SqlDatabase
from fairwater.store.migration import upgrade
from fairwater.store.vault import Vault

if TYPE_CHECKING:
    from tests.cli.conftest import Run

SECRET = "ghp_hunter2hunter2"


@dataclass(frozen=True)
class Server:
    data_dir: Path
    copies: TinyCopies


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    data_dir, url = tmp_path / "data", f"sqlite:///{tmp_path}/fairwater.db"
    (data_dir / "run").mkdir(parents=True)
    near = socket.socket(socket.AF_UNIX)
    near.bind(str(data_dir / "run" / "server.sock"))
    near.listen(16)
    copies = TinyCopies()
    ready = threading.Event()
    # The server is in this process: its log must not stand in the output of commands.
    nowhere = Path(os.devnull).open("w")  # noqa: SIM115 - closed at the end
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(nowhere))

    async def serve() -> None:
        await upgrade(url)
        bus, agent = EventBus(), TinyAgent()
        database = SqlDatabase.open(url, DeadlinePolicy(), bus.committed, Vault([b"k" * 32]))
        app = create_app(
            database=database,
            wake=lambda workspace: None,
            agent=agent,
            access=agent,
            node_facts=agent.facts,
            clock=HandClock(),
            options=ServerOptions(),
            bus=bus,
            backup=copies.backup,
            restore=copies.restore,
        )
        config = uvicorn.Config(FromPeer(app, 0), log_level="critical", lifespan="off", timeout_graceful_shutdown=1)
        served.append(uvicorn.Server(config))
        ready.set()
        await served[0].serve(sockets=[near])
        await database.close()

    served: list[uvicorn.Server] = []
    thread = threading.Thread(target=lambda: asyncio.run(serve()), daemon=True)
    thread.start()
    assert ready.wait(10)
    yield Server(data_dir, copies)
    served[0].should_exit = True
    thread.join(10)
    near.close()
    structlog.reset_defaults()
    nowhere.close()
    assert not thread.is_alive()


@pytest.fixture
def fairwater(run: Run, server: Server) -> Run:
    def invoke(noun: str, command: str, *arguments: str, **options: Any) -> Any:
        return run(noun, command, "--data-dir", str(server.data_dir), *arguments, **options)

    return invoke


def key_file(folder: Path, passphrase: bytes | None = None) -> Path:
    key, path = Ed25519PrivateKey.generate(), folder / "id_ed25519"
    form = PrivateFormat.PKCS8 if passphrase else PrivateFormat.OpenSSH
    how = BestAvailableEncryption(passphrase) if passphrase else NoEncryption()
    path.write_bytes(key.private_bytes(Encoding.PEM, form, how))
    return path


def test_a_token_comes_by_standard_input_and_is_never_shown(fairwater: Run) -> None:
    added = fairwater("credential", "add", "GitHub.com", "--username", "ada", input=f"{SECRET}\n")
    assert (added.exit_code, added.stdout) == (0, "github.com  token  ada\n")
    listed = fairwater("credential", "list", "--json")
    assert [(one["host"], one["username"]) for one in json.loads(listed.stdout)] == [("github.com", "ada")]
    table = fairwater("credential", "list").stdout
    assert table.split()[:2] == ["HOST", "KIND"]
    assert SECRET not in added.output + listed.output + table


def test_no_token_at_all_is_wrong_use(fairwater: Run) -> None:
    assert fairwater("credential", "add", "github.com", input="").exit_code == 2
    assert fairwater("credential", "add", "github.com", input="x" * 70_000).exit_code == 2
    assert fairwater("credential", "add", "github.com", input=b"\xff\xfe").exit_code == 2
    assert json.loads(fairwater("credential", "list", "--json").stdout) == []


def test_a_token_may_be_sent_without_tls_only_when_said_and_with_a_warning(fairwater: Run) -> None:
    added = fairwater("credential", "add", "registry.example:5000", "--plain-http", "--json", input=SECRET)
    assert json.loads(added.stdout)["plain_http"] is True
    assert "can read the token" in added.stderr


def test_an_ssh_key_is_checked_before_it_is_sent(fairwater: Run, tmp_path: Path) -> None:
    added = fairwater("credential", "add", "git.example", "--ssh-key", str(key_file(tmp_path)))
    assert added.exit_code == 0
    assert added.stdout.startswith("git.example  ssh-key  SHA256:")
    locked = fairwater("credential", "add", "git.example", "--ssh-key", str(key_file(tmp_path, b"guess me")))
    assert (locked.exit_code, "passphrase" in locked.stderr) == (1, True)
    (tmp_path / "id.pub").write_text("ssh-ed25519 AAAA ada")
    public = fairwater("credential", "add", "git.example", "--ssh-key", str(tmp_path / "id.pub"))
    assert (public.exit_code, "public half" in public.stderr) == (1, True)
    missing = fairwater("credential", "add", "git.example", "--ssh-key", str(tmp_path / "nope"))
    assert (missing.exit_code, "No such file" in missing.stderr) == (1, True)
    both = fairwater("credential", "add", "git.example", "--ssh-key", str(tmp_path / "nope"), "--plain-http")
    assert both.exit_code == 2


def test_a_credential_is_removed_by_its_host_and_where_there_are_two_by_its_id(fairwater: Run, tmp_path: Path) -> None:
    fairwater("credential", "add", "git.example", input=SECRET)
    fairwater("credential", "add", "git.example", "--ssh-key", str(key_file(tmp_path)))
    both = fairwater("credential", "remove", "git.example")
    assert (both.exit_code, "by its id" in both.stderr) == (1, True)
    key = next(one for one in json.loads(fairwater("credential", "list", "--json").stdout) if one["kind"] == "ssh-key")
    assert fairwater("credential", "remove", key["id"]).exit_code == 0
    assert fairwater("credential", "remove", "GIT.example").stdout == "git.example  token  removed\n"
    assert fairwater("credential", "remove", "git.example").exit_code == 1


def test_a_secret_variable_must_not_stand_in_the_command_line(fairwater: Run) -> None:
    refused = fairwater("variable", "set", f"TOKEN={SECRET}", "--secret")
    assert refused.exit_code == 2
    assert SECRET not in refused.output
    given = fairwater("variable", "set", "TOKEN", "--secret", input=f"{SECRET}\n")
    assert (given.exit_code, given.stdout) == (0, "TOKEN  every repository\n")
    listed = fairwater("variable", "list")
    assert listed.stdout.splitlines()[1].split()[:2] == ["TOKEN", "(secret)"]
    assert SECRET not in listed.output


def test_variables_are_set_for_repositories_and_removed_by_name(fairwater: Run) -> None:
    assert fairwater("variable", "set", "A=b=c").exit_code == 0
    assert fairwater("variable", "set", "A=d", "--repository", "Team/*").stdout == "A  team/*\n"
    several = fairwater("variable", "remove", "A")
    assert (several.exit_code, "--repository: every repository, team/*" in several.stderr) == (1, True)
    assert fairwater("variable", "remove", "A", "--repository", "team/*").exit_code == 0
    assert [one["value"] for one in json.loads(fairwater("variable", "list", "--json").stdout)] == ["b=c"]
    assert fairwater("variable", "remove", "A").exit_code == 0
    assert fairwater("variable", "remove", "A").exit_code == 1
    for wrong in ("=x", "A-B=x", "FAIRWATER_REPO_ROOT=/"):
        assert fairwater("variable", "set", wrong).exit_code in {1, 2}


def test_an_organisation_has_variables_of_its_own(fairwater: Run) -> None:
    assert fairwater("variable", "set", "A=b", "--project", "default").exit_code == 0
    assert json.loads(fairwater("variable", "list", "--json").stdout) == []
    shared = fairwater("variable", "list", "--project", "default", "--json")
    assert [one["name"] for one in json.loads(shared.stdout)] == ["A"]
    assert fairwater("variable", "remove", "A", "--project", "default").exit_code == 0
    assert fairwater("variable", "list", "--project", "../users").exit_code == 1


def test_dotfiles_are_chosen_shown_and_left_out_again(fairwater: Run) -> None:
    url = "https://git.example/ada/dotfiles"
    assert fairwater("user", "dotfiles").stdout == "none\n"
    assert fairwater("user", "dotfiles", url).stdout == f"{url}\n"
    assert json.loads(fairwater("user", "dotfiles", "--json").stdout) == {"dotfiles_url": url}
    assert fairwater("user", "dotfiles", "--none").stdout == "none\n"
    assert fairwater("user", "dotfiles", url, "--none").exit_code == 2
    assert fairwater("user", "dotfiles", "file:///etc").exit_code == 1


def test_a_backup_is_a_file_for_its_owner_that_takes_nobodys_place(fairwater: Run, tmp_path: Path) -> None:
    target = tmp_path / "now.backup"
    made = fairwater("admin", "backup", str(target))
    assert (made.exit_code, made.stdout) == (0, f"{target}  12 B\n")
    assert target.read_bytes() == b"first second"
    assert stat.S_IMODE(target.stat().st_mode) == 0o600
    target.write_text("mine")
    refused = fairwater("admin", "backup", str(target))
    assert (refused.exit_code, "--force" in refused.stderr, target.read_text()) == (1, True, "mine")
    assert fairwater("admin", "backup", str(target), "--force").exit_code == 0
    assert target.read_bytes() == b"first second"
    assert fairwater("admin", "backup", "-").stdout_bytes == b"first second"


def test_a_backup_has_a_name_with_the_time_by_default(
    fairwater: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    assert fairwater("admin", "backup").exit_code == 0
    assert [path.name[:10] for path in (tmp_path / "here").iterdir()] == ["fairwater-"]


@pytest.mark.parametrize("fails_at", [0, 1])
@pytest.mark.parametrize("force", [False, True])
def test_a_backup_that_fails_leaves_nothing_behind(
    fairwater: Run, server: Server, tmp_path: Path, fails_at: int, force: bool
) -> None:
    folder = tmp_path / "backups"
    folder.mkdir()
    if force:
        (folder / "now").write_text("the one before")
    server.copies.failure, server.copies.fails_at = Temporary("it is away", code="database_away"), fails_at
    failed = fairwater("admin", "backup", str(folder / "now"), *(["--force"] if force else []))
    assert failed.exit_code == 3
    assert {path.name: path.read_text() for path in folder.iterdir()} == ({"now": "the one before"} if force else {})


def test_a_backup_into_a_folder_that_is_not_there_says_so(fairwater: Run, tmp_path: Path) -> None:
    failed = fairwater("admin", "backup", str(tmp_path / "none" / "now"))
    assert (failed.exit_code, "No such file" in failed.stderr) == (1, True)


def test_a_restoration_asks_first_and_sends_the_file_as_it_is(fairwater: Run, server: Server, tmp_path: Path) -> None:
    source = tmp_path / "now.backup"
    source.write_bytes(bytes(range(256)) * 4000)
    unasked = fairwater("admin", "restore", str(source))
    assert (unasked.exit_code, server.copies.restored) == (2, None)
    assert "Replace everything in the database" in unasked.stderr
    assert fairwater("admin", "restore", str(source), "--yes").exit_code == 0
    assert server.copies.restored == source.read_bytes()
    done = fairwater("admin", "restore", "-", "--yes", "--json", input=b"from a pipe")
    assert json.loads(done.stdout) == {"restored": {"users": 1}, "warning": None, "unknown": []}
    assert server.copies.restored == b"from a pipe"
    server.copies.unknown = (WorkspaceId("abcdefghjkmn"),)
    told = fairwater("admin", "restore", str(source), "--yes")
    assert told.exit_code == 0
    assert "1 workspaces run" in told.stderr
    assert "abcdefghjkmn" in told.stderr
    assert fairwater("admin", "restore", str(tmp_path / "none"), "--yes").exit_code == 1


def test_keys_are_rotated_when_it_is_confirmed(fairwater: Run) -> None:
    fairwater("variable", "set", "A=b")
    assert fairwater("admin", "rotate-keys").exit_code == 2
    assert fairwater("admin", "rotate-keys", "--yes").stdout.startswith("1 secrets are sealed anew")


def test_the_shell_is_offered_hosts_and_names(fairwater: Run, server: Server) -> None:
    class Context:
        params: dict[str, Any] = {"data_dir": server.data_dir}  # noqa: RUF012 - as Typer's

    fairwater("credential", "add", "git.example", input=SECRET)
    fairwater("variable", "set", "GREETING=hi")
    assert completion.credentials(Context(), [], "git") == [("git.example", "token")]
    assert completion.variables(Context(), [], "GRE") == [("GREETING", "")]
    assert completion.variables(Context(), [], "X") == []


@pytest.mark.parametrize("name", ["1st", "a-b", "", "a" * 129])
def test_a_variable_of_an_impossible_name_is_wrong_use(fairwater: Run, name: str) -> None:
    done = fairwater("variable", "set", f"{name}=x")
    assert done.exit_code == 2
    assert "no name of a variable" in done.output
    assert json.loads(fairwater("variable", "list", "--json").stdout) == []


def test_a_credential_for_what_is_no_host_is_refused_before_its_secret_is_asked_for(fairwater: Run) -> None:
    done = fairwater("credential", "add", "no host", input="")
    assert (done.exit_code, "is not a host" in done.output) == (1, True)
