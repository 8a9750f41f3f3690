"""Forgets the flows of one address, so that late answers to its last tenant do not reach the next.

By ctnetlink (linux/netfilter/nfnetlink_conntrack.h): a dump that the kernel filters (Linux 5.8; older ones send all,
which is filtered here), and a deletion for each flow found.
"""

from __future__ import annotations

import contextlib
import struct
from ipaddress import IPv4Address

from fairwater.node.network_netlink import (
    ACK,
    DUMP,
    NESTED,
    NETLINK_NETFILTER,
    NetlinkSocket,
    attribute,
    attributes,
)

_GET, _DELETE = 1 << 8 | 1, 1 << 8 | 2
_HEADER = struct.pack("=BBH", 2, 0, 0)  # AF_INET, version 0
_TUPLE_ORIGINAL, _ID, _FILTER = 1, 12, 25
_TUPLE_ADDRESSES = 1
_SOURCE, _DESTINATION = 1, 2


def forget_flows(address: IPv4Address) -> int:
    """Deletes the tracked flows from and to `address`, in the calling thread's namespace; returns how many."""
    with NetlinkSocket(NETLINK_NETFILTER) as tracker:
        return sum(_forget(tracker, address, side) for side in (_SOURCE, _DESTINATION))


def _forget(tracker: NetlinkSocket, address: IPv4Address, side: int) -> int:
    wanted = attribute(_TUPLE_ADDRESSES | NESTED, attribute(side, address.packed))
    # Bit side - 1 of the flags says that this address counts; none of the answer's direction does.
    flags = attribute(1, struct.pack("=I", 1 << (side - 1))) + attribute(2, struct.pack("=I", 0))
    body = _HEADER + attribute(_TUPLE_ORIGINAL | NESTED, wanted) + attribute(_FILTER | NESTED, flags)
    forgotten = 0
    for flow in tracker.request(_GET, DUMP, body):
        found = dict(attributes(flow[4:]))
        original = found[_TUPLE_ORIGINAL]
        addresses = dict(attributes(dict(attributes(original))[_TUPLE_ADDRESSES]))
        if addresses.get(side) != address.packed:
            continue
        one = attribute(_TUPLE_ORIGINAL | NESTED, original) + attribute(_ID, found[_ID])
        with contextlib.suppress(FileNotFoundError):  # it ended by itself
            tracker.request(_DELETE, ACK, _HEADER + one)
            forgotten += 1
    return forgotten
