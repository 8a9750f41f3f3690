"""Joins a namespace to the machine by a veth pair: both ends configured from outside, nothing needed inside.

The inner end is `eth0` with one address and a default route to the gateway; the host's end carries the gateway's
address. The pair is routed, not bridged: no workspace hears another's ARP. Which addresses is decided elsewhere.
"""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass
from ipaddress import IPv4Address
from pathlib import Path
from socket import if_nametoindex

from fairwater.domain.failure import Temporary
from fairwater.node.linux import CLONE_NEWNET, in_namespaces, unshare
from fairwater.node.network_netlink import NetlinkSocket

INNER = "eth0"

_HOST_END = {
    "ipv4/conf/{device}/rp_filter": "1",  # a source address must be the one routed to this device
    "ipv4/conf/{device}/accept_redirects": "0",
    "ipv4/conf/{device}/send_redirects": "0",
    "ipv4/conf/{device}/arp_ignore": "1",  # the machine's other addresses are not told
    "ipv4/conf/{device}/forwarding": "1",
    "ipv6/conf/{device}/disable_ipv6": "1",
}
_INNER_END = {
    f"ipv6/conf/{INNER}/disable_ipv6": "1",
    "ipv4/ip_forward": "1",  # containers run in workspaces
    "ipv4/ping_group_range": "0 2147483647",
    "ipv4/ip_unprivileged_port_start": "0",
}


@dataclass(frozen=True, slots=True)
class Pair:
    """One veth pair to be: `device` is the host's end, which has `gateway`; the inner end has `address`."""

    device: str
    address: IPv4Address
    gateway: IPv4Address
    mtu: int


def joined(links: NetlinkSocket, device: str, namespace: int) -> bool:
    """Whether `device` is the other end of the namespace's eth0."""
    outer = links.link(device)
    if outer is None:
        return False

    def inner_peer() -> int | None:
        with NetlinkSocket() as inside:
            inner = inside.link(INNER)
            return None if inner is None else inner.peer

    return in_namespaces(inner_peer, net_ns=namespace) == outer.index


def join(links: NetlinkSocket, pair: Pair, namespace: int, proc: Path) -> None:
    """Makes the pair where there is none and configures both ends; may be repeated. Raises OSError, Temporary."""
    if not joined(links, pair.device, namespace):
        links.delete_link(pair.device)
        try:
            links.add_veth(pair.device, INNER, namespace, pair.mtu)
        except FileExistsError:
            raise Temporary(
                f"{pair.device}: its namespace has an {INNER} from elsewhere; give it a new namespace",
                code="namespace_in_use",
            ) from None
    index = if_nametoindex(pair.device)
    # Before the device is up: IPv6 would announce itself otherwise.
    _write_settings(proc, {path.format(device=pair.device): value for path, value in _HOST_END.items()})
    links.add_address(index, pair.gateway)
    links.set_up(index, pair.mtu)
    in_namespaces(lambda: _configure_inner(pair, proc), net_ns=namespace)
    links.route_to_host(pair.address, index, pair.gateway)


def _configure_inner(pair: Pair, proc: Path) -> None:
    _write_settings(proc, _INNER_END)  # /proc/sys/net shows the namespace of the thread that looks
    with NetlinkSocket() as links:
        index = if_nametoindex(INNER)
        links.set_up(if_nametoindex("lo"))
        links.add_address(index, pair.address)
        links.set_up(index, pair.mtu)
        links.route_default(pair.gateway, index)


def _write_settings(proc: Path, settings: dict[str, str]) -> None:
    for path, value in settings.items():
        # A kernel without IPv6 has nothing to turn off.
        with contextlib.suppress(FileNotFoundError) if path.startswith("ipv6/") else contextlib.nullcontext():
            (proc / "sys/net" / path).write_text(value)


def new_namespace() -> int:
    """A descriptor of a new network namespace, which lasts as long as it, or a socket in it, is open."""

    def make() -> int:
        unshare(CLONE_NEWNET)
        return os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)

    return in_namespaces(make)
