"""The network of this agent's workspaces: a routed veth pair per slot, one nftables table, and the proof that it works.

Brings together what the neighbours decide: `network_plan` (addresses), `network_rules` (who may reach whom),
`network_veth` (both ends of a pair), `network_probe` (does it work). Refuses to know what a sandbox is: it is given
a slot's number and the path of a network namespace. Every method blocks, may be repeated, and may be called in any
thread that is in the machine's own namespace.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from ipaddress import IPv4Address
from pathlib import Path
from threading import Lock

import structlog

from fairwater.domain.failure import Permanent, Temporary
from fairwater.node.linux import in_namespaces
from fairwater.node.network_conntrack import forget_flows
from fairwater.node.network_dns import ResolverCheck, Verdict
from fairwater.node.network_firewall import Firewall
from fairwater.node.network_listeners import ProbeListeners
from fairwater.node.network_netlink import NetlinkSocket
from fairwater.node.network_plan import parse_allowed, plan_addresses, refuse_clashes
from fairwater.node.network_probe import Unreachable, check_inside, failed
from fairwater.node.network_resolvers import chosen_resolvers, machine_resolvers
from fairwater.node.network_veth import Pair, join, joined
from fairwater.node.network_why import why_not_forwarded

MTU_WITHOUT_ROUTE = 1500


class WorkspaceNetwork:
    """The network of one agent. `prepare` comes first, also after a restart; what runs stays connected throughout."""

    def __init__(
        self,
        instance: int,
        pool: str,
        mtu: int | None,
        allow: Sequence[str],
        resolv_conf: Path,
        proc: Path = Path("/proc"),
        nameservers: Sequence[str] = (),
    ) -> None:
        """`mtu` None follows the default route; `nameservers` stand in for those of `resolv_conf` where given.

        Raises:
            Permanent: `bad_pool`, `bad_allow`, `bad_nameserver`, `bad_instance`, `nft_missing`.
        """
        self.plan = plan_addresses(instance, pool)
        self._chosen = chosen_resolvers(nameservers)
        self._mtu, self._resolv_conf, self._proc = mtu, resolv_conf, proc
        self._log = structlog.get_logger("fairwater.node.network").bind(instance=instance)
        self._preparing = Lock()
        self._resolvers: tuple[IPv4Address, ...] = ()
        self._resolver_check = ResolverCheck()
        self._listeners = ProbeListeners(self.plan)
        self._firewall = Firewall(self.plan, parse_allowed(allow, self.plan))
        self._links = NetlinkSocket()

    @property
    def mtu(self) -> int:
        """The MTU of workspaces, in bytes: as configured, else that of the default route as it is now, else 1500."""
        return self._mtu or self._route_mtu() or MTU_WITHOUT_ROUTE

    def nameservers(self) -> tuple[str, ...]:
        """The DNS servers for a workspace's resolv.conf; none on a machine that has none itself.

        Raises Temporary (`no_nameserver`) where workspaces can reach none of the machine's. The rules follow a change.
        """
        with self._preparing:
            resolvers = self._chosen or machine_resolvers(self._resolv_conf)
            if resolvers != self._resolvers and self._listeners.port:
                refuse_clashes(self.plan, (), resolvers)
                self._firewall.install(resolvers, self._listeners.port)
                self._resolvers = resolvers
            return tuple(map(str, resolvers))

    def prepare(self) -> None:
        """Rules, forwarding and the probe's listeners; what is open stays open. Repeating it repairs.

        Raises:
            Permanent: `pool_overlap`, `pool_in_use`, `bad_mtu`.
            Temporary: the kernel refuses something.
        """
        with self._preparing, _kernel("the network cannot be prepared"):
            try:
                self._resolvers = self._chosen or machine_resolvers(self._resolv_conf)
            except Temporary as problem:
                # Without DNS much still works, and whoever asks for the name servers is told.
                self._resolvers = ()
                self._log.warning("no_nameserver", detail=problem.message)
            refuse_clashes(self.plan, self._links.routes(), self._resolvers)
            route_mtu = self._route_mtu()
            if self._mtu and route_mtu and self._mtu > route_mtu:
                raise Permanent(
                    f"network.mtu: {self._mtu} is more than the {route_mtu} of the default route; lower it, or leave "
                    "it out to follow the route",
                    code="bad_mtu",
                )
            self._forward()
            self._listeners.stand(self._links, self.mtu, self._proc)
            self._firewall.install(self._resolvers, self._listeners.port)

    def create(self, slot: int, netns: Path) -> str:
        """Connects the namespace at `netns`, closed to the world yet; returns its address. About 4 ms.

        Raises:
            Temporary: `namespace_missing`, `namespace_in_use`, `network_failed`. Call again, or `remove` what there is.
            Permanent: `pool_too_small`.
        """
        pair = Pair(self.plan.device(slot), self.plan.address(slot), self.plan.gateway, self.mtu)
        with _kernel(f"slot {slot} cannot be connected"), _namespace(slot, netns) as namespace:
            if not joined(self._links, pair.device, namespace):
                self._firewall.close(slot)  # what is left of a former tenant's must not open the way for this one
            join(self._links, pair, namespace, self._proc)
        return str(pair.address)

    def probe(self, slot: int, netns: Path) -> None:
        """Uses the slot's network from inside, also of a closed slot. About 4 ms; where DNS is silent, up to 2 s.

        Raises:
            Temporary: `probe_failed`, with what does not work and, where it can be seen, why.
        """
        route_mtu, device = self._route_mtu(), self.plan.device(slot)
        mtu = self._mtu or route_mtu or MTU_WITHOUT_ROUTE
        with _kernel(f"slot {slot} cannot be probed"), _namespace(slot, netns) as namespace:
            host_end = self._links.link(device)
            if host_end is None:
                raise failed(slot, f"there is no device {device}; create it first")
            if host_end.mtu != mtu or (route_mtu and mtu > route_mtu):
                raise failed(slot, f"the MTU of {device} is {host_end.mtu}; the route out has {route_mtu or mtu}")
            with self._firewall.probing(slot):
                try:
                    endpoints = self._listeners.endpoints()
                    in_namespaces(lambda: check_inside(slot, mtu, endpoints, self._proc), net_ns=namespace)
                except Unreachable as problem:
                    why = why_not_forwarded(self._firewall, self.plan, slot, self._proc)
                    raise failed(slot, f"{problem}{why}") from None
                if self._resolvers and route_mtu is not None:
                    self._probe_resolver(slot, namespace, self._resolvers[0])

    def open(self, slot: int) -> None:
        """Lets the slot out to the world; read back. Raises Temporary (`not_open`, `nft_refused`)."""
        with _kernel(f"slot {slot} cannot be opened"):
            self._firewall.open(slot)

    def close(self, slot: int) -> None:
        """Shuts the slot off, established flows too; read back. Raises Temporary (`not_closed`, `nft_refused`)."""
        with _kernel(f"slot {slot} cannot be closed"):
            self._firewall.close(slot)

    def remove(self, slot: int) -> None:
        """Closes the slot, deletes its devices and forgets its flows: about 35 ms. Raises Temporary."""
        with _kernel(f"the network of slot {slot} cannot be removed"):
            self._firewall.close(slot)
            self._links.delete_link(self.plan.device(slot))
            forget_flows(self.plan.address(slot))

    def existing(self) -> tuple[int, ...]:
        """The slots that have a device now."""
        slots = (self.plan.slot_of(name) for _, name in socket.if_nameindex())
        return tuple(sorted(slot for slot in slots if slot is not None))

    def release(self) -> None:
        """Ends what lives in this process (listeners, descriptors); workspaces keep their network as it is."""
        self._listeners.close()
        self._firewall.release()
        self._links.close()

    def shutdown(self) -> None:
        """Removes everything of this agent's from the machine: devices first, so that none is without its rules."""
        with self._preparing, _kernel("the network cannot be taken down"):
            for slot in self.existing():
                self._links.delete_link(self.plan.device(slot))
            self._links.delete_link(self.plan.probe_device)
            self._firewall.delete()
        self.release()

    def _route_mtu(self) -> int | None:
        """None where there is no default route."""
        route = self._links.default_route()
        link = None if route is None else self._links.link(route.device)
        if route is None or link is None:
            return None
        return min(route.mtu or link.mtu, link.mtu)

    def _forward(self) -> None:
        setting = self._proc / "sys/net/ipv4/ip_forward"
        if setting.read_text().strip() == "0":
            setting.write_text("1")
            self._log.info("ip_forward_enabled", setting="net.ipv4.ip_forward", before=0, now=1)

    def _probe_resolver(self, slot: int, namespace: int, resolver: IPv4Address) -> None:
        verdict = self._resolver_check.check(resolver, namespace)
        if verdict is Verdict.UNANSWERED:
            raise failed(slot, f"DNS: {resolver} answers this machine, but not the workspace")
        if verdict is Verdict.SILENT:
            # The uplink is down for everybody: no fault of this slot's.
            self._log.warning("resolver_silent", slot=slot, resolver=str(resolver), detail=verdict.value)


@contextmanager
def _namespace(slot: int, netns: Path) -> Iterator[int]:
    try:
        namespace = os.open(netns, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        raise Temporary(f"slot {slot}: {netns} is gone", code="namespace_missing") from None
    try:
        yield namespace
    finally:
        os.close(namespace)


@contextmanager
def _kernel(what: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise Temporary(f"{what}: {error.strerror or error}", code="network_failed") from error
