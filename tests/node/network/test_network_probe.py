"""The probe passes where the network works, and names what does not."""

from __future__ import annotations

import subprocess
import time
from typing import TYPE_CHECKING

import pytest

from fairwater.domain.failure import Permanent, Temporary
from fairwater.node.network import WorkspaceNetwork
from fairwater.node.network_dns import WAITS_S

if TYPE_CHECKING:
    from tests.node.network.conftest import Machine, Workspace

pytestmark = pytest.mark.root


def reason_of_failure(network: WorkspaceNetwork, workspace: Workspace) -> str:
    with pytest.raises(Temporary) as failure:
        network.probe(workspace.slot, workspace.path)
    assert failure.value.code == "probe_failed"
    return failure.value.message


@pytest.mark.pm(24)
def test_a_parked_slot_forwards_and_carries_packets_of_the_routes_size(
    machine: Machine, network: WorkspaceNetwork
) -> None:
    workspace = machine.workspace(network, 0, opened=False)
    assert network.mtu == 1400
    assert " mtu 1400 " in subprocess.check_output(["nsenter", f"--net={workspace.path}", "ip", "link"], text=True)
    assert workspace.get("ipv4/ip_forward") == "1"
    network.probe(0, workspace.path)
    assert subprocess.check_output(["nft", "list", "set", "inet", network.plan.table, "probing"]).count(b"fwc-") == 0


@pytest.mark.pm(24, sabotage=True)
@pytest.mark.parametrize(
    ("setting", "reason"),
    [
        ("ipv4/ip_forward", "net.ipv4.ip_forward is 0 inside"),
        ("ipv4/conf/eth0/forwarding", "net.ipv4.conf.eth0.forwarding is 0 inside"),
    ],
)
def test_the_probe_fails_without_forwarding_inside(
    machine: Machine, network: WorkspaceNetwork, setting: str, reason: str
) -> None:
    workspace = machine.workspace(network, 0)
    workspace.set(setting, "0")
    assert reason in reason_of_failure(network, workspace)


@pytest.mark.pm(24, sabotage=True)
@pytest.mark.parametrize("setting", ["ip_forward", "conf/fwc-0/forwarding"])
def test_the_probe_fails_where_the_machine_does_not_forward(
    machine: Machine, network: WorkspaceNetwork, setting: str
) -> None:
    workspace = machine.workspace(network, 0)
    machine.set(f"ipv4/{setting}", "0")
    reason = reason_of_failure(network, workspace)
    assert "forwarding through the machine: no answer to a packet of 1400 bytes" in reason
    assert f"net.ipv4.{setting.replace('/', '.')} is 0 on the machine and must be 1" in reason


@pytest.mark.pm(24, sabotage=True)
@pytest.mark.parametrize("end", ["inner", "outer", "route", "device"])
def test_the_probe_fails_where_an_mtu_is_not_the_routes(machine: Machine, network: WorkspaceNetwork, end: str) -> None:
    workspace = machine.workspace(network, 0)
    if end == "inner":
        workspace.ip("link set eth0 mtu 1500")
    elif end == "outer":
        machine.ip("link set fwc-0 mtu 1500")
    elif end == "route":
        machine.ip("route change default via 203.0.113.1 mtu 1280")
    else:
        machine.ip("link set uplink mtu 1300")
    assert "MTU" in reason_of_failure(network, workspace)
    network.create(0, workspace.path)
    network.prepare()
    network.probe(0, workspace.path)


@pytest.mark.pm(24, sabotage=True)
def test_the_probe_fails_where_full_packets_vanish_on_the_way(machine: Machine, network: WorkspaceNetwork) -> None:
    workspace = machine.workspace(network, 0)
    rules = "add table ip other; add chain ip other c { type filter hook forward priority 0; }; \
        add rule ip other c meta length > 1300 drop"
    subprocess.run(["nft", rules], check=True)
    assert "forwarding through the machine: no answer to a packet of 1400 bytes" in reason_of_failure(
        network, workspace
    )


def test_the_probe_names_another_firewall_that_drops(machine: Machine, network: WorkspaceNetwork) -> None:
    workspace = machine.workspace(network, 0)
    rules = "add table ip filter; add chain ip filter FORWARD { type filter hook forward priority 0; policy drop; }"
    subprocess.run(["nft", rules], check=True)
    assert "another firewall drops by default (ip filter FORWARD)" in reason_of_failure(network, workspace)


def test_the_probe_fails_where_only_the_machine_gets_dns_answers(machine: Machine, network: WorkspaceNetwork) -> None:
    workspace = machine.workspace(network, 0)
    subprocess.run(["nft", "flush", "chain", "inet", network.plan.table, "leaving"], check=True)  # no translation
    started = time.monotonic()
    assert "DNS: 203.0.113.1 answers this machine, but not the workspace" in reason_of_failure(network, workspace)
    assert time.monotonic() - started < 2


def test_the_probe_passes_where_dns_is_silent_for_the_machine_too_and_waits_for_it_once(machine: Machine) -> None:
    machine.resolv_conf.write_text("nameserver 198.51.100.99\n")
    network = machine.network()
    network.prepare()
    workspaces = [machine.workspace(network, slot) for slot in range(4)]
    started = time.monotonic()
    for workspace in workspaces:
        network.probe(workspace.slot, workspace.path)
    assert time.monotonic() - started < 2
    network.shutdown()


def test_the_probe_is_patient_with_a_name_server_that_loses_questions(machine: Machine) -> None:
    machine.resolv_conf.write_text("nameserver 198.51.100.7\n")
    machine.name_server(machine.beyond, "198.51.100.7", deaf_to=len(WAITS_S))  # all of the workspace's first round
    network = machine.network()
    network.prepare()
    workspace = machine.workspace(network, 0)
    network.probe(0, workspace.path)
    network.shutdown()


def test_the_probe_needs_no_uplink(machine: Machine, network: WorkspaceNetwork) -> None:
    machine.ip("route delete default")
    assert network.mtu == 1500
    network.prepare()
    workspace = machine.workspace(network, 0)
    network.probe(0, workspace.path)


def test_a_slot_that_was_never_created_is_named(machine: Machine, network: WorkspaceNetwork) -> None:
    with pytest.raises(Temporary, match="there is no device fwc-9; create it first"):
        network.probe(9, machine.host().path)


def test_a_configured_mtu_above_the_routes_is_refused(machine: Machine) -> None:
    with pytest.raises(Permanent, match=r"network\.mtu: 1500 is more than the 1400 of the default route"):
        machine.network(mtu=1500).prepare()


def test_a_configured_mtu_below_the_routes_is_used(machine: Machine) -> None:
    network = machine.network(mtu=1280)
    network.prepare()
    workspace = machine.workspace(network, 0)
    network.probe(0, workspace.path)
    network.shutdown()
