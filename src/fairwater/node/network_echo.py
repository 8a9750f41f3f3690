"""Sends back what it receives, over TCP and UDP: what the probe of a workspace's network talks to.

One thread serves all listeners. Only slots being probed can reach it (the rules see to that), and still everything
is bounded: connections, their idle time, and what is kept for them (nothing). Knows nothing of slots.
"""

from __future__ import annotations

import contextlib
import selectors
import socket
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass

CONNECTIONS_MAX = 256
IDLE_S_MAX = 5.0
_CHUNK = 1 << 17
IP_MTU_DISCOVER, IP_PMTUDISC_DO = 10, 2
_PORT_ATTEMPTS = 20


@dataclass(frozen=True, slots=True)
class Listeners:
    """A TCP and a UDP socket on the same address and port."""

    tcp: socket.socket
    udp: socket.socket

    @property
    def port(self) -> int:
        port: int = self.tcp.getsockname()[1]
        return port

    def close(self) -> None:
        self.tcp.close()
        self.udp.close()


def listen(address: str, port: int = 0) -> Listeners:
    """Listeners in the calling thread's network namespace; port 0 is any that is free for both. Raises OSError."""
    for attempt in range(_PORT_ATTEMPTS):
        tcp = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        try:
            tcp.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            tcp.bind((address, port))
            udp.bind((address, tcp.getsockname()[1]))
            # Answers must not be cut into fragments: a path too narrow for them shows by their absence.
            udp.setsockopt(socket.IPPROTO_IP, IP_MTU_DISCOVER, IP_PMTUDISC_DO)
            tcp.listen(CONNECTIONS_MAX)
            tcp.setblocking(False)
            udp.setblocking(False)
        except OSError:
            tcp.close()
            udp.close()
            if port or attempt == _PORT_ATTEMPTS - 1:
                raise
        else:
            return Listeners(tcp, udp)
    raise AssertionError("unreachable: the last attempt returns or raises")


class EchoServer:
    """Serves the listeners in a thread of its own until `close`, which closes them too."""

    def __init__(self, listeners: Sequence[Listeners]) -> None:
        self._listeners = tuple(listeners)
        self._selector = selectors.DefaultSelector()
        self._wake, self._woken = socket.socketpair()
        self._connections: dict[socket.socket, float] = {}
        for one in self._listeners:
            self._selector.register(one.tcp, selectors.EVENT_READ, self._accept)
            self._selector.register(one.udp, selectors.EVENT_READ, self._echo_datagram)
        self._selector.register(self._woken, selectors.EVENT_READ)
        self._thread = threading.Thread(target=self._serve, name="network-echo", daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._wake.close()
        self._thread.join()

    def _serve(self) -> None:
        while True:
            for key, _ in self._selector.select(IDLE_S_MAX if self._connections else None):
                if key.fileobj is self._woken:
                    self._close_all()
                    return
                # A socket's trouble (a reset, a datagram too large to go back) is its own: the probe sees no answer.
                with contextlib.suppress(OSError):
                    key.data(key.fileobj)
            self._drop_idle()

    def _accept(self, listener: socket.socket) -> None:
        connection, _ = listener.accept()
        if len(self._connections) >= CONNECTIONS_MAX:
            connection.close()
            return
        connection.setblocking(False)
        self._connections[connection] = time.monotonic()
        self._selector.register(connection, selectors.EVENT_READ, self._echo_stream)

    def _echo_stream(self, connection: socket.socket) -> None:
        try:
            data = connection.recv(_CHUNK)
            # Nothing is kept for a connection that does not read: what does not fit ends it.
            finished = not data or connection.send(data) < len(data)
        except BlockingIOError:
            return
        except OSError:
            finished = True
        if finished:
            self._drop(connection)
        else:
            self._connections[connection] = time.monotonic()

    def _echo_datagram(self, listener: socket.socket) -> None:
        data, sender = listener.recvfrom(_CHUNK)
        listener.sendto(data, sender)

    def _drop(self, connection: socket.socket) -> None:
        self._selector.unregister(connection)
        del self._connections[connection]
        connection.close()

    def _drop_idle(self) -> None:
        oldest = time.monotonic() - IDLE_S_MAX
        for connection in [one for one, since in self._connections.items() if since < oldest]:
            self._drop(connection)

    def _close_all(self) -> None:
        self._selector.close()
        for one in self._listeners:
            one.close()
        for connection in self._connections:
            connection.close()
        self._woken.close()
