"""Registries for tests: Debian's docker-registry on an address of this machine, and a small one that lies or stalls."""

from __future__ import annotations

import base64
import contextlib
import http.client
import http.server
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from tests.servers.oci import INDEX, MANIFEST, Image, digest_of, index

USER, PASSWORD = "ann", "s3cret-of-ann"
SECOND_USER = "bob"
"""With the same password."""
_BY_BCRYPT = "$2b$05$abcdefghijklmnopqrstuubGIO2GYAzsTYkWDBylJZ1TngL2ovaZy"
WITHIN_S = 15.0


@dataclass
class Registry:
    """`host` is `ADDRESS:PORT`."""

    host: str
    log: Path
    password: str | None = None

    def let_in(self, *users: str) -> None:
        """From now on these users, and nobody else; of a registry that is closed."""
        aside = self.log.with_name("htpasswd.new")
        aside.write_text("".join(f"{user}:{_BY_BCRYPT}\n" for user in users))
        aside.replace(self.log.with_name("htpasswd"))

    def requests(self) -> int:
        """How many requests it has answered so far."""
        return self.log.read_text(errors="replace").count("response completed")

    def push(self, name: str, *images: Image) -> str:
        """Puts the image there as `REPOSITORY:TAG`, several as an index of platforms; returns the reference."""
        repository, _, tag = name.partition(":")
        for image in images:
            for digest, content in image.blobs().items():
                if digest != image.digest:
                    self._put_blob(repository, digest, content)
            self._put_manifest(repository, tag if len(images) == 1 else image.digest, image.manifest, MANIFEST)
        if len(images) > 1:
            self._put_manifest(repository, tag, index(*images), INDEX)
        return f"{self.host}/{name}"

    def _put_blob(self, repository: str, digest: str, content: bytes) -> None:
        status, headers = self._ask("POST", f"/v2/{repository}/blobs/uploads/")
        assert status == 202, status
        place = urlsplit(headers["location"])
        where = f"{place.path}?{place.query}&digest={digest}" if place.query else f"{place.path}?digest={digest}"
        status, _ = self._ask("PUT", where, content, "application/octet-stream")
        assert status == 201, status

    def _put_manifest(self, repository: str, tag: str, content: bytes, media_type: str) -> None:
        status, _ = self._ask("PUT", f"/v2/{repository}/manifests/{tag}", content, media_type)
        assert status == 201, status

    def _ask(self, method: str, path: str, body: bytes = b"", kind: str = "") -> tuple[int, dict[str, str]]:
        connection = http.client.HTTPConnection(self.host, timeout=30)
        headers = {"Content-Length": str(len(body))} | ({"Content-Type": kind} if kind else {})
        if self.password is not None:
            word = base64.b64encode(f"{USER}:{self.password}".encode()).decode()
            headers["Authorization"] = f"Basic {word}"
        try:
            connection.request(method, path, body, headers)
            response = connection.getresponse()
            response.read()
            return response.status, {name.lower(): value for name, value in response.getheaders()}
        finally:
            connection.close()


@contextlib.contextmanager
def docker_registry(address: str, port: int, *, closed: bool = False) -> Iterator[Registry]:
    """Where it is `closed`, it asks for `USER` or `SECOND_USER`, and `PASSWORD`."""
    with tempfile.TemporaryDirectory(prefix="fw-registry-", dir="/var/tmp") as place:
        folder = Path(place)
        auth = ""
        if closed:
            Registry("", folder / "log").let_in(USER, SECOND_USER)
            auth = f"auth:\n  htpasswd:\n    realm: tests\n    path: {folder}/htpasswd\n"
        (folder / "config.yml").write_text(
            f"version: 0.1\nlog:\n  level: info\nstorage:\n  filesystem:\n    rootdirectory: {folder}/data\n"
            f"  delete:\n    enabled: true\nhttp:\n  addr: {address}:{port}\n{auth}"
        )
        log = folder / "log"
        with open(log, "wb") as output:
            process = subprocess.Popen(
                ("docker-registry", "serve", str(folder / "config.yml")), stdout=output, stderr=output
            )
        try:
            _until_it_answers(f"{address}:{port}", process, log)
            yield Registry(f"{address}:{port}", log, PASSWORD if closed else None)
        finally:
            process.terminate()
            process.wait(10)


def _until_it_answers(host: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + WITHIN_S
    while True:
        connection = http.client.HTTPConnection(host, timeout=2)
        try:
            connection.request("GET", "/v2/")
            if connection.getresponse().status in {200, 401}:
                return
        except OSError:
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"the registry did not come up:\n{log.read_text()}") from None
            time.sleep(0.02)
        finally:
            connection.close()


Answer = Callable[[http.server.BaseHTTPRequestHandler, str, bytes], None]
"""Answers a request for a path whose right content is given; nothing sent is a registry that says nothing."""


def honestly(handler: http.server.BaseHTTPRequestHandler, kind: str, content: bytes) -> None:
    handler.send_response(200)
    handler.send_header("Content-Type", kind)
    handler.send_header("Content-Length", str(len(content)))
    if kind in {MANIFEST, INDEX}:
        handler.send_header("Docker-Content-Digest", digest_of(content))
    handler.end_headers()
    if handler.command != "HEAD":
        handler.wfile.write(content)


@contextlib.contextmanager
def small_registry(
    address: str, port: int, image: Image, *, manifest: Answer = honestly, blob: Answer = honestly
) -> Iterator[str]:
    """Serves one image, under every name, by `manifest` and `blob`; yields its host. Ends with whatever still hangs."""
    over = threading.Event()

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            pass

        def do_GET(self) -> None:
            self.over = over
            path = urlsplit(self.path).path
            wanted = path.rpartition("/")[2]
            with contextlib.suppress(OSError):
                if path == "/v2/":
                    honestly(self, "application/json", b"{}")
                elif "/manifests/" in path:
                    manifest(self, MANIFEST, image.manifest)
                elif wanted in image.blobs():
                    blob(self, "application/octet-stream", image.blobs()[wanted])
                else:
                    self.send_error(404)

        do_HEAD = do_GET  # noqa: N815 - as http.server wants it

    server = http.server.ThreadingHTTPServer((address, port), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"{address}:{port}"
    finally:
        over.set()
        server.shutdown()
        server.server_close()
        thread.join()


def half_and_then_nothing(handler: http.server.BaseHTTPRequestHandler, kind: str, content: bytes) -> None:
    handler.send_response(200)
    handler.send_header("Content-Type", kind)
    handler.send_header("Content-Length", str(len(content)))
    handler.end_headers()
    handler.wfile.write(content[: len(content) // 2])
    handler.wfile.flush()
    handler.over.wait(60)  # type: ignore[attr-defined]


def something_else(handler: http.server.BaseHTTPRequestHandler, kind: str, content: bytes) -> None:
    honestly(handler, kind, content[:-1] + bytes([content[-1] ^ 1]))


def refuse_layers(image: Image) -> Answer:
    """Serves the configuration, and of the layers says that they are not there."""
    layers = {layer.packed for layer in image.layers}

    def answer(handler: http.server.BaseHTTPRequestHandler, kind: str, content: bytes) -> None:
        if content in layers:
            handler.send_error(404)
        else:
            honestly(handler, kind, content)

    return answer


@contextlib.contextmanager
def counting_registry(address: str, port: int, image: Image) -> Iterator[tuple[str, list[str]]]:
    """Yields its host, and the digests of the blobs that it has served."""
    served: list[str] = []

    def count(handler: http.server.BaseHTTPRequestHandler, kind: str, content: bytes) -> None:
        if handler.command == "GET":
            served.append(digest_of(content))
        honestly(handler, kind, content)

    with small_registry(address, port, image, blob=count) as host:
        yield host, served
