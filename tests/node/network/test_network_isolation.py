"""Who reaches whom. Where something must not be reached, the same attempt is shown to succeed without the rules."""

from __future__ import annotations

import socket
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from fairwater.node.network import WorkspaceNetwork

if TYPE_CHECKING:
    from tests.node.network.conftest import Host, Machine

pytestmark = pytest.mark.root

OUTSIDE = "198.51.100.7"
LAN = "203.0.113.2"
METADATA_V4 = ("169.254.169.254", "168.63.129.16", "100.100.100.200", "192.0.0.192")
METADATA_V6 = "fd00:ec2::254"


def test_workspaces_reach_the_outside_through_translation(machine: Machine, network: WorkspaceNetwork) -> None:
    machine.echo(machine.beyond, OUTSIDE, 8080)
    workspace = machine.workspace(network, 0)
    assert workspace.tcp(OUTSIDE, 8080)
    assert workspace.udp(OUTSIDE, 8080)
    assert workspace.ping(OUTSIDE)


def test_a_closed_slot_reaches_nothing_but_the_gateways_echo(machine: Machine, network: WorkspaceNetwork) -> None:
    machine.echo(machine.beyond, OUTSIDE, 8080)
    workspace = machine.workspace(network, 0, opened=False)
    assert workspace.cut_off(OUTSIDE, 8080)
    assert workspace.cut_off("203.0.113.1", 53, "udp")
    assert workspace.cut_off(str(network.plan.probe_host), 4000, "tcp")
    assert workspace.ping(str(network.plan.gateway))


def test_closing_ends_flows_that_are_established(machine: Machine, network: WorkspaceNetwork) -> None:
    machine.echo(machine.beyond, OUTSIDE, 8080)
    workspace = machine.workspace(network, 0)
    with workspace.run(lambda: socket.create_connection((OUTSIDE, 8080), 1)) as tcp:
        tcp.sendall(b"one")
        assert tcp.recv(8) == b"one"
        network.close(0)
        tcp.settimeout(0.4)
        tcp.sendall(b"two")
        with pytest.raises(TimeoutError):
            tcp.recv(8)
        network.open(0)  # what was dropped is sent again: only the rules had stopped it
        tcp.settimeout(5)
        assert tcp.recv(8) == b"two"


@pytest.mark.parametrize("other", [12, 13])
def test_workspaces_do_not_reach_one_another(machine: Machine, network: WorkspaceNetwork, other: int) -> None:
    second = network if other == 12 else machine.network(other)
    second.prepare()
    one, two = machine.workspace(network, 1), machine.workspace(second, 2)
    machine.echo(two, two.address, 8080)
    assert one.cut_off(two.address, 8080)
    assert one.cut_off(two.address)
    machine.without_rules(network)
    machine.without_rules(second)
    assert one.tcp(two.address, 8080)
    assert one.udp(two.address, 8080)
    assert one.ping(two.address)
    second.prepare()
    if other != 12:
        second.shutdown()


def test_workspaces_do_not_reach_services_of_the_machine(machine: Machine, network: WorkspaceNetwork) -> None:
    workspace = machine.workspace(network, 0)
    services = (LAN, str(network.plan.gateway))
    for address in services:
        machine.echo(machine, address, 8080)
    assert [workspace.cut_off(address, 8080) for address in services] == [True, True]
    assert workspace.cut_off(LAN)
    machine.without_rules(network)
    assert [workspace.tcp(address, 8080) and workspace.udp(address, 8080) for address in services] == [True, True]
    assert workspace.ping(LAN)


def test_workspaces_do_not_reach_the_machines_loopback(machine: Machine, network: WorkspaceNetwork) -> None:
    workspace = machine.workspace(network, 0)
    machine.set(f"ipv4/conf/{network.plan.device(0)}/route_localnet", "1")  # as some load balancers set it
    workspace.set("ipv4/conf/eth0/route_localnet", "1")
    for loopback in ("127.0.0.0/8", "127.0.0.1"):  # which is then sent out
        workspace.ip(f"route delete local {loopback} dev lo table local")
    workspace.ip(f"route add 127.0.0.0/8 via {network.plan.gateway} dev eth0 onlink src {workspace.address}")
    with listening(machine, "127.0.0.1") as arrived:
        workspace.run(lambda: send("", "127.0.0.1"))
        with pytest.raises(TimeoutError):
            arrived.recv(16)
        machine.without_rules(network)
        workspace.run(lambda: send("", "127.0.0.1"))
        assert arrived.recv(16) == b"unasked"


def test_workspaces_do_not_reach_ports_that_the_machine_publishes(machine: Machine, network: WorkspaceNetwork) -> None:
    container = machine.host()
    machine.ip(f"link add docker0 type veth peer name eth0 netns {container.path}")
    machine.ip("address add 172.17.0.1/24 dev docker0")
    machine.ip("link set docker0 up")
    container.ip("address add 172.17.0.2/24 dev eth0")
    container.ip("link set eth0 up")
    container.ip("route add default via 172.17.0.1")
    machine.echo(container, "172.17.0.2", 80)
    rules = f"add table ip other; add chain ip other published {{ type nat hook prerouting priority dstnat; }}; \
        add rule ip other published ip daddr {LAN} tcp dport 8080 dnat to 172.17.0.2:80"
    subprocess.run(["nft", rules], check=True)
    workspace = machine.workspace(network, 0)
    assert machine.beyond.tcp(LAN, 8080)
    assert workspace.cut_off(LAN, 8080, "tcp")
    machine.without_rules(network)
    assert workspace.tcp(LAN, 8080)


def test_the_outside_cannot_begin_anything_with_a_workspace(machine: Machine, network: WorkspaceNetwork) -> None:
    workspace = machine.workspace(network, 0)
    machine.echo(workspace, workspace.address, 8080)
    machine.beyond.ip(f"route add 10.213.0.0/16 via {LAN}")
    assert machine.beyond.cut_off(workspace.address, 8080, "tcp")
    assert machine.beyond.cut_off(str(network.plan.gateway))
    machine.without_rules(network)
    assert machine.beyond.tcp(workspace.address, 8080)


def test_the_machine_itself_reaches_its_workspaces(machine: Machine, network: WorkspaceNetwork) -> None:
    workspace = machine.workspace(network, 0)
    machine.echo(workspace, workspace.address, 80)
    assert machine.tcp(workspace.address, 80)
    assert machine.udp(workspace.address, 80)


@pytest.mark.parametrize("address", METADATA_V4)
def test_metadata_addresses_are_blocked(machine: Machine, network: WorkspaceNetwork, address: str) -> None:
    machine.echo(machine.beyond, address, 80)
    workspace = machine.workspace(network, 0)
    assert workspace.cut_off(address, 80)
    machine.without_rules(network)
    assert workspace.tcp(address, 80)


def test_metadata_addresses_are_blocked_over_ipv6(machine: Machine, network: WorkspaceNetwork) -> None:
    device, workspace = network.plan.device(0), machine.workspace(network, 0)
    # A workspace that has turned IPv6 on, on a machine that would forward it.
    machine.set(f"ipv6/conf/{device}/disable_ipv6", "0")
    workspace.set("ipv6/conf/eth0/disable_ipv6", "0")
    machine.set("ipv6/conf/all/forwarding", "1")
    machine.ip(f"address add fd00:1::1/64 dev {device} nodad")
    workspace.ip("address add fd00:1::2/64 dev eth0 nodad")
    workspace.ip("route add default via fd00:1::1")
    machine.ip("address add fd00:2::1/64 dev uplink nodad")
    machine.beyond.ip("address add fd00:2::2/64 dev lan0 nodad")
    machine.beyond.ip("route add fd00:1::/64 via fd00:2::1")
    machine.ip("route add fd00:ec2::/32 via fd00:2::2")
    machine.beyond.ip(f"address add {METADATA_V6}/128 dev lo nodad")
    with machine.beyond.run(lambda: socket.create_server((METADATA_V6, 80), family=socket.AF_INET6)):

        def connects(wait_s: float) -> bool:
            try:
                with socket.create_connection((METADATA_V6, 80), wait_s):
                    return True
            except OSError:
                return False

        machine.without_rules(network)
        assert workspace.run(lambda: connects(10))  # neighbours are found only after duplicate detection
        network.prepare()
        assert not workspace.run(lambda: connects(0.4))


def test_ipv6_is_off_but_for_the_loopback(machine: Machine, network: WorkspaceNetwork) -> None:
    workspace = machine.workspace(network, 0)
    addresses = workspace.run(Path("/proc/thread-self/net/if_inet6").read_text)
    assert addresses.split() == ["00000000000000000000000000000001", "01", "80", "10", "80", "lo"]


def test_a_resolver_at_a_blocked_address_is_reached_on_its_port_alone(machine: Machine) -> None:
    machine.resolv_conf.write_text("nameserver 169.254.169.254\n")
    machine.name_server(machine.beyond, "169.254.169.254")
    machine.echo(machine.beyond, "169.254.169.254", 80)
    network = machine.network()
    network.prepare()
    workspace = machine.workspace(network, 0)
    network.probe(0, workspace.path)
    assert workspace.udp("169.254.169.254", 53)
    assert workspace.cut_off("169.254.169.254", 80, "tcp")
    network.shutdown()


def test_what_the_settings_allow_is_reached_and_its_neighbours_are_not(machine: Machine) -> None:
    network = machine.network(allow=("169.254.169.254/32:80", f"{LAN}/32:5432"))
    network.prepare()
    workspace = machine.workspace(network, 0)
    for host, address, port in (
        (machine.beyond, "169.254.169.254", 80),
        (machine.beyond, "169.254.169.254", 81),
        (machine, LAN, 5432),
        (machine, LAN, 5433),
    ):
        machine.echo(host, address, port)
    assert workspace.tcp("169.254.169.254", 80)
    assert workspace.cut_off("169.254.169.254", 81, "tcp")
    assert workspace.tcp(LAN, 5432)
    assert workspace.cut_off(LAN, 5433, "tcp")
    network.close(0)
    assert workspace.cut_off(LAN, 5432, "tcp")
    network.shutdown()


@pytest.mark.parametrize("source", ["10.213.192.3", "198.51.100.200"])
def test_spoofed_source_addresses_are_dropped(machine: Machine, network: WorkspaceNetwork, source: str) -> None:
    workspace = machine.workspace(network, 0)
    machine.workspace(network, 1)
    workspace.ip(f"address add {source}/32 dev eth0")
    with listening(machine.beyond, OUTSIDE) as arrived:
        machine.set(f"ipv4/conf/{network.plan.device(0)}/rp_filter", "0")  # the rules hold by themselves
        workspace.run(lambda: send(source, OUTSIDE))
        with pytest.raises(TimeoutError):
            arrived.recv(16)
        machine.without_rules(network)
        workspace.run(lambda: send(source, OUTSIDE))
        assert arrived.recv(16) == b"unasked"
        machine.set(f"ipv4/conf/{network.plan.device(0)}/rp_filter", "1")  # and so does the kernel's own check
        workspace.run(lambda: send(source, OUTSIDE))
        with pytest.raises(TimeoutError):
            arrived.recv(16)


def listening(host: Host, address: str) -> socket.socket:
    """A UDP socket on `host`, for what comes without a way back."""
    arrived = host.run(lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
    arrived.bind((address, 8080))
    arrived.settimeout(0.3)
    return arrived


def send(source: str, address: str) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
        udp.bind((source, 0))
        udp.sendto(b"unasked", (address, 8080))
