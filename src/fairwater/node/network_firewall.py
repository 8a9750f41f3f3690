"""Keeps the agent's nftables table in the kernel: replaced as a whole, opened and closed slot by slot, read back.

Who may reach whom is `network_rules`' decision. A table that somebody else flushed is put back with what was open.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from ipaddress import IPv4Address
from threading import RLock

from fairwater.domain.failure import Temporary
from fairwater.node.network_netlink import ACK, NESTED, NETLINK_NETFILTER, NetlinkSocket, attribute
from fairwater.node.network_plan import AddressPlan, Allowed
from fairwater.node.network_rules import OPEN, PROBING, Policy, admit, delete_table, expel, replace_table
from fairwater.node.nft import Nftables

_GET_ELEMENT = 10 << 8 | 13
_HEADER = struct.pack("=BBH", 1, 0, 0)  # NFPROTO_INET
_DEVICE_NAME_SIZE = 16


class Firewall:
    """The table `fairwater_N` of the network namespace it is made in. Usable from any thread."""

    def __init__(self, plan: AddressPlan, allowed: tuple[Allowed, ...]) -> None:
        """Raises Permanent (`nft_missing`)."""
        self._policy = Policy(plan, allowed, (), 0)
        self._plan = plan
        self._lock = RLock()
        self._opened: set[int] = set()
        self._nft = Nftables()
        self._kernel = NetlinkSocket(NETLINK_NETFILTER)

    def install(self, resolvers: tuple[IPv4Address, ...], probe_port: int) -> None:
        """Creates or replaces the table; slots that are open, in the kernel or for this object, stay so."""
        with self._lock:
            self._policy = Policy(self._plan, self._policy.allowed, resolvers, probe_port)
            self._opened |= self._open_in_kernel()
            self._replace()

    def open(self, slot: int) -> None:
        """Lets the slot out to the world; read back. Raises Temporary (`not_open`, `nft_refused`)."""
        with self._lock:
            if not self._has_device(slot):
                raise Temporary(f"slot {slot} has no network yet; create it first", code="not_open")
            self._opened.add(slot)
            try:
                self._nft.run(admit(self._plan, OPEN, slot))
            except Temporary:
                self._replace()
            if not self.is_open(slot):
                raise Temporary(f"slot {slot}: nftables does not show it as open", code="not_open")

    def close(self, slot: int) -> None:
        """Shuts the slot off, established flows too; read back. Raises Temporary (`not_closed`, `nft_refused`)."""
        with self._lock:
            self._opened.discard(slot)
            try:
                self._nft.run(expel(self._plan, slot, OPEN, PROBING))
            except Temporary:
                self._replace()
            if self.is_open(slot):
                raise Temporary(f"slot {slot}: nftables still shows it as open", code="not_closed")

    @contextmanager
    def probing(self, slot: int) -> Iterator[None]:
        """Lets the slot reach the probe's listeners and the DNS servers meanwhile. Raises Temporary."""
        with self._lock:
            try:
                self._nft.run(admit(self._plan, PROBING, slot))
            except Temporary:
                self._replace()
                self._nft.run(admit(self._plan, PROBING, slot))
        try:
            yield
        finally:
            with self._lock:
                self._nft.run(expel(self._plan, slot, PROBING))

    def is_open(self, slot: int) -> bool:
        """What the kernel says, asked past the library. Raises OSError."""
        device = self._plan.device(slot).encode().ljust(_DEVICE_NAME_SIZE, b"\0")
        key = attribute(1 | NESTED, attribute(1, device + self._plan.address(slot).packed))
        body = _HEADER + attribute(1, self._plan.table.encode() + b"\0") + attribute(2, OPEN.encode() + b"\0")
        try:
            self._kernel.request(_GET_ELEMENT, ACK, body + attribute(3 | NESTED, attribute(1 | NESTED, key)))
        except FileNotFoundError:
            return False
        return True

    def default_drops(self) -> list[str] | None:
        """Chains of other tables that drop what they do not know, on our packets' way; None where our table is gone."""
        chains = [line["chain"] for line in self._nft.run([{"list": {"chains": None}}]) if "chain" in line]
        if not any(chain["table"] == self._plan.table for chain in chains):
            return None
        return sorted(
            f"{chain['family']} {chain['table']} {chain['name']}"
            for chain in chains
            if chain.get("hook") in ("forward", "input") and chain.get("policy") == "drop"
        )

    def delete(self) -> None:
        with self._lock:
            self._opened.clear()
            self._nft.run(delete_table(self._plan))

    def release(self) -> None:
        """Frees what this process holds; the table stays."""
        self._nft.close()
        self._kernel.close()

    def _replace(self) -> None:
        self._opened = {slot for slot in self._opened if self._has_device(slot)}
        self._nft.run(replace_table(self._policy, self._opened))

    def _has_device(self, slot: int) -> bool:
        try:
            socket.if_nametoindex(self._plan.device(slot))
        except OSError:
            return False
        return True

    def _open_in_kernel(self) -> set[int]:
        with suppress(Temporary):  # there is no table before the first time
            found = self._nft.run([{"list": {"set": {"family": "inet", "table": self._plan.table, "name": OPEN}}}])
            elements = [element["concat"] for line in found for element in line["set"].get("elem", ())]
            # An address of a former pool's has no slot here; it was refused before, where its device still is.
            addresses = {str(self._plan.address(slot)): slot for slot in range(self._plan.slots)}
            return {addresses[address] for _, address in elements if address in addresses}
        return set()
