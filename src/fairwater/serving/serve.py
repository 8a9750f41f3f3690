"""Serves one app on a unix socket and on TCP, in one event loop, until told to stop.

Decides how connections are taken, bounded and ended; refuses to know what the app does, and leaves signals to its
caller. Headers that speak for somebody else (`X-Forwarded-*`) are never believed.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import Callable, Generator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import structlog
from starlette.types import ASGIApp
from uvicorn import Config, Server

from fairwater.domain.failure import Permanent
from fairwater.serving.logs import quieten_uvicorn
from fairwater.serving.peers import peer_protocols
from fairwater.serving.sockets import bind_tcp, bind_unix, remove_unix

WEBSOCKET_MESSAGE_BYTES_MAX = 1024 * 1024
_DATE_REFRESH_S = 1.0
_log = structlog.get_logger("fairwater.serving")


@dataclass(frozen=True, slots=True)
class Limits:
    """What connections may take. A `pong_s` of None asks for no answer to a ping: then a ping only finds out whether
    the other end is still there, which is right where the kernel knows (unix sockets)."""

    connections: int = 2048
    keep_alive_s: int = 75
    grace_s: int = 5
    ping_s: float = 20.0
    pong_s: float | None = 20.0


LOCAL = Limits(ping_s=2.0, pong_s=None)
"""For an app that is served on a unix socket alone. While a client is kept from sending more, only a ping finds out
that it is gone."""


@dataclass(frozen=True, slots=True)
class Listening:
    """Where the app can be reached: `tcp` with the port that was really taken."""

    unix_socket: Path | None
    tcp: tuple[str, int] | None


async def serve(
    app: ASGIApp,
    *,
    unix_socket: Path | None = None,
    tcp: tuple[str, int] | None = None,
    allowed_uids: frozenset[int] | None = None,
    stop: asyncio.Event,
    ready: Callable[[Listening], None] | None = None,
    socket_mode: int = 0o600,
    socket_owner: tuple[int, int] | None = None,
    limits: Limits = Limits(),
) -> None:
    """Serves `app` until `stop` is set, then lets answers under way end for `limits.grace_s` seconds.

    Peers of the unix socket whose uid is not in `allowed_uids` get 403; None lets everyone in who can open the file.
    `ready` is called once connections are taken. The socket file is removed at the end.

    Raises:
        Permanent: `already_running`, `socket_path`, `port_in_use`, `bad_listen_address`; `app_start` if the app's
            own start fails.
    """
    if unix_socket is None and tcp is None:
        raise ValueError("nothing to listen on")
    with contextlib.ExitStack() as sockets:
        local = network = None
        if unix_socket is not None:
            local = bind_unix(unix_socket, mode=socket_mode, owner=socket_owner)
            found = os.lstat(unix_socket)
            sockets.callback(remove_unix, local, unix_socket, (found.st_dev, found.st_ino))
        listening = Listening(unix_socket, None)
        if tcp is not None:
            network = sockets.enter_context(bind_tcp(*tcp))
            listening = Listening(unix_socket, (tcp[0], network.getsockname()[1]))
        server = _Server(_config(app, allowed_uids, stop, limits), local, network, stop)
        serving = asyncio.ensure_future(server.serve())
        try:
            started = asyncio.ensure_future(server.listening.wait())
            await asyncio.wait({serving, started}, return_when=asyncio.FIRST_COMPLETED)
            started.cancel()
            if not serving.done() and ready is not None:
                ready(listening)
            await asyncio.shield(serving)
        except asyncio.CancelledError:
            stop.set()
            await serving
            raise


def _config(app: ASGIApp, allowed_uids: frozenset[int] | None, stop: asyncio.Event, limits: Limits) -> Config:
    http, websocket = peer_protocols(allowed_uids, stop)
    quieten_uvicorn()
    return Config(
        app,
        http=http,  # type: ignore[arg-type]  # uvicorn calls it, be it a class or not
        ws=websocket,  # type: ignore[arg-type]
        ws_max_size=WEBSOCKET_MESSAGE_BYTES_MAX,
        ws_ping_interval=limits.ping_s,
        ws_ping_timeout=limits.pong_s,
        ws_per_message_deflate=False,
        loop="none",
        interface="asgi3",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        limit_concurrency=limits.connections,
        timeout_keep_alive=limits.keep_alive_s,
        timeout_graceful_shutdown=limits.grace_s,
    )


class _Server(Server):
    """uvicorn's server with its own sockets, an event in place of signals, and no polling."""

    def __init__(
        self, config: Config, local: socket.socket | None, network: socket.socket | None, stop: asyncio.Event
    ) -> None:
        super().__init__(config)
        self._local = local
        self._network = network
        self._stop = stop
        self.listening = asyncio.Event()

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await self.lifespan.startup()
        if self.lifespan.should_exit:
            raise Permanent("the app could not start; its log says why", code="app_start")
        loop = asyncio.get_running_loop()
        self.servers = []
        await self.on_tick(0)
        if self._local is not None:
            self.servers.append(await loop.create_unix_server(self._protocol, sock=self._local))
        if self._network is not None:
            self.servers.append(await loop.create_server(self._protocol, sock=self._network))
        self.started = True
        self.listening.set()

    async def main_loop(self) -> None:
        while not self._stop.is_set():
            await self.on_tick(0)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stop.wait(), _DATE_REFRESH_S)

    def _protocol(self) -> asyncio.Protocol:
        make: Any = self.config.http_protocol_class
        protocol: asyncio.Protocol = make(
            config=self.config, server_state=self.server_state, app_state=self.lifespan.state
        )
        return protocol
