"""What a configured value may be: each function turns what is written into the value.

Every one of them takes what TOML gives (text, number, list) or an environment variable's text, and raises `Permanent`
(`bad_value`, or the code of the unit) with a message that says what would be right.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from ipaddress import IPv4Network, ip_address, ip_network
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

from fairwater.domain.failure import Permanent
from fairwater.domain.images.reference import parse_reference
from fairwater.domain.units import GIB, KIB, MIB, Bytes, Seconds, format_bytes, parse_bytes, parse_seconds
from fairwater.store.vault_keys import parse_keys

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Address:
    """Where to listen. `host` is a name or an address, an IPv6 one without its brackets."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def url(self) -> str:
        """How this machine reaches it: by `localhost`, below which workspaces have their names."""
        local = self.host in {"127.0.0.1", "::1", "0.0.0.0", "::", "localhost"}
        return f"http://localhost:{self.port}" if local else f"http://{self}"


@dataclass(frozen=True, slots=True)
class Allowed:
    """A destination that workspaces may reach although it is blocked by default."""

    network: IPv4Network
    port: int

    def __str__(self) -> str:
        return f"{self.network}:{self.port}"


def _wrong(value: object, what: str) -> Permanent:
    return Permanent(f"{str(value)[:60]!r} is not {what}", code="bad_value")


def optional(reader: Callable[[object], T]) -> Callable[[object], T | None]:
    """`reader`, with an empty value meaning automatic."""
    return lambda value: None if value is None or value == "" else reader(value)


def text(value: object) -> str:
    if not isinstance(value, str) or not value.strip():
        raise _wrong(value, "a text")
    return value.strip()


def _items(value: object) -> list[Any]:
    """A list as TOML or JSON has it, or as text with commas between."""
    if isinstance(value, str):
        if not value.strip().startswith("["):
            return [item.strip() for item in value.split(",") if item.strip()]
        try:
            value = json.loads(value)
        except ValueError:
            raise _wrong(value, 'a list such as ["one", "two"]') from None
    if not isinstance(value, (list, tuple)):
        raise _wrong(value, 'a list such as ["one", "two"]')
    return list(value)


def _whole(least: int, most: int) -> Callable[[object], int]:
    def reader(value: object) -> int:
        if isinstance(value, bool) or not re.fullmatch(r"-?\d{1,12}", str(value).strip()):
            raise _wrong(value, "a whole number")
        if not least <= int(str(value)) <= most:
            raise _wrong(value, f"between {least} and {most}")
        return int(str(value))

    return reader


count = _whole(1, 100_000)
parked = _whole(0, 256)
processes = _whole(16, 1_000_000)
mtu = _whole(576, 65_535)
_port = _whole(1, 65_535)


def cores(value: object) -> float:
    if isinstance(value, bool) or not re.fullmatch(r"\d{1,4}(\.\d+)?", str(value).strip()):
        raise _wrong(value, "a number of cores, such as 2 or 0.5")
    if not 0.1 <= float(str(value)) <= 1024:
        raise _wrong(value, "between 0.1 and 1024 cores")
    return float(str(value))


def _size(least: int) -> Callable[[object], Bytes]:
    def reader(value: object) -> Bytes:
        size = parse_bytes(value if isinstance(value, int) and not isinstance(value, bool) else str(value))
        if size < least:
            raise _wrong(value, f"enough: at least {format_bytes(least)}")
        return size

    return reader


memory = _size(128 * MIB)
disk = _size(GIB // 4)
image_disk = _size(GIB)
parked_memory = _size(0)
_rate = _size(64 * KIB)


def rate(value: object) -> Bytes | None:
    """Bytes a second; None where there is no limit."""
    return None if str(value).strip().lower() in {"", "0", "none", "unlimited"} else _rate(value)


def duration(value: object) -> Seconds:
    seconds = parse_seconds(str(value))
    if not 0 < seconds <= 30 * 86_400:
        raise _wrong(value, "a duration between 1ms and 30d")
    return seconds


def address(value: object) -> Address:
    found = re.fullmatch(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9.-]*):(\d{1,5})", text(value))
    if not found or not 1 <= int(found[2]) <= 65_535:
        raise _wrong(value, "HOST:PORT, such as 127.0.0.1:7080")
    return Address(found[1].strip("[]") or "0.0.0.0", int(found[2]))


def public_url(value: object) -> str:
    try:
        parts = urlsplit(text(value))
        bad = parts.port == 0 or parts.scheme not in {"http", "https"} or not parts.hostname or parts.username
    except ValueError:
        bad = True
    if bad or parts.path not in {"", "/"} or parts.query or parts.fragment:
        raise _wrong(value, "an address such as https://dev.example.org, without a path")
    return f"{parts.scheme}://{parts.netloc}"


def user_name(value: object) -> str:
    if not re.fullmatch(r"[a-z_][a-z0-9_-]{0,30}", text(value)) or value == "root":
        raise _wrong(value, "the name of a system user other than root")
    return text(value)


def host_name(value: object) -> str:
    if not re.fullmatch(r"[A-Za-z0-9]([A-Za-z0-9.-]{0,61}[A-Za-z0-9])?", text(value)):
        raise _wrong(value, "a name: letters, digits, '.' and '-'")
    return text(value)


def runtime(value: object) -> str:
    if not re.fullmatch(r"[A-Za-z0-9_.-]{1,64}|/[A-Za-z0-9_./-]{1,200}", text(value)):
        raise _wrong(value, "the name or path of an OCI runtime, such as crun, or plain")
    return text(value)


def folders(value: object) -> tuple[Path, ...]:
    paths = tuple(Path(str(item)) for item in _items(value))
    for path in paths:
        if not path.is_absolute() or ".." in path.parts or path == Path("/"):
            raise _wrong(path, "an absolute path of a folder other than /")
    return paths


def file(value: object) -> Path:
    path = Path(text(value))
    if not path.is_absolute() or ".." in path.parts:
        raise _wrong(path, "the absolute path of a file")
    return path


def database_url(value: object) -> str:
    """Whether the database can be reached, and whether it is one, is found out where it is opened."""
    written = value if isinstance(value, str) else ""
    scheme = written.strip().partition(":")[0].partition("+")[0]
    if scheme not in {"sqlite", "postgresql", "postgres"} or "://" not in written:
        # What it is, is not said: it may hold a password.
        raise Permanent(
            "this is no database: write postgresql://USER:PASSWORD@HOST/NAME or sqlite:////PATH", code="bad_value"
        )
    return written.strip()


def master_key(value: object) -> tuple[bytes, ...]:
    if not isinstance(value, str):  # nor is this said, which may hold a key
        raise Permanent("this is no text: write keys as one, with spaces between them", code="bad_value")
    return parse_keys(value)


def image(value: object) -> str:
    if parse_reference(text(value)).local:
        raise _wrong(value, "an image that everybody may use: name host, or one of a registry")
    return text(value)


def registries(value: object) -> tuple[str, ...]:
    for item in _items(value):
        if not re.fullmatch(r"([A-Za-z0-9]([A-Za-z0-9.-]{0,251}[A-Za-z0-9])?|\[[0-9A-Fa-f:]+\])(:\d{1,5})?", str(item)):
            raise _wrong(item, "a registry's HOST or HOST:PORT, such as registry.example.org:5000")
    return tuple(str(item).lower() for item in _items(value))


def pool(value: object) -> IPv4Network:
    try:
        network = ip_network(text(value))
    except ValueError as error:
        raise _wrong(value, f"a network such as 10.213.0.0/16 ({error})") from None
    if not isinstance(network, IPv4Network) or not 8 <= network.prefixlen <= 28:
        raise _wrong(value, "an IPv4 network with a prefix between /8 and /28")
    if network.is_loopback or network.is_link_local or network.is_multicast or not network.is_private:
        raise _wrong(value, "a private network, such as 10.213.0.0/16")
    return network


def allowed(value: object) -> tuple[Allowed, ...]:
    result = []
    for item in _items(value):
        network, _, port = str(item).rpartition(":")
        try:
            result.append(Allowed(IPv4Network(network), _port(port)))
        except (ValueError, Permanent) as error:
            raise _wrong(item, f"CIDR:PORT, such as 10.0.0.5/32:5432 ({error})") from None
        if result[-1].network.is_loopback:
            raise _wrong(item, "to be reached: a workspace's 127.0.0.1 is its own; name an address of the network")
    return tuple(result)


def nameservers(value: object) -> tuple[str, ...]:
    for item in _items(value):
        try:
            ip_address(str(item))
        except ValueError:
            raise _wrong(item, "the address of a DNS server, such as 9.9.9.9") from None
    return tuple(str(item) for item in _items(value))
