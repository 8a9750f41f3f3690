"""A git server over HTTP for tests: git's own `http-backend`, with accounts, an LFS store, and faults on demand."""

from __future__ import annotations

import base64
import gzip
import os
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from tests.servers.lfs import LfsStore

_ENVIRONMENT = {
    "PATH": os.environ["PATH"], "GIT_CONFIG_NOSYSTEM": "1", "GIT_CONFIG_GLOBAL": "/dev/null",
    "GIT_AUTHOR_NAME": "a", "GIT_AUTHOR_EMAIL": "a@b", "GIT_COMMITTER_NAME": "a", "GIT_COMMITTER_EMAIL": "a@b",
    "GIT_ALLOW_PROTOCOL": "file", "GIT_LFS_SKIP_SMUDGE": "1",
}  # fmt: skip


def git(folder: Path, *arguments: str) -> str:
    done = subprocess.run(
        ("git", "-c", "safe.directory=*", "-C", str(folder), *arguments),
        env={**_ENVIRONMENT, "HOME": str(folder)}, check=True, capture_output=True, text=True,
    )  # fmt: skip
    return done.stdout.strip()


@dataclass
class ServedRepository:
    """A bare repository, and a place to write what goes into it."""

    name: str
    bare: Path
    work: Path

    @classmethod
    def create(cls, root: Path, name: str) -> ServedRepository:
        bare, work = root / "served" / name, root / "work" / name
        bare.mkdir(parents=True)
        work.mkdir(parents=True)
        git(bare, "init", "--quiet", "--bare", "--initial-branch=main")
        git(bare, "config", "http.receivepack", "true")
        git(work, "init", "--quiet", "--initial-branch=main")
        git(work, "remote", "add", "origin", str(bare))
        served = cls(name, bare, work)
        served.commit({"README.md": "first\n"})
        return served

    def commit(self, files: dict[str, str | bytes], *, branch: str = "main") -> str:
        """Writes `files`, commits and publishes them; the commit."""
        if branch != git(self.work, "symbolic-ref", "--short", "HEAD"):
            known = git(self.work, "branch", "--list", branch)
            git(self.work, "checkout", "--quiet", *(() if known else ("-b",)), branch)
        for name, content in files.items():
            path = self.work / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content.encode() if isinstance(content, str) else content)
        git(self.work, "add", "--all")
        git(self.work, "commit", "--quiet", "--allow-empty", "--message", "more")
        git(self.work, "push", "--quiet", "origin", branch)
        return git(self.work, "rev-parse", "HEAD")

    def link(self, links: dict[str, str], gitmodules: str, *, branch: str = "main") -> str:
        """A commit with submodules: `links` from a path to a commit, written as they are, checked by nobody."""
        for path, commit in links.items():
            git(self.work, "update-index", "--add", "--cacheinfo", f"160000,{commit},{path}")
        (self.work / ".gitmodules").write_text(gitmodules)
        git(self.work, "add", ".gitmodules")
        git(self.work, "commit", "--quiet", "--message", "submodules")
        git(self.work, "push", "--quiet", "origin", branch)
        return git(self.work, "rev-parse", "HEAD")

    def hide_under(self, ref: str, commit: str) -> None:
        """Publishes a commit under a ref that is neither branch nor tag, as hosts do with pull requests."""
        git(self.work, "push", "--quiet", "origin", f"{commit}:{ref}")


def module(name: str, path: str, url: str) -> str:
    return f'[submodule "{name}"]\n\tpath = {path}\n\turl = {url}\n'


@dataclass
class GitServer:
    """`private` repositories are for `accounts` (name to password) alone. `stalled` paths are never answered."""

    root: Path
    url: str = ""
    accounts: dict[str, str] = field(default_factory=dict)
    private: set[str] = field(default_factory=set)
    stalled: set[str] = field(default_factory=set)
    lfs: LfsStore = field(default_factory=LfsStore)
    asked: list[tuple[str, str]] = field(default_factory=list)
    """Path and `Authorization` of each request."""
    waiting: threading.Event = field(default_factory=threading.Event)
    """Set when somebody waits for a stalled path."""
    released: threading.Event = field(default_factory=threading.Event)

    def repository(self, name: str) -> ServedRepository:
        return ServedRepository.create(self.root, name)

    def url_of(self, name: str) -> str:
        return f"{self.url}/{name}"

    def lets_in(self, path: str, authorization: str) -> bool:
        if not any(path.startswith(f"/{name}/") for name in self.private):
            return True
        kind, _, rest = authorization.partition(" ")
        if kind.lower() != "basic":
            return False
        name, _, password = base64.b64decode(rest).decode().partition(":")
        return self.accounts.get(name) == password


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    served: GitServer

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self._answer()

    def do_PUT(self) -> None:
        self._answer()

    def _answer(self) -> None:
        server, parts = self.served, urlsplit(self.path)
        parts = parts._replace(path=parts.path.replace(".git/", "/", 1))  # as git-lfs asks
        authorization = self.headers.get("Authorization", "")
        server.asked.append((parts.path, authorization))
        if any(parts.path.startswith(f"/{name}/") for name in server.stalled):
            server.waiting.set()
            server.released.wait(60)
            self.close_connection = True
            return
        body = self._body()
        if not server.lets_in(parts.path, authorization):
            self._reply(401, b"", {"WWW-Authenticate": 'Basic realm="git"'})
        elif "/info/lfs/" in parts.path or parts.path.startswith("/lfs-objects/"):
            self._reply(*server.lfs.answer(self.command, parts.path, body, server.url))
        else:
            self._backend(parts.path, parts.query, body)

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() == "chunked":
            body = b""
            while size := int(self.rfile.readline().split(b";")[0], 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
        else:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        return gzip.decompress(body) if self.headers.get("Content-Encoding") == "gzip" else body

    def _backend(self, path: str, query: str, body: bytes) -> None:
        environment = {
            **_ENVIRONMENT,
            "GIT_PROJECT_ROOT": str(self.served.root / "served"), "GIT_HTTP_EXPORT_ALL": "1",
            "PATH_INFO": path, "QUERY_STRING": query, "REQUEST_METHOD": self.command,
            "CONTENT_TYPE": self.headers.get("Content-Type", ""), "CONTENT_LENGTH": str(len(body)),
            "GIT_PROTOCOL": self.headers.get("Git-Protocol", ""), "REMOTE_USER": "somebody", "REMOTE_ADDR": "-",
            "GIT_CONFIG_COUNT": "2",
            "GIT_CONFIG_KEY_0": "safe.directory", "GIT_CONFIG_VALUE_0": "*",
            "GIT_CONFIG_KEY_1": "uploadpack.allowAnySHA1InWant", "GIT_CONFIG_VALUE_1": "true",
        }  # fmt: skip
        done = subprocess.run(("git", "http-backend"), env=environment, input=body, capture_output=True, check=False)
        head, _, answer = done.stdout.partition(b"\r\n\r\n")
        headers = dict(line.split(": ", 1) for line in head.decode().split("\r\n") if ": " in line)
        status = int(headers.pop("Status", "200").split()[0])
        self._reply(status, answer, headers)

    def _reply(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


@contextmanager
def git_server(root: Path, address: str) -> Iterator[GitServer]:
    """Serves repositories below `root` over HTTP at `address` for as long as the block lasts."""
    served = GitServer(root)
    handler = type("Handler", (_Handler,), {"served": served})
    listener = ThreadingHTTPServer((address, 0), handler)
    listener.daemon_threads = True
    served.url = f"http://{address}:{listener.server_address[1]}"
    thread = threading.Thread(target=listener.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield served
    finally:
        served.released.set()
        listener.shutdown()
        listener.server_close()
        thread.join()
