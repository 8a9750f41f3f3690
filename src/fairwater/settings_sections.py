"""What each part of the configuration holds, read and checked: see `settings`. Decides nothing."""

from __future__ import annotations

from dataclasses import dataclass, field
from ipaddress import IPv4Network
from pathlib import Path

from fairwater import settings_values as read
from fairwater.domain.units import Bytes, Seconds


@dataclass(frozen=True, slots=True)
class ServerSettings:
    """`database_url` None is a database of the server's own in the data directory.

    `master_key` are the keys that secrets are sealed with, the first for new ones; None: those of `master_key_file`,
    which None too is a file of the data directory, made at the first start.
    """

    listen: read.Address
    public_url: str
    database_url: str | None = field(repr=False)
    user: str
    master_key: tuple[bytes, ...] | None = field(default=None, repr=False)
    master_key_file: Path | None = None


@dataclass(frozen=True, slots=True)
class NodeSettings:
    """`parked` sandboxes are kept ready; `git_file_roots` are the folders `file://` URLs may name."""

    name: str
    runtime: str
    parked: int
    git_file_roots: tuple[Path, ...]
    stop_grace_s: Seconds


@dataclass(frozen=True, slots=True)
class NetworkSettings:
    """`mtu` None follows the default route; no `nameservers` means the machine's own."""

    pool: IPv4Network
    mtu: int | None
    allow: tuple[read.Allowed, ...]
    nameservers: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ImageSettings:
    """`disk` None is automatic: 50 GiB, and never more than a quarter of the disk. `pull_rate` is in bytes a second,
    None for no limit. `folders` are those that `oci:` and archives may name. A registry that sends nothing for
    `stall_s` is given up. `parked_memory` bounds what sandboxes kept ready for images hold."""

    default: str
    disk: Bytes | None
    pull_rate: Bytes | None
    insecure_registries: tuple[str, ...]
    folders: tuple[Path, ...]
    stall_s: Seconds
    parked_memory: Bytes
