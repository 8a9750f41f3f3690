"""Decides addresses and names: which part of the pool an agent has, what each slot is called, what clashes with it.

Pure: the machine's routes and resolvers are arguments. Refuses to know how any of it is written to the kernel.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from ipaddress import AddressValueError, IPv4Address, IPv4Network, NetmaskValueError

from fairwater.domain.failure import Permanent

INSTANCES = 16
SLOTS = 256
PROBE_HOST_PORT = 4000
"""Where the listener behind the host listens; nothing else lives in its namespace."""

_SMALLEST_SHARE = 28
_OWN_DEVICE = re.compile(r"fw(?:[0-9a-f]-\d{1,3}|p[0-9a-f])")
_METADATA = ("169.254.0.0/16", "168.63.129.16/32", "100.100.100.200/32", "192.0.0.192/32")
METADATA = tuple(IPv4Network(network) for network in _METADATA)
"""Where clouds keep their secrets: link-local (AWS, Google, …), Azure, Alibaba, Oracle. IPv6 is dropped as a whole."""


@dataclass(frozen=True, slots=True)
class Route:
    """An IPv4 route of the machine, or one of its own addresses (`local`). `mtu` None: the device's."""

    network: IPv4Network
    device: str
    local: bool = False
    mtu: int | None = None
    metric: int = 0


@dataclass(frozen=True, slots=True)
class Allowed:
    """A destination that workspaces may reach although it is blocked by default, over TCP and UDP."""

    network: IPv4Network
    port: int


@dataclass(frozen=True, slots=True)
class AddressPlan:
    """The addresses and device names of one agent. `instance` counts the agents of this machine, from 0 to 15.

    Each instance has a sixteenth of the pool: the first address is its gateway, slot s has the (s + 2)-th, the last but
    one is the probe's listener behind the host. For 10.213.0.0/16 and instance 1: 10.213.16.1, 10.213.16.2, …, .31.254.
    """

    instance: int
    pool: IPv4Network
    share: IPv4Network

    @property
    def table(self) -> str:
        return f"fairwater_{self.instance}"

    @property
    def devices(self) -> str:
        """The host ends of all slots, as a pattern for nftables."""
        return f"fw{self.instance:x}-*"

    @property
    def probe_device(self) -> str:
        return f"fwp{self.instance:x}"

    @property
    def gateway(self) -> IPv4Address:
        return self.share.network_address + 1

    @property
    def probe_host(self) -> IPv4Address:
        return self.share.broadcast_address - 1

    @property
    def slots(self) -> int:
        """How many slots have an address: 256, less in a small pool."""
        return min(SLOTS, self.share.num_addresses - 4)

    def device(self, slot: int) -> str:
        return f"fw{self.instance:x}-{slot}"

    def address(self, slot: int) -> IPv4Address:
        """Raises Permanent (`pool_too_small`) for a slot that has no address."""
        if not 0 <= slot < self.slots:
            raise Permanent(
                f"slot {slot}: network.pool {self.pool} has addresses for slots 0 to {self.slots - 1} of each agent; "
                "choose a larger pool",
                code="pool_too_small",
            )
        return self.share.network_address + slot + 2

    def slot_of(self, device: str) -> int | None:
        """The slot whose host end is called so; None for any other device."""
        prefix = f"fw{self.instance:x}-"
        number = device.removeprefix(prefix)
        return int(number) if device.startswith(prefix) and number.isdecimal() else None


def plan_addresses(instance: int, pool: str) -> AddressPlan:
    """Raises Permanent (`bad_pool`) where the pool is no IPv4 network or too small."""
    if not 0 <= instance < INSTANCES:
        raise Permanent(f"agent {instance}: a machine runs agents 0 to {INSTANCES - 1}", code="bad_instance")
    try:
        network = IPv4Network(pool)
    except (AddressValueError, NetmaskValueError, ValueError) as error:
        raise Permanent(f"network.pool: {error}; write a network such as 10.213.0.0/16", code="bad_pool") from None
    if network.prefixlen + 4 > _SMALLEST_SHARE:
        raise Permanent(
            f"network.pool: {network} is too small to be shared by {INSTANCES} agents; use a /{_SMALLEST_SHARE - 4} or "
            "larger, such as 10.213.0.0/16",
            code="bad_pool",
        )
    size = network.num_addresses // INSTANCES
    share = IPv4Network((int(network.network_address) + instance * size, network.prefixlen + 4))
    return AddressPlan(instance, network, share)


def parse_allowed(entries: Iterable[str], plan: AddressPlan) -> tuple[Allowed, ...]:
    """The entries of `network.allow`, each CIDR:PORT. Raises Permanent (`bad_allow`)."""
    allowed = []
    for entry in entries:
        network, _, port = entry.rpartition(":")
        try:
            one = Allowed(IPv4Network(network), int(port))
        except ValueError as error:
            raise _bad_allow(entry, f"{error}; write IPv4-CIDR:PORT, such as 10.0.0.5/32:5432") from None
        if not 0 < one.port < 65536:
            raise _bad_allow(entry, "a port is between 1 and 65535")
        if one.network.overlaps(plan.pool):
            raise _bad_allow(entry, f"it is part of network.pool {plan.pool}; workspaces never reach one another")
        if one.network.is_loopback:
            raise _bad_allow(entry, "a workspace's 127.0.0.1 is its own; name an address of the machine's network")
        allowed.append(one)
    return tuple(allowed)


def _bad_allow(entry: str, reason: str) -> Permanent:
    return Permanent(f"network.allow: {entry!r}: {reason}", code="bad_allow")


def refuse_clashes(plan: AddressPlan, routes: Iterable[Route], resolvers: Sequence[IPv4Address]) -> None:
    """Raises Permanent: `pool_overlap`, where the pool is in use already; `pool_in_use`, where workspaces still use
    another pool.

    A default route, also one in two halves as VPNs write it, is no overlap.
    """
    for route in routes:
        slot = plan.slot_of(route.device)
        if slot is not None and not route.local and (slot >= plan.slots or route.network != _host(plan, slot)):
            raise Permanent(
                f"network.pool: slot {slot} still runs at {route.network.network_address}, outside what {plan.pool} "
                "gives it; stop the workspaces of this machine before changing network.pool",
                code="pool_in_use",
            )
        gone = route.local and not route.device  # an address whose device went while they were listed
        if gone or _OWN_DEVICE.fullmatch(route.device) or route.network.prefixlen <= 1:
            continue
        if route.network.overlaps(plan.pool):
            what = "the machine's address" if route.local else "the route to"
            raise Permanent(
                f"network.pool: {plan.pool} overlaps {what} {route.network} on {route.device}; choose a private "
                "network that this machine does not use",
                code="pool_overlap",
            )
    for resolver in resolvers:
        if resolver in plan.pool:
            raise Permanent(
                f"network.pool: {plan.pool} contains the DNS server {resolver}; choose another pool",
                code="pool_overlap",
            )


def _host(plan: AddressPlan, slot: int) -> IPv4Network:
    return IPv4Network((int(plan.address(slot)), 32))
