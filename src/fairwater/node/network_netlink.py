"""Speaks rtnetlink: devices, addresses and routes, by messages built here over one kept socket.

Decides nothing. Written by hand because it is called in worker threads beside an event loop, where a call must not
bring a loop of its own: one request is 0.05 to 1 ms. Numbers are those of linux/rtnetlink.h, if_link.h, if_addr.h.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network
from threading import Lock

from fairwater.node.network_plan import Route

NETLINK_ROUTE, NETLINK_NETFILTER = 0, 12
_SOL_NETLINK, _NETLINK_CAP_ACK, _NETLINK_EXT_ACK, _NETLINK_GET_STRICT_CHK = 270, 10, 11, 12
_REQUEST, ACK, _REPLACE, _EXCL, _CREATE, DUMP = 0x1, 0x4, 0x100, 0x200, 0x400, 0x300
_ERROR, _DONE = 2, 3
_ACK_TLVS = 0x200
NESTED, _TYPE = 0x8000, 0x3FFF
_NEWLINK, _DELLINK, _GETLINK, _SETLINK, _NEWADDR, _NEWROUTE, _GETROUTE = 16, 17, 18, 19, 20, 24, 26
_IFNAME, _MTU, _LINK, _LINKINFO, _NET_NS_FD, _EXT_MASK, _TX_QUEUES, _RX_QUEUES = 3, 4, 5, 18, 28, 29, 31, 32
_SKIP_STATISTICS = 1 << 3
_IFF_UP = 1
_MAIN, _LOCAL, _STATIC, _ONLINK = 254, 255, 4, 4
_UNICAST, _LOCAL_TYPE = 1, 2
_SCOPE_UNIVERSE, _SCOPE_LINK = 0, 253
_RECEIVE_SIZE = 1 << 17
_TIMEOUT_S = 10


@dataclass(frozen=True, slots=True)
class Link:
    """A device. `peer` is the index of a veth's other end, in that end's namespace; 0 for others."""

    index: int
    mtu: int
    peer: int


class NetlinkSocket:
    """One socket in the network namespace of the thread that makes it. Usable from any thread; errors are OSError."""

    def __init__(self, family: int = NETLINK_ROUTE) -> None:
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, family)
        self._socket.settimeout(_TIMEOUT_S)
        self._socket.setsockopt(_SOL_NETLINK, _NETLINK_CAP_ACK, 1)
        self._socket.setsockopt(_SOL_NETLINK, _NETLINK_EXT_ACK, 1)
        self._socket.setsockopt(_SOL_NETLINK, _NETLINK_GET_STRICT_CHK, 1)
        self._socket.bind((0, 0))
        self._lock = Lock()
        self._sequence = 0

    def close(self) -> None:
        self._socket.close()

    def __enter__(self) -> NetlinkSocket:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def request(self, kind: int, flags: int, body: bytes) -> list[bytes]:
        """Sends one message and returns the bodies of the answers. Raises OSError with the kernel's words."""
        with self._lock:
            self._sequence = (self._sequence + 1) & 0xFFFFFFFF
            header = struct.pack("=IHHII", 16 + len(body), kind, flags | _REQUEST, self._sequence, 0)
            self._socket.send(header + body)
            return list(self._answers(self._sequence))

    def _answers(self, sequence: int) -> Iterator[bytes]:
        while True:
            data = self._socket.recv(_RECEIVE_SIZE)
            while len(data) >= 16:
                length, kind, flags, number, _ = struct.unpack_from("=IHHII", data)
                body, data = data[16:length], data[(length + 3) & ~3 :]
                if number != sequence:
                    continue  # left over from a request that timed out
                if kind == _DONE:
                    return
                if kind == _ERROR:
                    _raise_refusal(body, flags)
                    return
                yield body

    def add_veth(self, name: str, peer: str, namespace: int, mtu: int) -> None:
        """A veth pair: `name` here, `peer` in the namespace of descriptor `namespace`; both down. EEXIST if there."""
        # One queue each: by default the kernel makes one per possible CPU, for every workspace.
        ends = _u32(_MTU, mtu) + _u32(_TX_QUEUES, 1) + _u32(_RX_QUEUES, 1)
        other = _link_header() + _text(_IFNAME, peer) + ends + _u32(_NET_NS_FD, namespace)
        information = _text(1, "veth") + attribute(2 | NESTED, attribute(1 | NESTED, other))
        body = _link_header() + _text(_IFNAME, name) + ends + attribute(_LINKINFO | NESTED, information)
        self.request(_NEWLINK, ACK | _CREATE | _EXCL, body)

    def link(self, name: str) -> Link | None:
        body = _link_header() + _text(_IFNAME, name) + _u32(_EXT_MASK, _SKIP_STATISTICS)
        try:
            (answer,) = self.request(_GETLINK, ACK, body)[:1]
        except OSError as error:
            if error.errno == errno.ENODEV:
                return None
            raise
        index: int = struct.unpack_from("=i", answer, 4)[0]
        values = dict(attributes(answer[16:]))
        mtu: int = struct.unpack("=I", values[_MTU])[0]
        peer: int = struct.unpack("=I", values.get(_LINK, bytes(4)))[0]
        return Link(index, mtu, peer)

    def set_up(self, index: int, mtu: int | None = None) -> None:
        size = b"" if mtu is None else _u32(_MTU, mtu)
        self.request(_SETLINK, ACK, struct.pack("=BxHiII", 0, 0, index, _IFF_UP, _IFF_UP) + size)

    def delete_link(self, name: str) -> None:
        """Deletes a device; fine when there is none. The kernel takes about 30 ms for a veth."""
        try:
            self.request(_DELLINK, ACK, _link_header() + _text(_IFNAME, name))
        except OSError as error:
            if error.errno != errno.ENODEV:
                raise

    def add_address(self, index: int, address: IPv4Address) -> None:
        """Gives a device an address of its own alone (/32); fine when it has it."""
        body = struct.pack("=BBBBI", socket.AF_INET, 32, 0, _SCOPE_UNIVERSE, index)
        body += attribute(2, address.packed) + attribute(1, address.packed)
        self.request(_NEWADDR, ACK | _CREATE | _REPLACE, body)

    def route_to_host(self, host: IPv4Address, index: int, source: IPv4Address) -> None:
        """Replaces the route to one address, straight out of a device, sent from `source` by the machine itself."""
        body = struct.pack("=BBBBBBBBI", socket.AF_INET, 32, 0, 0, _MAIN, _STATIC, _SCOPE_LINK, _UNICAST, 0)
        body += attribute(1, host.packed) + _u32(4, index) + attribute(7, source.packed)
        self.request(_NEWROUTE, ACK | _CREATE | _REPLACE, body)

    def route_default(self, gateway: IPv4Address, index: int) -> None:
        """Replaces the default route: by a gateway that is on the device's link though no route says so."""
        body = struct.pack("=BBBBBBBBI", socket.AF_INET, 0, 0, 0, _MAIN, _STATIC, _SCOPE_UNIVERSE, _UNICAST, _ONLINK)
        body += attribute(5, gateway.packed) + _u32(4, index)
        self.request(_NEWROUTE, ACK | _CREATE | _REPLACE, body)

    def routes(self) -> list[Route]:
        """IPv4 routes to somewhere, of all tables, and the machine's own addresses."""
        found = (_route(answer) for answer in self.request(_GETROUTE, DUMP, _route_header()))
        return [route for route in found if route is not None]

    def default_route(self) -> Route | None:
        """The main table's default route with the lowest metric; cheap beside hundreds of other routes."""
        answers = self.request(_GETROUTE, DUMP, _route_header(_MAIN))
        found = (_route(answer) for answer in answers if answer[1] == 0 and answer[4] == _MAIN)
        return min((route for route in found if route is not None), key=lambda route: route.metric, default=None)


def _route(message: bytes) -> Route | None:
    length, kind = message[1], message[7]
    values = dict(attributes(message[12:]))
    if kind not in (_UNICAST, _LOCAL_TYPE):
        return None  # a broadcast address, or a route that leads nowhere
    index = struct.unpack("=I", values[4])[0] if 4 in values else 0
    if 9 in values:  # several next hops: the first one's device
        index = struct.unpack_from("=i", values[9], 4)[0]
    device = ""
    with contextlib.suppress(OSError):  # the device went away meanwhile
        device = socket.if_indextoname(index)
    metrics = dict(attributes(values.get(8, b"")))
    return Route(
        IPv4Network((values.get(1, bytes(4)), length)),
        device,
        local=kind == _LOCAL_TYPE,
        mtu=struct.unpack("=I", metrics[2])[0] if 2 in metrics else None,
        metric=struct.unpack("=I", values[6])[0] if 6 in values else 0,
    )


def _raise_refusal(body: bytes, flags: int) -> None:
    number = -struct.unpack_from("=i", body)[0]
    if number == 0:
        return
    words = dict(attributes(body[20:])).get(1, b"") if flags & _ACK_TLVS else b""
    detail = words.rstrip(b"\0").decode(errors="replace")
    raise OSError(number, f"{os.strerror(number)} ({detail})" if detail else os.strerror(number))


def attributes(data: bytes) -> Iterator[tuple[int, bytes]]:
    while len(data) >= 4:
        length, kind = struct.unpack_from("=HH", data)
        if length < 4:
            return
        yield kind & _TYPE, data[4:length]
        data = data[(length + 3) & ~3 :]


def attribute(kind: int, value: bytes) -> bytes:
    return struct.pack("=HH", 4 + len(value), kind) + value + bytes(-len(value) % 4)


def _u32(kind: int, value: int) -> bytes:
    return attribute(kind, struct.pack("=I", value))


def _text(kind: int, value: str) -> bytes:
    return attribute(kind, value.encode() + b"\0")


def _link_header() -> bytes:
    return bytes(16)


def _route_header(table: int = 0) -> bytes:
    return struct.pack("=BBBBBBBBI", socket.AF_INET, 0, 0, 0, table, 0, 0, 0, 0)
