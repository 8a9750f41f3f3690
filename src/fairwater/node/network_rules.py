"""Decides who may send what to whom: the nftables table of one agent, as commands that replace it in one transaction.

Pure. Each packet of a workspace is judged anew, so that closing a slot ends its established flows too; only answers
to what the machine itself has begun pass by their connection's state. The sets `open` and `probing` (device and
address) say which slots may reach the world, and the probe's listeners; replacing the rules keeps `open`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network
from typing import Any

from fairwater.node.network_plan import METADATA, AddressPlan, Allowed
from fairwater.node.nft import Command

Expression = dict[str, Any]

BEFORE_DESTINATION_NAT = -150
"""After connection tracking (-200), before a published port of the machine's is turned into another address (-100)."""

ACCEPT: Expression = {"accept": None}
DROP: Expression = {"drop": None}
OPEN, PROBING, SLOTS = "open", "probing", "slots"


@dataclass(frozen=True, slots=True)
class Policy:
    """What the rules depend on. `probe_port` is that of the agent's listeners (TCP and UDP) on the gateway."""

    plan: AddressPlan
    allowed: tuple[Allowed, ...]
    resolvers: tuple[IPv4Address, ...]
    probe_port: int


def replace_table(policy: Policy, opened: Iterable[int]) -> list[Command]:
    """Commands that create or replace the table; `opened` are slots that are open whatever the table says."""
    plan = policy.plan
    commands: list[Command] = [{"add": {"table": {"family": "inet", "name": plan.table}}}]
    commands += [
        {"add": {"set": {"family": "inet", "table": plan.table, "name": name, "type": ["ifname", "ipv4_addr"]}}}
        for name in (OPEN, PROBING, SLOTS)
    ]
    chains = _chains(policy)
    commands += [_chain(plan, name, *_HOOKS.get(name, ())) for name in chains]
    # Without a chain named, `flush` empties all chains of the table; sets stay as they are.
    commands.append({"flush": {"table": {"family": "inet", "name": plan.table}}})
    commands += [{"flush": {"set": {"family": "inet", "table": plan.table, "name": name}}} for name in (PROBING, SLOTS)]
    commands.append(_elements("add", plan, SLOTS, range(plan.slots)))
    slots = sorted(opened)
    if slots:
        commands.append(_elements("add", plan, OPEN, slots))
    commands += [
        {"add": {"rule": {"family": "inet", "table": plan.table, "chain": chain, "expr": rule}}}
        for chain, rules in chains.items()
        for rule in rules
    ]
    return commands


def delete_table(plan: AddressPlan) -> list[Command]:
    """Commands that end with no table, whether there was one or not."""
    table = {"table": {"family": "inet", "name": plan.table}}
    return [{"add": table}, {"delete": table}]


def admit(plan: AddressPlan, name: str, slot: int) -> list[Command]:
    return [_elements("add", plan, name, (slot,))]


def expel(plan: AddressPlan, slot: int, *names: str) -> list[Command]:
    """Adding first makes the deletion of an element that is not there go through."""
    return [_elements(verb, plan, name, (slot,)) for name in names for verb in ("add", "delete")]


_HOOKS: dict[str, tuple[str, str, int]] = {
    "arriving": ("filter", "prerouting", BEFORE_DESTINATION_NAT),
    "input": ("filter", "input", 0),
    "forward": ("filter", "forward", 0),
    "leaving": ("nat", "postrouting", 100),
}


def _chains(policy: Policy) -> dict[str, list[list[Expression]]]:
    """The rules by chain; chains that are jumped to come first."""
    plan = policy.plan
    workspace, probe = _is("iifname", plan.devices), _is("iifname", plan.probe_device)
    return {
        "to_machine": _to_machine(policy),
        "from_workspace": _from_workspace(policy),
        "to_workspace": [
            # In the forward hook only what a workspace asked for may come in; the machine itself comes from output.
            [*_answer(), _listed("oifname", "daddr", OPEN), ACCEPT],
            [*_answer(), _listed("oifname", "daddr", PROBING), ACCEPT],
            [DROP],
        ],
        "arriving": [
            [workspace, _is("nfproto", "ipv6"), DROP],
            [workspace, _listed("iifname", "saddr", SLOTS, op="!="), DROP],
            [workspace, _destination_type("!=", "unicast"), {"jump": {"target": "to_machine"}}],
            [probe, _is("nfproto", "ipv6"), DROP],
            [probe, _ct("direction", "original"), DROP],
            # From outside nothing is begun with a workspace, nor with the gateway's listeners.
            [_is("iifname", "fw*", "!="), _is("iifname", "lo", "!="), _to(plan.share), DROP],
        ],
        "input": [[workspace, {"jump": {"target": "to_machine"}}]],
        "forward": [
            [workspace, {"jump": {"target": "from_workspace"}}],
            [_is("oifname", plan.devices), {"jump": {"target": "to_workspace"}}],
        ],
        "leaving": [[_from(plan.share), _is("oifname", "fw*", "!="), _is("oifname", "lo", "!="), {"masquerade": None}]],
    }


def _to_machine(policy: Policy) -> list[list[Expression]]:
    """What a workspace may send to the machine itself, whatever address of it is used."""
    gateway, probing = _to(policy.plan.gateway), _listed("iifname", "saddr", PROBING)
    port = {"match": {"op": "==", "left": _payload("th", "dport"), "right": policy.probe_port}}
    return [
        [*_answer(), ACCEPT],
        [gateway, {"match": {"op": "==", "left": _payload("icmp", "type"), "right": "echo-request"}}, ACCEPT],
        [probing, gateway, _transport(), port, ACCEPT],
        *([probing, *rule, ACCEPT] for rule in _resolver_rules(policy.resolvers)),
        [_listed("iifname", "saddr", OPEN, op="!="), DROP],
        *([*rule, ACCEPT] for rule in (*_resolver_rules(policy.resolvers), *_allow_rules(policy.allowed))),
        [DROP],
    ]


def _from_workspace(policy: Policy) -> list[list[Expression]]:
    """What a workspace may send on through the machine."""
    plan, probing = policy.plan, _listed("iifname", "saddr", PROBING)
    resolvers = _resolver_rules(policy.resolvers)
    return [
        [probing, _is("oifname", plan.probe_device), ACCEPT],
        [_is("oifname", "fw*"), DROP],
        [_to(plan.pool), DROP],
        *([probing, *rule, ACCEPT] for rule in resolvers),
        [_listed("iifname", "saddr", OPEN, op="!="), DROP],
        *([*rule, ACCEPT] for rule in (*resolvers, *_allow_rules(policy.allowed))),
        [_to(*METADATA), DROP],
        # A port that the machine publishes (a container's, say) is a service of the machine.
        [{"match": {"op": "in", "left": {"ct": {"key": "status"}}, "right": "dnat"}}, DROP],
        [_ct("state", "invalid"), DROP],
        [ACCEPT],
    ]


def _resolver_rules(resolvers: Sequence[IPv4Address]) -> list[list[Expression]]:
    if not resolvers:
        return []
    port = {"match": {"op": "==", "left": _payload("th", "dport"), "right": 53}}
    return [[_to(*resolvers), _transport(), port]]


def _allow_rules(allowed: Sequence[Allowed]) -> list[list[Expression]]:
    return [
        [_to(one.network), _transport(), {"match": {"op": "==", "left": _payload("th", "dport"), "right": one.port}}]
        for one in allowed
    ]


def _chain(plan: AddressPlan, name: str, kind: str = "", hook: str = "", priority: int = 0) -> Command:
    chain: dict[str, Any] = {"family": "inet", "table": plan.table, "name": name}
    if hook:
        chain |= {"type": kind, "hook": hook, "prio": priority, "policy": "accept"}
    return {"add": {"chain": chain}}


def _elements(verb: str, plan: AddressPlan, name: str, slots: Iterable[int]) -> Command:
    elements = [{"concat": [plan.device(slot), str(plan.address(slot))]} for slot in slots]
    return {verb: {"element": {"family": "inet", "table": plan.table, "name": name, "elem": elements}}}


def _is(key: str, value: str, op: str = "==") -> Expression:
    return {"match": {"op": op, "left": {"meta": {"key": key}}, "right": value}}


def _payload(protocol: str, field: str) -> Expression:
    return {"payload": {"protocol": protocol, "field": field}}


def _listed(device: str, address: str, name: str, op: str = "==") -> Expression:
    pair = {"concat": [{"meta": {"key": device}}, _payload("ip", address)]}
    return {"match": {"op": op, "left": pair, "right": f"@{name}"}}


def _ct(key: str, value: str) -> Expression:
    return {"match": {"op": "==" if key == "direction" else "in", "left": {"ct": {"key": key}}, "right": value}}


def _answer() -> tuple[Expression, Expression]:
    """Packets that answer what the other side has begun."""
    state = {"match": {"op": "in", "left": {"ct": {"key": "state"}}, "right": ["established", "related"]}}
    return state, _ct("direction", "reply")


def _transport() -> Expression:
    return {"match": {"op": "==", "left": {"meta": {"key": "l4proto"}}, "right": {"set": ["tcp", "udp"]}}}


def _destination_type(op: str, kind: str) -> Expression:
    return {"match": {"op": op, "left": {"fib": {"result": "type", "flags": ["daddr"]}}, "right": kind}}


def _to(*targets: IPv4Address | IPv4Network) -> Expression:
    return _matches("daddr", targets)


def _from(source: IPv4Network) -> Expression:
    return _matches("saddr", (source,))


def _matches(field: str, targets: Sequence[IPv4Address | IPv4Network]) -> Expression:
    values = [
        {"prefix": {"addr": str(target.network_address), "len": target.prefixlen}}
        if isinstance(target, IPv4Network)
        else str(target)
        for target in dict.fromkeys(targets)
    ]
    return {"match": {"op": "==", "left": _payload("ip", field), "right": {"set": values}}}
