"""A machine of its own for each test: a network namespace, with an uplink to a world beyond it.

workspace ── veth ── machine 203.0.113.2 ── uplink, MTU 1400 ── beyond 203.0.113.1 (DNS), 198.51.100.7, metadata
"""

from __future__ import annotations

import os
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from itertools import count
from pathlib import Path
from typing import TypeVar

import pytest

from fairwater.node.linux import CLONE_NEWNET, in_namespaces, setns, unshare
from fairwater.node.network import WorkspaceNetwork
from fairwater.node.network_echo import EchoServer, listen
from fairwater.node.network_veth import new_namespace

T = TypeVar("T")

POOL = "10.213.0.0/16"
BEYOND_ADDRESSES = ("198.51.100.7", "169.254.169.254", "168.63.129.16", "100.100.100.200", "192.0.0.192")
UPLINK_MTU = 1400
WAIT_S = 5.0
"""How long an answer that should come is waited for; it takes under 5 ms."""
SILENCE_S = 0.25
"""How long no answer must come."""


class Host:
    """A network namespace, and what can be tried from inside it."""

    def __init__(self, namespace: int) -> None:
        self.namespace = namespace
        self.path = Path(f"/proc/{os.getpid()}/fd/{namespace}")

    def run(self, work: Callable[[], T]) -> T:
        return in_namespaces(work, net_ns=self.namespace)

    def ip(self, arguments: str) -> None:
        run("nsenter", f"--net={self.path}", "ip", *arguments.split())

    def set(self, setting: str, value: str) -> None:
        self.run(lambda: (Path("/proc/sys/net") / setting).write_text(value))

    def get(self, setting: str) -> str:
        return self.run(lambda: (Path("/proc/sys/net") / setting).read_text().strip())

    def tcp(self, address: str, port: int, wait_s: float = WAIT_S) -> bool:
        """Whether an echo comes back over TCP."""

        def attempt() -> bool:
            try:
                with socket.create_connection((address, port), wait_s) as tcp:
                    tcp.sendall(b"hello")
                    return tcp.recv(16) == b"hello"
            except OSError:
                return False

        return self.run(attempt)

    def udp(self, address: str, port: int, wait_s: float = WAIT_S) -> bool:
        """Whether an echo comes back over UDP."""
        return self.run(lambda: exchange(0, (address, port), b"hello", wait_s))

    def ping(self, address: str, wait_s: float = WAIT_S) -> bool:
        request = b"\x08\x00\x00\x00\x00\x00\x00\x01fairwater"
        return self.run(lambda: exchange(socket.IPPROTO_ICMP, (address, 0), request, wait_s))

    def cut_off(self, address: str, port: int | None = None, kind: str = "tcp udp") -> bool:
        """Whether nothing answers: over TCP and UDP at `port`, or to a ping where no port is given."""
        if port is None:
            return not self.ping(address, SILENCE_S)
        attempts = {"tcp": self.tcp, "udp": self.udp}
        return not any(attempts[one](address, port, SILENCE_S) for one in kind.split())


class Machine(Host):
    """The machine under test; the test's own thread is in its namespace."""

    def __init__(self, namespace: int, beyond: Host, resolv_conf: Path, stack: ExitStack) -> None:
        super().__init__(namespace)
        self.beyond, self.resolv_conf, self._stack = beyond, resolv_conf, stack

    def network(
        self, instance: int = 12, pool: str = POOL, mtu: int | None = None, allow: tuple[str, ...] = ()
    ) -> WorkspaceNetwork:
        network = WorkspaceNetwork(instance, pool, mtu, allow, self.resolv_conf)
        self._stack.callback(network.release)
        return network

    def host(self) -> Host:
        namespace = new_namespace()
        self._stack.callback(os.close, namespace)
        return Host(namespace)

    def workspace(self, network: WorkspaceNetwork, slot: int, *, opened: bool = True) -> Workspace:
        host = self.host()
        workspace = Workspace(host.namespace, slot, network.create(slot, host.path))
        if opened:
            network.open(slot)
        return workspace

    def echo(self, host: Host, address: str, port: int) -> None:
        """An echo server on `host`, TCP and UDP, until the test ends."""
        self._stack.callback(EchoServer([host.run(lambda: listen(address, port))]).close)

    def name_server(self, host: Host, address: str, deaf_to: int = 0) -> None:
        """A DNS server on `host` that answers every question but the first `deaf_to`, until the test ends."""
        udp = host.run(lambda: bound(address, 53))
        thread = threading.Thread(target=answer_questions, args=(udp, deaf_to))
        thread.start()

        def stop() -> None:
            # shutdown() wakes the reading thread, though an unconnected socket calls it an error.
            with suppress(OSError):
                udp.shutdown(socket.SHUT_RDWR)
            thread.join()
            udp.close()

        self._stack.callback(stop)

    def without_rules(self, network: WorkspaceNetwork) -> None:
        """The sabotage: every filter rule of the agent's gone, translation left."""
        for chain in ("arriving", "input", "forward"):
            run("nft", "flush", "chain", "inet", network.plan.table, chain)


class Workspace(Host):
    def __init__(self, namespace: int, slot: int, address: str) -> None:
        super().__init__(namespace)
        self.slot, self.address = slot, address


def run(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def bound(address: str, port: int) -> socket.socket:
    udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    udp.bind((address, port))
    return udp


def exchange(protocol: int, target: tuple[str, int], data: bytes, wait_s: float) -> bool:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM, protocol) as datagrams:
        datagrams.settimeout(wait_s)
        try:
            datagrams.connect(target)
            datagrams.send(data)
            return len(datagrams.recv(64)) == len(data)
        except OSError:
            return False


def answer_questions(udp: socket.socket, deaf_to: int) -> None:
    for number in count():
        question, sender = udp.recvfrom(512)
        if not question:
            return
        if number < deaf_to:
            continue
        with suppress(OSError):  # no way back to who asked
            udp.sendto(question[:2] + bytes([question[2] | 0x80]) + question[3:], sender)


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    home = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
    with ExitStack() as stack:
        stack.callback(os.close, home)
        stack.callback(setns, home, CLONE_NEWNET)
        unshare(CLONE_NEWNET)
        namespace = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
        stack.callback(os.close, namespace)
        beyond = Host(new_namespace())
        stack.callback(os.close, beyond.namespace)
        resolv_conf = tmp_path / "resolv.conf"
        resolv_conf.write_text("nameserver 203.0.113.1\n")
        machine = Machine(namespace, beyond, resolv_conf, stack)
        machine.ip("link set lo up")
        machine.ip(f"link add uplink mtu {UPLINK_MTU} type veth peer name lan0 mtu {UPLINK_MTU} netns {beyond.path}")
        machine.ip("address add 203.0.113.2/24 dev uplink")
        beyond.ip("address add 203.0.113.1/24 dev lan0")
        for address in BEYOND_ADDRESSES:
            beyond.ip(f"address add {address}/32 dev lo")
        beyond.set("ipv4/ping_group_range", "0 0")
        beyond.ip("link set lo up")
        beyond.ip("link set lan0 up")
        machine.ip("link set uplink up")
        machine.ip("route add default via 203.0.113.1")
        machine.name_server(beyond, "203.0.113.1")
        yield machine


@pytest.fixture
def network(machine: Machine) -> Iterator[WorkspaceNetwork]:
    """A prepared network; afterwards nothing of it is left on the machine."""
    network = machine.network()
    network.prepare()
    yield network
    network.shutdown()
    assert [name for _, name in socket.if_nameindex() if name.startswith("fw")] == []
    assert network.plan.table not in run("nft", "list", "tables")
