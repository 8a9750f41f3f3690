"""An address of this machine that sandboxes may be allowed to reach: loopback itself, they never can."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
from collections.abc import Iterator

_PREFIX = "192.0.2."  # TEST-NET-1 (RFC 5737): nobody's; TEST-NET-2 is outside in the tests of the network


@contextlib.contextmanager
def own_address() -> Iterator[str]:
    """An address on the loopback interface for as long as the block lasts; needs root. One a process."""
    address = f"{_PREFIX}{1 + os.getpid() % 250}"
    subprocess.run(("ip", "address", "replace", f"{address}/32", "dev", "lo"), check=True)
    try:
        yield address
    finally:
        subprocess.run(("ip", "address", "del", f"{address}/32", "dev", "lo"), check=False, capture_output=True)


def free_port(address: str) -> int:
    with socket.socket() as probe:
        probe.bind((address, 0))
        port: int = probe.getsockname()[1]
        return port
