"""Says why packets do not get through, where that can be seen: for the message of a failed probe."""

from __future__ import annotations

from pathlib import Path

from fairwater.domain.failure import Temporary
from fairwater.node.network_firewall import Firewall
from fairwater.node.network_plan import AddressPlan


def why_not_forwarded(firewall: Firewall, plan: AddressPlan, slot: int, proc: Path) -> str:
    """A clause to put behind the failure, or nothing."""
    for name in ("ip_forward", f"conf/{plan.device(slot)}/forwarding", f"conf/{plan.probe_device}/forwarding"):
        setting = proc / "sys/net/ipv4" / name
        value = setting.read_text().strip() if setting.exists() else "missing"
        if value != "1":
            return f"; net.ipv4.{name.replace('/', '.')} is {value} on the machine and must be 1"
    try:
        drops = firewall.default_drops()
    except Temporary:
        return ""
    if drops is None:
        return f"; the table {plan.table} of nftables is gone"
    if not drops:
        return ""
    return (
        f"; another firewall drops by default ({', '.join(drops)}): let devices {plan.devices} and "
        f"{plan.probe_device} pass there"
    )
