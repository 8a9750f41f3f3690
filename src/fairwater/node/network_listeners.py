"""Where the probe's echo listeners stand: on the gateway, and behind the machine in a namespace of their own.

The namespace behind is reached only by being forwarded, through the same rules as the world. It lasts as long as the
agent: nothing but its descriptor holds it.
"""

from __future__ import annotations

import os
from pathlib import Path

from fairwater.node.linux import in_namespaces
from fairwater.node.network_echo import EchoServer, listen
from fairwater.node.network_netlink import NetlinkSocket
from fairwater.node.network_plan import PROBE_HOST_PORT, AddressPlan
from fairwater.node.network_probe import Endpoint
from fairwater.node.network_veth import Pair, join, new_namespace


class ProbeListeners:
    """`port` is that of the gateway's listeners; 0 while they do not stand."""

    def __init__(self, plan: AddressPlan) -> None:
        self._plan = plan
        self._behind: int | None = None
        self._echo: EchoServer | None = None
        self.port = 0

    def stand(self, links: NetlinkSocket, mtu: int, proc: Path) -> None:
        """Sets them up, or repairs the way to them; may be repeated. Raises OSError, Temporary."""
        if self._behind is None:
            self._behind = new_namespace()
        pair = Pair(self._plan.probe_device, self._plan.probe_host, self._plan.gateway, mtu)
        join(links, pair, self._behind, proc)
        if self._echo is None:
            behind = in_namespaces(lambda: listen(str(self._plan.probe_host), PROBE_HOST_PORT), net_ns=self._behind)
            try:
                gateway = listen(str(self._plan.gateway))
            except OSError:
                behind.close()
                raise
            self.port = gateway.port
            self._echo = EchoServer((gateway, behind))

    def endpoints(self) -> tuple[Endpoint, Endpoint]:
        return (
            Endpoint("the gateway", self._plan.gateway, self.port),
            Endpoint("forwarding through the machine", self._plan.probe_host, PROBE_HOST_PORT),
        )

    def close(self) -> None:
        """The kernel removes the namespace and its device once nothing holds it. May be repeated."""
        if self._echo is not None:
            self._echo.close()
            self._echo = None
            self.port = 0
        if self._behind is not None:
            os.close(self._behind)
            self._behind = None
