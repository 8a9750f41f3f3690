"""What comes and goes: slots, restarts of the agent, other people's changes, and the end."""

from __future__ import annotations

import os
import socket
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from fairwater.domain.failure import Permanent, Temporary
from fairwater.node.linux import held_namespaces
from fairwater.node.network import WorkspaceNetwork
from fairwater.node.network_conntrack import forget_flows
from fairwater.node.network_dns import resolver_answers
from fairwater.node.network_resolvers import machine_resolvers
from fairwater.node.network_veth import new_namespace

if TYPE_CHECKING:
    from tests.node.network.conftest import Machine

pytestmark = pytest.mark.root

OUTSIDE = "198.51.100.7"


def ruleset() -> str:
    return subprocess.check_output(["nft", "list", "ruleset"], text=True)


def default_routes() -> str:
    return subprocess.check_output(["ip", "route", "show", "default"], text=True)


def test_every_step_may_be_repeated(machine: Machine, network: WorkspaceNetwork) -> None:
    machine.echo(machine.beyond, OUTSIDE, 8080)
    workspace = machine.workspace(network, 3)
    for _ in range(2):
        network.prepare()
        assert network.create(3, workspace.path) == workspace.address == "10.213.192.5"
        network.probe(3, workspace.path)
        network.open(3)
        assert workspace.tcp(OUTSIDE, 8080)
    for _ in range(2):
        network.close(3)
        network.remove(3)
        assert network.existing() == ()


def test_a_restarted_agent_finds_open_slots_open(machine: Machine) -> None:
    network = machine.network()
    network.prepare()
    machine.echo(machine.beyond, OUTSIDE, 8080)
    one, two = machine.workspace(network, 1), machine.workspace(network, 2, opened=False)
    with one.run(lambda: socket.create_connection((OUTSIDE, 8080), 1)) as tcp:
        network.release()
        successor = machine.network()
        successor.prepare()
        assert successor.existing() == (1, 2)
        tcp.settimeout(2)
        tcp.sendall(b"still")
        assert tcp.recv(8) == b"still"
    assert one.tcp(OUTSIDE, 8080)
    assert two.cut_off(OUTSIDE, 8080, "tcp")
    successor.probe(2, two.path)
    successor.shutdown()


def test_a_new_tenant_of_a_slot_is_closed_whatever_was_left_open(machine: Machine, network: WorkspaceNetwork) -> None:
    machine.echo(machine.beyond, OUTSIDE, 8080)
    first = machine.workspace(network, 0)
    assert first.tcp(OUTSIDE, 8080)
    machine.ip("link delete fwc-0")  # as when the namespace ends
    second = machine.workspace(network, 0, opened=False)
    assert second.cut_off(OUTSIDE, 8080, "tcp")


def test_a_flushed_table_comes_back_with_what_was_open(machine: Machine, network: WorkspaceNetwork) -> None:
    machine.echo(machine.beyond, OUTSIDE, 8080)
    one, two = machine.workspace(network, 1), machine.workspace(network, 2, opened=False)
    subprocess.run(["nft", "flush", "ruleset"], check=True)
    network.open(2)
    assert one.tcp(OUTSIDE, 8080)
    assert two.tcp(OUTSIDE, 8080)
    subprocess.run(["nft", "flush", "ruleset"], check=True)
    network.close(2)
    assert one.tcp(OUTSIDE, 8080)
    assert two.cut_off(OUTSIDE, 8080, "tcp")


def test_other_tables_and_devices_stay_as_they_are(machine: Machine) -> None:
    rules = "add table inet mine; add chain inet mine c { type filter hook forward priority 5; policy accept; }"
    subprocess.run(["nft", rules], check=True)
    devices, before = socket.if_nameindex(), ruleset()
    network = machine.network()
    network.prepare()
    machine.workspace(network, 0)
    network.shutdown()
    assert ruleset() == before
    assert socket.if_nameindex() == devices


def test_a_namespace_of_another_user_namespace_is_configured_from_outside(
    machine: Machine, network: WorkspaceNetwork
) -> None:
    with held_namespaces("--user", "--map-root-user", "--net") as pid:
        path = Path(f"/proc/{pid}/ns/net")
        network.create(0, path)
        network.probe(0, path)
        script = "import socket\nsocket.create_server(('', 80))\nsocket.socket(2, 2, 1)\nprint('ok')"
        unprivileged = ["nsenter", f"--net={path}", "setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]
        assert subprocess.check_output([*unprivileged, "/usr/bin/python3", "-c", script], text=True) == "ok\n"
        network.remove(0)


def test_forgotten_flows_do_not_answer_to_the_next_tenant(machine: Machine, network: WorkspaceNetwork) -> None:
    machine.echo(machine.beyond, OUTSIDE, 8080)
    one, two = machine.workspace(network, 1), machine.workspace(network, 2)
    assert one.udp(OUTSIDE, 8080)
    assert two.udp(OUTSIDE, 8080)
    assert forget_flows(network.plan.address(1)) == 1
    assert forget_flows(network.plan.address(1)) == 0
    assert forget_flows(network.plan.address(2)) == 1


def test_a_changed_name_server_is_followed_by_the_rules(machine: Machine, network: WorkspaceNetwork) -> None:
    assert network.nameservers() == ("203.0.113.1",)
    machine.name_server(machine.beyond, "169.254.169.254")
    machine.resolv_conf.write_text("nameserver 169.254.169.254\n")
    workspace = machine.workspace(network, 0)
    assert workspace.cut_off("169.254.169.254", 53, "udp")
    assert network.nameservers() == ("169.254.169.254",)
    assert workspace.udp("169.254.169.254", 53)


@pytest.mark.parametrize(
    ("command", "clash"),
    [
        ("route add 10.213.7.0/24 via 203.0.113.1", "the route to 10.213.7.0/24 on uplink"),
        ("route add 10.0.0.0/8 via 203.0.113.1", "the route to 10.0.0.0/8 on uplink"),
        ("address add 10.213.1.1/32 dev lo", "the machine's address 10.213.1.1/32 on lo"),
    ],
)
def test_a_pool_that_the_machine_uses_already_is_refused(machine: Machine, command: str, clash: str) -> None:
    machine.ip(command)
    with pytest.raises(Permanent) as refusal:
        machine.network().prepare()
    assert refusal.value.code == "pool_overlap"
    assert refusal.value.message.startswith(f"network.pool: 10.213.0.0/16 overlaps {clash}")


def test_the_pool_cannot_change_under_running_workspaces(machine: Machine, network: WorkspaceNetwork) -> None:
    machine.workspace(network, 0)
    with pytest.raises(Permanent, match=r"network\.pool: slot 0 still runs at 10\.213\.192\.2"):
        machine.network(pool="10.99.0.0/16").prepare()


def test_what_cannot_be_connected_is_said(machine: Machine, network: WorkspaceNetwork) -> None:
    with pytest.raises(Temporary, match="slot 0: /nowhere is gone"):
        network.create(0, Path("/nowhere"))
    host = machine.host()
    network.create(1, host.path)
    with pytest.raises(Temporary, match="has an eth0 from elsewhere"):
        network.create(2, host.path)
    with pytest.raises(Temporary, match="slot 2 has no network yet; create it first"):
        network.open(2)


def test_on_this_very_machine_a_slot_works_and_the_machine_stays_connected() -> None:
    """The one test outside the made-up machine: the real uplink, routes and name server."""
    resolv_conf = Path("/etc/resolv.conf")
    resolvers = machine_resolvers(resolv_conf)
    routes = default_routes()
    answered = [resolver_answers(resolver) for resolver in resolvers]
    network = WorkspaceNetwork(14, "10.213.0.0/16", None, (), resolv_conf)
    namespace = new_namespace()
    try:
        network.prepare()
        path = Path(f"/proc/{os.getpid()}/fd/{namespace}")
        network.create(0, path)
        network.probe(0, path)
        network.open(0)
    finally:
        network.shutdown()
        os.close(namespace)
    assert [resolver_answers(resolver) for resolver in resolvers] == answered
    assert default_routes() == routes
    assert "fairwater_14" not in ruleset()
