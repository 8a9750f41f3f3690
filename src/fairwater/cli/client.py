"""The server's API as the command line speaks it: requests, pages, events, and failures in plain words.

Decides what an answer that is no success means for the person: `Permanent` (it will not go through again unchanged) or
`Temporary` (not now). Refuses to know what is shown, and how.
"""

from __future__ import annotations

import socket
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Any

import httpx2

from fairwater.cli.connection import Target
from fairwater.cli.problem import LostConnection, failure_of
from fairwater.domain.failure import Permanent, Temporary

PREFIX = "/api/v1"
_PAGES_MAX = 500
_SILENCE_S = 40.0
"""The server sends a sign of life every 15 s on a stream; after this long without any, the connection is lost."""


@dataclass(frozen=True, slots=True)
class StreamEvent:
    """One server-sent event: `kind` is `workspace`, which has a sequence number, or `progress`, which has none."""

    kind: str
    data: dict[str, Any]


class Client:
    """One connection to `target`; every method raises `Permanent` or `Temporary`."""

    def __init__(self, target: Target, *, timeout_s: float = 30.0) -> None:
        self.target = target
        headers = {"Authorization": f"Bearer {target.token}"} if target.token else {}
        path = target.socket
        if path is not None:
            knock(target)
        self._http = httpx2.Client(
            base_url=target.url,
            headers=headers,
            timeout=httpx2.Timeout(timeout_s, connect=min(5.0, timeout_s)),
            transport=httpx2.HTTPTransport(uds=str(path)) if path else None,
            trust_env=path is None,
        )

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._http.close()

    def get(self, path: str, **params: Any) -> Any:
        return self._json("GET", path, params=_given(params))

    def readiness(self) -> dict[str, Any]:
        """What `/readyz` says: `ready`, and the reason of each part; not being ready is an answer, no failure."""
        with self._spoken():
            response = self._http.get("/readyz")
            try:
                answer = response.json()
            except ValueError:
                answer = {}
        reasons = answer if isinstance(answer, dict) else {}
        return {**reasons, "ready": response.is_success}

    def items(self, path: str, **params: Any) -> list[dict[str, Any]]:
        """Every item of a list, page after page."""
        found: list[dict[str, Any]] = []
        cursor: str | None = None
        for _ in range(_PAGES_MAX):
            page = self.get(path, limit=200, cursor=cursor, **params)
            found.extend(page["items"])
            cursor = page.get("next")
            if not cursor:
                return found
        raise Permanent(f"{path} has more than {len(found)} items: narrow the list down", code="too_many_items")

    def post(self, path: str, body: dict[str, Any] | None = None) -> Any:
        """Posts `body` under a key of its own, so that it takes effect once even where the answer is lost."""
        headers = {"Idempotency-Key": str(uuid.uuid4())}
        try:
            return self._json("POST", path, json=body or {}, headers=headers)
        except LostConnection:
            return self._json("POST", path, json=body or {}, headers=headers)

    def patch(self, path: str, body: dict[str, Any]) -> Any:
        return self._json("PATCH", path, json=body)

    def put(self, path: str, body: dict[str, Any]) -> Any:
        return self._json("PUT", path, json=body)

    def delete(self, path: str) -> Any:
        return self._json("DELETE", path)

    def put_file(self, path: str, source: IO[bytes]) -> Any:
        """Sends what `source` has, a piece at a time, however long it takes."""
        timeout = httpx2.Timeout(_SILENCE_S, connect=5.0, read=None)
        return self._json("PUT", path, content=iter(lambda: source.read(1 << 18), b""), timeout=timeout)

    def post_stream(self, path: str, pieces: Iterator[bytes], **params: Any) -> Any:
        """Posts `pieces` as they come, and waits for the answer however long it takes."""
        timeout = httpx2.Timeout(_SILENCE_S, connect=5.0, read=None)
        headers = {"Content-Type": "application/octet-stream"}
        return self._json("POST", path, params=_given(params), content=pieces, headers=headers, timeout=timeout)

    @contextmanager
    def stream(self, path: str, *, silence_s: float | None = None, **params: Any) -> Iterator[httpx2.Response]:
        """The answer to a GET, to be read as it comes; `silence_s` None waits for as long as it takes."""
        timeout = httpx2.Timeout(silence_s, connect=5.0, write=30.0, pool=5.0)
        with (
            self._spoken(),
            self._http.stream("GET", PREFIX + path, params=_given(params), timeout=timeout) as response,
        ):
            if response.is_error:
                response.read()
            check(response)
            yield response

    def events(self, path: str, after: int | None = None, silence_s: float = _SILENCE_S) -> Iterator[StreamEvent]:
        """Events as they come, until the server ends the stream. Raises Temporary after `silence_s` without a sign."""
        with self.stream(path, silence_s=silence_s, after=after) as response:
            yield StreamEvent("open", {})
            for event in httpx2.EventSource(response):
                if not event.data:
                    continue  # a bare `retry:` is no event
                try:
                    data = event.json()
                except ValueError:
                    raise Permanent(f"{self.target} did not answer as Fairwater does", code="not_fairwater") from None
                if isinstance(data, dict):
                    yield StreamEvent(event.event, data)

    def _json(self, method: str, path: str, **options: Any) -> Any:
        with self._spoken():
            response = self._http.request(method, PREFIX + path, **options)
            check(response)
            if not response.content:
                return None
            try:
                return response.json()
            except ValueError:
                raise Permanent(f"{self.target} did not answer as Fairwater does", code="not_fairwater") from None

    @contextmanager
    def _spoken(self) -> Iterator[None]:
        """Puts what can go wrong on the way into words."""
        try:
            yield
        except (httpx2.ConnectError, httpx2.ConnectTimeout) as error:
            raise unreachable(self.target, str(error)) from None
        except httpx2.TimeoutException:
            raise Temporary(f"{self.target} did not answer in time", code="timeout") from None
        except httpx2.TransportError as error:
            raise LostConnection(f"the connection to {self.target} was lost: {error}", code="connection_lost") from None


def knock(target: Target) -> None:
    """Raises where nobody listens at the target's unix socket; httpcore would leave its own socket open then."""
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(str(target.socket))
        except OSError as error:
            raise unreachable(target, error.strerror or str(error)) from None


def unreachable(target: Target, why: str) -> Permanent:
    """There is no server at `target`: says how to start it, or how to name another."""
    if target.socket is not None and not _visible(target.socket):
        what = f"no Fairwater runs on this machine ({target.socket} is not there)"
    elif target.socket is not None and "Permission" in why:
        what = f"{target.socket} may not be opened by this user"
    else:
        what = f"no Fairwater answers at {target} ({why})"
    return Permanent(
        f"{what}. Start it with: fairwater up. Or name a server with --server URL, FAIRWATER_URL or fairwater login.",
        code="server_unreachable",
    )


def _visible(path: Path) -> bool:
    try:
        return path.exists()
    except PermissionError:
        return True


def check(response: httpx2.Response) -> None:
    """Raises what the problem details of an answer mean."""
    if response.is_success:
        return
    try:
        problem = response.json()
    except ValueError:
        problem = {}
    raise failure_of(response.status_code, problem if isinstance(problem, dict) else {})


def _given(params: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in params.items() if value is not None}
