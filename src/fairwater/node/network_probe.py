"""Decides whether a workspace's network works, by using it: from inside its namespace, before anyone is let in.

What was configured is not believed: full-size packets that must not be fragmented go to the agent's listener on the
gateway and to the one behind the machine, which only forwarding reaches. DNS is `network_dns`.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address
from pathlib import Path

from fairwater.domain.failure import Temporary
from fairwater.node.network_echo import IP_MTU_DISCOVER, IP_PMTUDISC_DO
from fairwater.node.network_netlink import NetlinkSocket
from fairwater.node.network_veth import INNER

IP_UDP_HEADERS = 28
STREAM_SEGMENTS = 4
STREAM_BYTES_MAX = 1 << 16
DATAGRAM_WAITS_S = (0.1, 0.2, 0.4)
CONNECT_S = 1.0


@dataclass(frozen=True, slots=True)
class Endpoint:
    """An agent's listener, and what reaching it shows."""

    name: str
    address: IPv4Address
    port: int


class Unreachable(Exception):
    """An endpoint that did not answer as it should."""

    def __init__(self, endpoint: Endpoint, reason: str) -> None:
        super().__init__(f"{endpoint.name}: {reason}")
        self.endpoint = endpoint
        self.reason = reason


def failed(slot: int, reason: str) -> Temporary:
    return Temporary(f"network of slot {slot}: {reason}", code="probe_failed")


def check_inside(slot: int, mtu: int, endpoints: Sequence[Endpoint], proc: Path) -> None:
    """Runs in a thread that is in the slot's namespace.

    Raises:
        Temporary: `probe_failed`, where the namespace is not as it should be.
        Unreachable: an endpoint does not answer.
    """
    for name in ("ip_forward", f"conf/{INNER}/forwarding"):
        value = (proc / "sys/net/ipv4" / name).read_text().strip()
        if value != "1":
            setting = "net.ipv4." + name.replace("/", ".")
            raise failed(
                slot, f"{setting} is {value} inside, so containers in the workspace have no network; it must be 1"
            )
    with NetlinkSocket() as links:
        inner = links.link(INNER)
    if inner is None:
        raise failed(slot, f"there is no {INNER} inside")
    if inner.mtu != mtu:
        raise failed(slot, f"the MTU of {INNER} inside is {inner.mtu}; the route out has {mtu}")
    for endpoint in endpoints:
        _exchange_datagram(endpoint, mtu)
        _exchange_stream(endpoint, mtu)


def _exchange_datagram(endpoint: Endpoint, mtu: int) -> None:
    """One packet of exactly the MTU, there and back, neither to be fragmented."""
    payload = os.urandom(mtu - IP_UDP_HEADERS)
    reason = f"no answer to a packet of {mtu} bytes"
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
        udp.setsockopt(socket.IPPROTO_IP, IP_MTU_DISCOVER, IP_PMTUDISC_DO)
        for wait_s in DATAGRAM_WAITS_S:
            udp.settimeout(wait_s)
            try:
                udp.connect((str(endpoint.address), endpoint.port))
                udp.send(payload)
                if udp.recv(len(payload) + 1) == payload:
                    return
                reason = f"a packet of {mtu} bytes came back changed"
            except TimeoutError:
                continue
            except OSError as error:
                reason = f"a packet of {mtu} bytes: {error.strerror}"
    raise Unreachable(endpoint, reason)


def _exchange_stream(endpoint: Endpoint, mtu: int) -> None:
    """Several full segments over TCP, there and back."""
    payload = os.urandom(min(STREAM_SEGMENTS * mtu, STREAM_BYTES_MAX))
    received = b""
    try:
        with socket.create_connection((str(endpoint.address), endpoint.port), CONNECT_S) as tcp:
            tcp.sendall(payload)
            while len(received) < len(payload):
                data = tcp.recv(len(payload))
                if not data:
                    break
                received += data
    except OSError as error:
        raise Unreachable(endpoint, f"TCP: {error.strerror or error}") from None
    if received != payload:
        raise Unreachable(endpoint, f"TCP: {len(received)} of {len(payload)} bytes came back")
