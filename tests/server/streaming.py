"""A client of answers that do not end by themselves, speaking ASGI directly: httpx's transport waits for their end."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

from starlette.types import ASGIApp, Message

BOUND_S = 10.0


@dataclass
class Frame:
    kind: str
    data: dict[str, Any]
    id: int | None = None


@dataclass
class Listener:
    """Reads what comes, and leaves at the end of the block. Every wait is bounded."""

    app: ASGIApp
    path: str
    token: str | None
    query: str = ""
    headers: dict[str, str] = field(default_factory=dict)
    method: str = "GET"
    body: bytes = b""
    scope: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._messages: asyncio.Queue[Message] = asyncio.Queue()
        self._left = asyncio.Event()
        self._pending = b""
        self._sent = False

    async def __aenter__(self) -> Listener:
        self._serving = asyncio.create_task(self._serve())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._left.set()
        await asyncio.wait_for(self._serving, BOUND_S)

    async def status(self) -> int:
        message = await asyncio.wait_for(self._messages.get(), BOUND_S)
        assert message["type"] == "http.response.start"
        return int(message["status"])

    async def chunk(self) -> bytes:
        """The next bytes; empty at the end."""
        message = await asyncio.wait_for(self._messages.get(), BOUND_S)
        return bytes(message.get("body", b"")) if message["type"] == "http.response.body" else await self.chunk()

    async def text(self) -> str:
        """The next server-sent message, as it stands."""
        while b"\n\n" not in self._pending:
            chunk = await self.chunk()
            if not chunk:
                raise EOFError
            self._pending += chunk
        text, _, self._pending = self._pending.partition(b"\n\n")
        return text.decode()

    async def frame(self) -> Frame:
        """The next event; comments are passed over."""
        while True:
            text = await self.text()
            fields = dict(line.split(": ", 1) for line in text.splitlines() if not line.startswith(":"))
            if "event" in fields:
                number = int(fields["id"]) if "id" in fields else None
                return Frame(fields["event"], json.loads(fields["data"]), number)

    async def ended(self) -> None:
        await asyncio.wait_for(asyncio.shield(self._serving), BOUND_S)

    async def _serve(self) -> None:
        headers = {"host": "server"} | self.headers
        if self.token:
            headers["authorization"] = f"Bearer {self.token}"
        scope = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": "1.1",
            "method": self.method,
            "scheme": "http",
            "path": self.path,
            "raw_path": self.path.encode(),
            "query_string": self.query.encode(),
            "root_path": "",
            "headers": [(name.lower().encode(), value.encode()) for name, value in headers.items()],
            "client": None,
            "server": ("server", 80),
        } | self.scope
        await self.app(scope, self._receive, self._messages.put)

    async def _receive(self) -> Message:
        if not self._sent:
            self._sent = True
            return {"type": "http.request", "body": self.body, "more_body": False}
        await self._left.wait()
        return {"type": "http.disconnect"}
