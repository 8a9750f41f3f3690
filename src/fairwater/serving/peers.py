"""Who is at the other end of a unix socket, and the bounds of what a connection may send before it is understood.

The kernel tells the uid of the process that connected (SO_PEERCRED, unix(7)); it stands in every ASGI scope as
`scope["fairwater.peer_uid"]`. It is absent on TCP, and no header can set it. Decides which peers are let in; refuses
to know what they may do.

Beside it, every scope carries `scope["fairwater.stopping"]`, an event set when the server begins to stop, so that
endless answers can end in order; and a WebSocket's scope `scope["fairwater.left"]`, an event set when its client is
gone, also while nothing is being received.
"""

from __future__ import annotations

import asyncio
import functools
import socket
import struct
from typing import Any

from starlette.types import ASGIApp, Receive, Scope, Send
from starlette.websockets import WebSocket
from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from uvicorn.server import ServerState

from fairwater.serving.problems import problem

PEER_UID = "fairwater.peer_uid"
STOPPING = "fairwater.stopping"
LEFT = "fairwater.left"

HEAD_BYTES_MAX = 64 * 1024
"""The request line and all headers together; httptools itself has no bound."""
HEAD_S_MAX = 20.0
"""How long a request's head may take from the connection, or from its first byte."""
_UCRED = struct.Struct("3i")
_HEAD_TOO_LARGE = (
    b"HTTP/1.1 431 Request Header Fields Too Large\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
)  # fmt: skip


def peer_uid(transport: asyncio.BaseTransport) -> int | None:
    """The uid of the process at the other end as it was when it connected; None where that is not a unix socket."""
    connection = transport.get_extra_info("socket")
    if connection is None or connection.family != socket.AF_UNIX:
        return None
    _, uid, _ = _UCRED.unpack(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size))
    return int(uid)


class _Introduced:
    """The app, as one connection sees it: with what is known of its peer in every scope."""

    def __init__(self, app: ASGIApp, facts: dict[str, Any], *, welcome: bool) -> None:
        self._app = app
        self._facts = facts
        self._welcome = welcome

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        scope.update(self._facts)
        if self._welcome:
            await self._app(scope, receive, send)
            return
        refusal = problem(403, "peer_refused", "This socket is not for your user.")
        if scope["type"] == "websocket":
            await WebSocket(scope, receive, send).send_denial_response(refusal)
        else:
            await refusal(scope, receive, send)


def _introduce(
    app: ASGIApp,
    transport: asyncio.BaseTransport,
    allowed_uids: frozenset[int] | None,
    facts: dict[str, Any],
) -> _Introduced:
    uid = peer_uid(transport)
    if uid is not None:
        facts[PEER_UID] = uid
    return _Introduced(app, facts, welcome=uid is None or allowed_uids is None or uid in allowed_uids)


class PeerHttpProtocol(HttpToolsProtocol):
    """HTTP/1.1 of one connection, with its peer's uid and a bound on the size and the time of a request's head."""

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
        *,
        allowed_uids: frozenset[int] | None,
        stopping: asyncio.Event,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self._allowed_uids = allowed_uids
        self._stopping = stopping
        self._in_head = True
        self._head_bytes = 0
        self._head_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        facts = {STOPPING: self._stopping}
        self.app = _introduce(self.config.loaded_app, transport, self._allowed_uids, facts)
        self._await_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._head_done()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._in_head:
            if self._head_timer is None:
                self._await_head()
            # A body that comes with its head in one read is counted too; reads are at most 256 KiB, so only a head
            # still open after the parser has seen the bytes is judged.
            self._head_bytes += len(data)
        super().data_received(data)
        if self._in_head and self._head_bytes > HEAD_BYTES_MAX and not self.transport.is_closing():
            self._head_done()
            self.transport.write(_HEAD_TOO_LARGE)
            self.transport.close()

    def on_message_begin(self) -> None:
        self._in_head = True
        self._head_bytes = 0
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        self._in_head = False
        self._head_done()
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        super().on_message_complete()
        self._in_head = True
        self._head_bytes = 0

    def handle_websocket_upgrade(self) -> None:
        self._head_done()
        super().handle_websocket_upgrade()

    def _await_head(self) -> None:
        self._head_timer = self.loop.call_later(HEAD_S_MAX, self._head_overdue)

    def _head_done(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _head_overdue(self) -> None:
        self._head_timer = None
        if not self.transport.is_closing():
            self.transport.close()


class PeerWebSocketProtocol(WebSocketsSansIOProtocol):
    """A WebSocket with its peer's uid, and an event for the moment in which its client is gone."""

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
        *,
        allowed_uids: frozenset[int] | None,
        stopping: asyncio.Event,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self._allowed_uids = allowed_uids
        self._stopping = stopping
        self._left = asyncio.Event()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        facts = {STOPPING: self._stopping, LEFT: self._left}
        self.app = _introduce(self.config.loaded_app, transport, self._allowed_uids, facts)

    def connection_lost(self, exc: Exception | None) -> None:
        self._left.set()
        super().connection_lost(exc)


def peer_protocols(
    allowed_uids: frozenset[int] | None, stopping: asyncio.Event
) -> tuple[functools.partial[PeerHttpProtocol], functools.partial[PeerWebSocketProtocol]]:
    """What makes the protocols of each connection, for uvicorn's `http` and `ws`."""
    known = {"allowed_uids": allowed_uids, "stopping": stopping}
    return functools.partial(PeerHttpProtocol, **known), functools.partial(PeerWebSocketProtocol, **known)  # type: ignore[arg-type]
