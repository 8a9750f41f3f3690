"""The ports of devcontainer.json: `forwardPorts`, `appPort` and `portsAttributes` together.

Decides which rule a port gets. An attribute of a range counts for every port in it that has none of its own.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace

from fairwater.domain.workspaces.config import keys
from fairwater.domain.workspaces.config.findings import Findings, show
from fairwater.domain.workspaces.config.node import Entry, ListNode, Node, ScalarNode, TableNode
from fairwater.domain.workspaces.config.values import PORTS_MAX, entry_text, port_range
from fairwater.domain.workspaces.setup import PortRule

_HERE = {"localhost", "127.0.0.1", "0.0.0.0", ""}
_ON_OPEN = {
    "notify": "notify", "openBrowser": "open-browser", "openBrowserOnce": "open-browser",
    "openPreview": "open-preview", "silent": "ignore", "ignore": "ignore",
}  # fmt: skip
_WITH_HOST = re.compile(r"([A-Za-z0-9.-]*):([0-9]{1,5})")


def read_ports(findings: Findings, root: TableNode) -> tuple[PortRule, ...]:
    """The rules, those of one port first."""
    attributes = _attributes(findings, root.entry("portsAttributes"))
    single: dict[int, PortRule] = {}
    for port in _forwarded(findings, root):
        covering = next((rule for rule in attributes if rule.first <= port <= rule.last), PortRule(port, port))
        single.setdefault(port, replace(covering, first=port, last=port))
    for rule in attributes:
        if rule.first == rule.last:
            single.setdefault(rule.first, rule)
    return (*single.values(), *(rule for rule in attributes if rule.first != rule.last))[:PORTS_MAX]


def _forwarded(findings: Findings, root: TableNode) -> Iterator[int]:
    entry = root.entry("forwardPorts")
    for node in findings.items("forwardPorts", entry.value, PORTS_MAX) if entry else ():
        port = _port(findings, "forwardPorts", node)
        if port is not None:
            yield port
    entry = root.entry("appPort")
    if entry is None:
        return
    nodes = entry.value.items if isinstance(entry.value, ListNode) else (entry.value,)
    for node in nodes[:PORTS_MAX]:
        # `8000:8010` is Docker's: the port of the machine, then the container's.
        if isinstance(node, ScalarNode) and (match := re.fullmatch(r"[0-9]{1,5}:([0-9]{1,5})", node.text)):
            node = ScalarNode(match[1], match[1], node.place)
        port = _port(findings, "appPort", node)
        if port is not None:
            yield port


def _port(findings: Findings, name: str, node: Node) -> int | None:
    if isinstance(node, ScalarNode) and node.value is None:
        return None
    if not isinstance(node, ScalarNode) or isinstance(node.value, bool | float):
        findings.wrong_type(name, node, "made of ports such as 3000")
        return None
    text = node.text
    with_host = _WITH_HOST.fullmatch(text)
    if with_host and with_host[1].lower() not in _HERE:
        message = f"{name} {show(text)} is a port of another host: only the workspace's own are supported yet"
        findings.warning(node.place, "not_supported", message)
        return None
    found = port_range(with_host[2] if with_host else text)
    if found is None or found[0] != found[1]:
        findings.error(node.place, "bad_value", f"{name} {show(text)} is no port from 1 to 65535; it is left out")
        return None
    return found[0]


def _attributes(findings: Findings, entry: Entry | None) -> tuple[PortRule, ...]:
    rules: list[PortRule] = []
    for port in findings.entries("portsAttributes", entry.value, PORTS_MAX) if entry else ():
        with_host = _WITH_HOST.fullmatch(port.key)
        text = with_host[2] if with_host and with_host[1].lower() in _HERE else port.key
        found = port_range(text) if "-" in text or text.isdigit() else None
        if found is None:
            message = f"portsAttributes {show(port.key)}: only ports and ranges such as 3000-3999 are supported yet"
            findings.warning(port.place, "not_supported", message)
        elif not isinstance(port.value, TableNode):
            findings.wrong_type(f"portsAttributes.{port.key}", port.value, "a table of keys")
        else:
            rules.append(_rule(findings, port.value, *found))
    return tuple(rules)


def _rule(findings: Findings, node: TableNode, first: int, last: int) -> PortRule:
    keys.check_keys(findings, node, keys.PORT_ATTRIBUTES, keys.PORT_ATTRIBUTES_REFUSED, "portsAttributes")
    label = entry_text(findings, node.entry("label"), "portsAttributes") or ""
    protocol, on_open = node.entry("protocol"), node.entry("onAutoForward")
    spoken = findings.choice("portsAttributes.protocol", protocol.value, ("http", "https")) if protocol else None
    opened = findings.choice("portsAttributes.onAutoForward", on_open.value, _ON_OPEN) if on_open else None
    return PortRule(
        first, last, name=" ".join(label.split())[:200], on_open=_ON_OPEN[opened or "notify"], protocol=spoken or "http"
    )
