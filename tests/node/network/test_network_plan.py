"""Addresses, settings and name servers, without a machine."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fairwater.domain.failure import Permanent, Temporary
from fairwater.node.network_plan import INSTANCES, AddressPlan, Route, parse_allowed, plan_addresses, refuse_clashes
from fairwater.node.network_resolvers import chosen_resolvers, machine_resolvers

POOL = "10.213.0.0/16"


def test_each_agent_has_a_sixteenth_of_the_pool() -> None:
    plan = plan_addresses(1, POOL)
    assert plan.share == IPv4Network("10.213.16.0/20")
    assert (str(plan.gateway), str(plan.address(0)), str(plan.address(255))) == (
        "10.213.16.1",
        "10.213.16.2",
        "10.213.17.1",
    )
    assert str(plan.probe_host) == "10.213.31.254"
    assert (plan.device(255), plan_addresses(15, POOL).device(255)) == ("fw1-255", "fwf-255")


@given(st.integers(8, 24), st.integers(0, INSTANCES - 1), st.integers(0, INSTANCES - 1))
def test_no_two_agents_or_slots_share_an_address(prefix: int, one: int, other: int) -> None:
    def addresses(plan: AddressPlan) -> list[IPv4Address]:
        return [plan.gateway, plan.probe_host, *(plan.address(slot) for slot in range(plan.slots))]

    first, second = (plan_addresses(n, f"10.0.0.0/{prefix}") for n in (one, other))
    assert len(set(addresses(first))) == first.slots + 2
    assert all(address in first.share for address in addresses(first))
    assert one == other or not set(addresses(first)) & set(addresses(second))


@given(st.integers(0, INSTANCES - 1), st.integers(0, 255))
def test_a_device_name_leads_back_to_its_slot_and_fits_the_kernel(instance: int, slot: int) -> None:
    plan = plan_addresses(instance, POOL)
    assert plan.slot_of(plan.device(slot)) == slot
    assert len(plan.device(slot)) <= 15
    assert plan_addresses((instance + 1) % INSTANCES, POOL).slot_of(plan.device(slot)) is None
    assert plan.slot_of(plan.probe_device) is None


@pytest.mark.parametrize("pool", ["10.213.0.0/25", "10.213.0.1/16", "fd00::/48", "everything"])
def test_an_unusable_pool_is_refused_by_its_key(pool: str) -> None:
    with pytest.raises(Permanent, match=r"^network\.pool: "):
        plan_addresses(0, pool)


def test_a_slot_beyond_a_small_pool_is_refused() -> None:
    plan = plan_addresses(0, "10.213.0.0/24")
    assert plan.address(11) == IPv4Address("10.213.0.13")
    with pytest.raises(Permanent, match="has addresses for slots 0 to 11 of each agent"):
        plan.address(12)


@pytest.mark.parametrize(
    "entry",
    ["10.0.0.5", "10.0.0.5/32:0", "10.0.0.5/32:70000", "[fd00::5/128]:1", "10.213.4.0/24:80", "127.0.0.1/32:80"],
)
def test_an_unusable_allowance_is_refused_by_its_key(entry: str) -> None:
    with pytest.raises(Permanent, match=r"^network\.allow: "):
        parse_allowed([entry], plan_addresses(0, POOL))


def test_a_vpns_halved_default_route_and_own_devices_are_no_overlap() -> None:
    plan = plan_addresses(2, POOL)
    routes = (
        Route(IPv4Network("0.0.0.0/0"), "eth0"),
        Route(IPv4Network("0.0.0.0/1"), "tun0"),
        Route(IPv4Network("192.0.2.0/24"), "eth0"),
        Route(IPv4Network("10.213.32.2/32"), "fw2-0"),
        Route(IPv4Network("10.213.32.1/32"), "fw2-0", local=True),
        Route(IPv4Network("10.213.0.9/32"), "fw0-7"),
        Route(IPv4Network("10.213.47.254/32"), "fwp2"),
        Route(IPv4Network("10.213.32.5/32"), "", local=True),  # its device has just gone
    )
    refuse_clashes(plan, routes, (IPv4Address("192.0.2.53"),))
    with pytest.raises(Permanent, match="contains the DNS server"):
        refuse_clashes(plan, routes, (IPv4Address("10.213.99.1"),))


def resolvers(folder: Path, text: str, upstream: str | None = None) -> list[str]:
    (folder / "resolv.conf").write_text(text)
    if upstream is not None:
        (folder / "upstream").write_text(upstream)
    return [str(server) for server in machine_resolvers(folder / "resolv.conf", folder / "upstream")]


def test_the_machines_name_servers_are_given_as_far_as_ipv4_reaches_them(tmp_path: Path) -> None:
    text = "# made by hand\nsearch example\nnameserver 9.9.9.9\nnameserver fd00::1\nnameserver 10.0.0.2 \nnameserver\n"
    assert resolvers(tmp_path, text) == ["9.9.9.9", "10.0.0.2"]


def test_no_more_name_servers_are_given_than_the_resolver_reads(tmp_path: Path) -> None:
    text = "".join(f"nameserver 10.0.0.{n}\n" for n in (1, 1, 2, 3, 4))
    assert resolvers(tmp_path, text) == ["10.0.0.1", "10.0.0.2", "10.0.0.3"]


def test_behind_systemds_stub_its_upstream_is_taken(tmp_path: Path) -> None:
    assert resolvers(tmp_path, "nameserver 127.0.0.53\n", "nameserver 10.1.1.1\n") == ["10.1.1.1"]


@pytest.mark.parametrize("text", ["nameserver 127.0.0.1\n", "nameserver ::1\n", "nameserver fe80::1%eth0\n"])
def test_a_name_server_that_workspaces_cannot_reach_is_said(tmp_path: Path, text: str) -> None:
    with pytest.raises(Temporary, match=r"set network\.nameservers") as failure:
        resolvers(tmp_path, text)
    assert failure.value.code == "no_nameserver"


def test_a_machine_without_name_servers_gives_none(tmp_path: Path) -> None:
    assert resolvers(tmp_path, "search example\n") == []
    assert machine_resolvers(tmp_path / "missing", tmp_path / "missing") == ()


def test_unreachable_name_servers_in_the_settings_are_refused() -> None:
    assert chosen_resolvers(("9.9.9.9",)) == (IPv4Address("9.9.9.9"),)
    with pytest.raises(Permanent, match=r"^network\.nameservers: "):
        chosen_resolvers(("127.0.0.1",))
