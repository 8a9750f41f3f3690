"""git itself in a workspace, with the helper, against a server that asks for a password."""

from __future__ import annotations

import asyncio
import base64
import http.server
import ssl
import subprocess
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from .conftest import SECRET, WORKSPACE, Served, token

pytestmark = pytest.mark.root

WANTED = "Basic " + base64.b64encode(f"person:{SECRET}".encode()).decode()


@dataclass
class GitServer:
    """A repository over plain http or TLS, for whoever has the password. `look` is called while git is at it."""

    port: int
    scheme: str = "http"
    asked: list[str | None] = field(default_factory=list)
    look: Callable[[], None] = lambda: None

    @property
    def host(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def url(self) -> str:
        return f"{self.scheme}://{self.host}/repo.git"


class Handler(http.server.SimpleHTTPRequestHandler):
    server: Any

    def do_GET(self) -> None:
        state: GitServer = self.server.state
        given = self.headers.get("Authorization")
        state.asked.append(given)
        if given != WANTED:
            self.send_response(401)
            self.send_header("WWW-Authenticate", 'Basic realm="test"')
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        state.look()
        super().do_GET()

    def log_message(self, format: str, *arguments: object) -> None:
        del format, arguments


@pytest.fixture(scope="session")
def repositories(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("repositories")
    script = (
        "git init -q work && cd work && git -c user.name=a -c user.email=a@b commit -q --allow-empty -m first && "
        "git clone -q --bare . ../repo.git && git -C ../repo.git update-server-info"
    )
    subprocess.run(["sh", "-c", script], cwd=folder, check=True)
    return folder


def serve(folder: Path, context: ssl.SSLContext | None = None) -> Iterator[GitServer]:
    server: Any = http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(folder)))
    if context is not None:
        server.socket = context.wrap_socket(server.socket, server_side=True)
    server.state = GitServer(server.server_port, "https" if context else "http")
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield server.state
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def git_server(repositories: Path) -> Iterator[GitServer]:
    yield from serve(repositories)


@pytest.fixture
def tls_server(repositories: Path, tmp_path: Path, served: Served) -> Iterator[GitServer]:
    names = ("-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1")
    files = ("-keyout", "key.pem", "-out", "cert.pem")
    command = ("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", *names, *files)
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "cert.pem", tmp_path / "key.pem")
    authority = served.home / "authority.pem"
    authority.write_bytes((tmp_path / "cert.pem").read_bytes())
    authority.chmod(0o644)
    served.extra["GIT_SSL_CAINFO"] = str(authority)
    yield from serve(repositories, context)


async def test_git_gets_in_by_tls(served: Served, tls_server: GitServer) -> None:
    served.give(token("elsewhere.example.org", secret="other"), token(tls_server.host))
    status, out, err = await served.run("git", "ls-remote", tls_server.url)
    assert (status, err) == (0, "")
    assert "refs/heads/master" in out
    assert set(tls_server.asked) == {None, WANTED}


async def test_git_gets_in_without_tls_only_where_the_person_said_so(served: Served, git_server: GitServer) -> None:
    served.give(token(git_server.host))
    status, _, err = await served.run("git", "ls-remote", git_server.url)
    assert status != 0
    assert "could not read Username" in err
    assert set(git_server.asked) == {None}
    served.give(token(git_server.host, plain_http=True))
    assert (await served.run("git", "ls-remote", git_server.url))[0] == 0


async def test_another_hosts_credential_is_never_sent(served: Served, git_server: GitServer) -> None:
    served.give(token("127.0.0.1", plain_http=True), token(f"{git_server.host}0", plain_http=True))
    assert (await served.run("git", "ls-remote", git_server.url))[0] != 0
    assert set(git_server.asked) == {None}


async def test_the_secret_is_in_no_process_list_no_log_and_on_no_disk(
    served: Served, git_server: GitServer, home: Path
) -> None:
    """Even where the image's own configuration would have git write it down."""
    served.give(token(git_server.host, plain_http=True))
    (home / ".gitconfig").write_text("[credential]\n\thelper = store\n")
    seen: list[bool] = []

    def look() -> None:
        for process in Path("/proc").glob("[0-9]*"):
            for name in ("cmdline", "environ"):
                try:
                    content = (process / name).read_bytes()
                except OSError:
                    continue
                seen.append(SECRET.encode() in content)

    git_server.look = look
    with capture_logs() as logs:
        status, out, err = await served.run("git", "clone", git_server.url, str(home / "clone"))
    assert status == 0, err
    assert len(seen) > 10
    assert not any(seen)
    assert SECRET not in out + err + repr(logs)
    status, found, _ = await served.run("grep", "-r", SECRET[4:], str(home))
    assert (status, found) == (1, "")


async def test_for_other_hosts_the_workspaces_own_helpers_are_asked(
    served: Served, git_server: GitServer, home: Path
) -> None:
    served.give(token("git.example.org"))
    (home / ".gitconfig").write_text("[credential]\n\thelper = store\n")
    (home / ".git-credentials").write_text(f"http://person:{SECRET}@{git_server.host.replace(':', '%3a')}\n")
    (home / ".git-credentials").chmod(0o644)
    status, _, err = await served.run("git", "ls-remote", git_server.url)
    assert status == 0, err


async def test_a_credential_that_comes_later_is_used(served: Served, git_server: GitServer) -> None:
    assert (await served.run("git", "ls-remote", git_server.url))[0] != 0
    before = served.service.environment(WORKSPACE)
    served.give(token(git_server.host, plain_http=True))
    served.extra.update(before)  # as it was when the workspace was started
    assert (await served.run("git", "ls-remote", git_server.url))[0] == 0


QUESTION = b"protocol=https\nhost=git.example.org\n"


async def test_the_helper_answers_get_and_keeps_nothing(served: Served) -> None:
    served.give(token("git.example.org"))
    answer = f"username=person\npassword={SECRET}\n\n"
    assert await served.helper("get", stdin=QUESTION) == (0, answer, "")
    for action in ("store", "erase", "capability"):
        assert await served.helper(action, stdin=QUESTION + b"username=u\npassword=p\n") == (0, "", "")
    assert await served.helper("get", stdin=QUESTION) == (0, answer, "")
    assert (await served.helper(stdin=QUESTION))[0] == 2


async def test_without_the_agent_git_goes_on_and_is_told(served: Served) -> None:
    served.give(token("git.example.org"))
    await served.service.close(served.folder)
    status, out, err = await served.helper("get", stdin=QUESTION)
    assert (status, out) == (0, "")
    assert "agent does not answer" in err
    assert len(err.splitlines()) == 1
    served.extra["GIT_ASKPASS"] = "/bin/echo"
    status, out, _ = await served.run("git", "credential", "fill", stdin=QUESTION)
    assert status == 0
    assert "password=Password for" in out  # the person was asked


async def test_an_agent_that_died_in_the_middle_has_not_answered(served: Served) -> None:
    await served.service.close(served.folder)

    async def half(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.write(b"username=person\npassword=half")
        writer.close()

    server = await asyncio.start_unix_server(half, served.folder / "credential")
    (served.folder / "credential").chmod(0o666)
    async with server:
        status, out, err = await served.helper("get", stdin=QUESTION)
    assert (status, out) == (0, "")
    assert "agent does not answer" in err


async def test_a_restarted_agent_is_asked_again_where_the_old_one_was(served: Served) -> None:
    served.give(token("git.example.org"))
    await served.service.open(served.folder, WORKSPACE)
    assert (await served.helper("get", stdin=QUESTION))[1].startswith("username=person\n")


async def test_a_question_beyond_all_measure_is_none(served: Served) -> None:
    served.give(token("git.example.org"))
    status, out, err = await served.helper("get", stdin=QUESTION + b"path=" + b"x" * 20_000 + b"\n")
    assert (status, out) == (0, "")
    assert "too long" in err
