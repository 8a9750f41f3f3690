"""Decides which DNS servers workspaces are given: the machine's own, as far as a workspace can reach them.

A resolver on the machine's loopback cannot be reached from a workspace; where it is systemd's, those behind it are
taken. Knows nothing of rules or namespaces.
"""

from __future__ import annotations

from collections.abc import Sequence
from ipaddress import IPv4Address, ip_address
from pathlib import Path

from fairwater.domain.failure import Permanent, Temporary

SYSTEMD_UPSTREAM = Path("/run/systemd/resolve/resolv.conf")
NAMESERVERS_MAX = 3
"""MAXNS of resolv.conf(5): the resolver library reads no more."""


def machine_resolvers(resolv_conf: Path, upstream: Path = SYSTEMD_UPSTREAM) -> tuple[IPv4Address, ...]:
    """The DNS servers for workspaces; none where the machine itself names none.

    Raises:
        Temporary: `no_nameserver`, where the machine has some and a workspace can reach none of them.
    """
    named = _named(resolv_conf)
    usable = _usable(named)
    if not usable and any(_is_loopback(server) for server in named):
        usable = _usable(_named(upstream))
    if named and not usable:
        raise Temporary(
            f"DNS: {resolv_conf} names only {', '.join(named)}, which workspaces cannot reach (IPv4 outside loopback "
            "is needed); set network.nameservers to the DNS servers of this network",
            code="no_nameserver",
            delay_s=30.0,
        )
    return usable


def chosen_resolvers(nameservers: Sequence[str]) -> tuple[IPv4Address, ...]:
    """The DNS servers of the setting `network.nameservers`. Raises Permanent (`bad_nameserver`)."""
    usable = _usable(nameservers)
    if len(usable) != len(nameservers):
        raise Permanent(
            f"network.nameservers: {', '.join(nameservers)}: give up to {NAMESERVERS_MAX} IPv4 addresses outside "
            "loopback; workspaces have no IPv6",
            code="bad_nameserver",
        )
    return usable


def _named(path: Path) -> list[str]:
    try:
        lines = path.read_text(errors="replace").splitlines()
    except FileNotFoundError:
        return []
    words = (line.split() for line in lines)
    return [word[1] for word in words if len(word) >= 2 and word[0] == "nameserver"]


def _usable(servers: Sequence[str]) -> tuple[IPv4Address, ...]:
    usable = []
    for server in servers:
        try:
            address = ip_address(server)
        except ValueError:
            continue
        if isinstance(address, IPv4Address) and not (address.is_loopback or address.is_unspecified):
            usable.append(address)
    return tuple(dict.fromkeys(usable))[:NAMESERVERS_MAX]


def _is_loopback(server: str) -> bool:
    try:
        address = ip_address(server)
    except ValueError:
        return False
    return address.is_loopback or address.is_unspecified
