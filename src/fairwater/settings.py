"""What may be configured: one file `fairwater.toml`, and every key also as an environment variable.

Decides which keys there are, what each may hold, and which combinations contradict each other. Where a value came from
is kept beside it. Refuses to know who uses a value: `bootstrap` hands each part what it needs, and nothing more.

The key `classes.xl.memory` is `memory` in the table `[classes.xl]`, and `FAIRWATER_CLASSES_XL_MEMORY` in the
environment. A flag wins over the environment, the environment over the file, the file over the default.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from ipaddress import IPv4Network, ip_address
from pathlib import Path
from typing import Any

from fairwater import settings_sources as sources
from fairwater import settings_values as read
from fairwater.domain.abuse.rate import StartLimit
from fairwater.domain.failure import Permanent
from fairwater.domain.units import format_bytes
from fairwater.domain.workspaces.classes import STANDARD, XL, WorkspaceClass
from fairwater.domain.workspaces.deadlines import DeadlinePolicy
from fairwater.settings_sections import ImageSettings, NetworkSettings, NodeSettings, ServerSettings


@dataclass(frozen=True, slots=True)
class Explained:
    """One key: its value as a person reads it, secrets masked, and where it came from."""

    key: str
    value: str
    origin: str
    about: str


@dataclass(frozen=True, slots=True)
class Settings:
    server: ServerSettings
    node: NodeSettings
    network: NetworkSettings
    images: ImageSettings
    classes: Mapping[str, WorkspaceClass]
    deadlines: DeadlinePolicy
    limits: StartLimit
    written: Mapping[str, tuple[object, str]] = field(repr=False)
    """Key → value as written, and its origin, for the keys that are not at their default."""

    def explain(self) -> tuple[Explained, ...]:
        """Each key with its value and its origin: `default`, `FILE:LINE`, `environment NAME` or `flag`."""
        derived = {"server.public_url": self.server.public_url, "node.name": self.node.name}
        lines = []
        for key in KEYS:
            value, origin = self.written.get(key.name, (key.default, "default"))
            value = derived.get(key.name, value)
            lines.append(Explained(key.name, key.show(value), origin, key.about))
        return tuple(lines)

    def environment(self) -> dict[str, str]:
        """These settings as environment variables, for a child process that cannot read the file. Holds secrets."""
        return {sources.variable_of(key): sources.as_text(value) for key, (value, _) in self.written.items()}


@dataclass(frozen=True, slots=True)
class Key:
    """`read` turns what is written into the value, or raises `Permanent` saying what would be right."""

    name: str
    default: object
    read: Callable[[object], Any]
    about: str
    secret: bool = False

    def show(self, written: object) -> str:
        if written is None:
            return "(automatic)"
        return sources.mask_secret(sources.as_text(written)) if self.secret else sources.as_text(written)


def _class_keys(limits: WorkspaceClass) -> Iterator[Key]:
    prefix = f"classes.{limits.name}"
    yield Key(f"{prefix}.cpu_cores", limits.cpu_cores, read.cores, "cores that a workspace may use at most")
    yield Key(f"{prefix}.memory", format_bytes(limits.memory), read.memory, "memory of a workspace")
    yield Key(f"{prefix}.processes", limits.processes, read.processes, "processes and threads of a workspace")
    yield Key(f"{prefix}.disk", format_bytes(limits.disk), read.disk, "disk space of a workspace")


_DEADLINES, _LIMIT = DeadlinePolicy(), StartLimit()
KEYS: tuple[Key, ...] = (
    Key("server.listen", "127.0.0.1:7080", read.address, "address and port that the server listens on"),
    Key("server.public_url", None, read.optional(read.public_url), "address under which people reach the server"),
    Key(
        "server.database_url",
        None,
        read.optional(read.database_url),
        "database, such as postgresql://USER:PASSWORD@HOST/NAME; automatic: SQLite in the data directory",
        True,
    ),
    Key("server.master_key", None, read.optional(read.master_key), "what secrets are sealed with: 32 bytes", True),
    Key(
        "server.master_key_file",
        None,
        read.optional(read.file),
        "file with the master key; automatic: made in the data directory",
    ),
    Key("server.user", "fairwater", read.user_name, "system user that the server runs as"),
    Key("node.name", None, read.optional(read.host_name), "name of this node; automatic: the machine's name"),
    Key("node.runtime", "crun", read.runtime, "OCI runtime (a program), or plain: processes without isolation"),
    Key("node.parked", 8, read.parked, "sandboxes kept ready for the next start"),
    Key("node.git_file_roots", (), read.folders, "folders that file:// URLs of the local administrator may name"),
    Key("node.stop_grace_s", "10s", read.duration, "time between the signal to stop and the kill"),
    Key("network.pool", "10.213.0.0/16", read.pool, "addresses for workspaces"),
    Key("network.mtu", None, read.optional(read.mtu), "packet size; automatic: that of the default route"),
    Key("network.allow", (), read.allowed, "CIDR:port that workspaces may reach although blocked by default"),
    Key("network.nameservers", (), read.nameservers, "DNS servers of workspaces; empty: the machine's own"),
    Key("images.default", "host", read.image, "image of a workspace for which nobody asks for another"),
    Key(
        "images.disk",
        None,
        read.optional(read.image_disk),
        "disk space for images; automatic: 50 GiB, a quarter at most",
    ),
    Key("images.pull_rate", "100MiB", read.rate, "bytes a second that images are brought in with; 0 is no limit"),
    Key("images.insecure_registries", (), read.registries, "registries spoken to without TLS"),
    Key("images.folders", (), read.folders, "folders that oci: and archives of the local administrator may name"),
    Key("images.stall", "60s", read.duration, "a registry that sends nothing for so long is given up"),
    Key("images.parked_memory", "256MiB", read.parked_memory, "memory for sandboxes kept ready for images"),
    *_class_keys(STANDARD),
    *_class_keys(XL),
    Key("deadlines.startup", f"{_DEADLINES.startup_s:g}s", read.duration, "for a start, its content apart"),
    Key("deadlines.init", f"{_DEADLINES.init_s:g}s", read.duration, "for bringing in the content"),
    Key("deadlines.stopping", f"{_DEADLINES.stopping_s:g}s", read.duration, "for a stop, after which it is forced"),
    Key("limits.start_interval", f"{_LIMIT.interval_s:g}s", read.duration, "time between two starts of an account"),
    Key("limits.start_burst", _LIMIT.burst, read.count, "starts that an account may make at once"),
    Key("limits.parallel", _LIMIT.parallel, read.count, "workspaces that an account may run at a time"),
)


def load_settings(
    path: Path | None = None,
    environment: Mapping[str, str] | None = None,
    flags: Mapping[str, object] | None = None,
) -> Settings:
    """The settings from the file at `path` (None: no file), the environment and the command line's flags.

    Raises:
        Permanent: `bad_config`; the message has one line for each thing that is wrong, saying where and what to do.
    """
    environment = os.environ if environment is None else environment
    names = tuple(key.name for key in KEYS)
    wrong: list[str] = []
    written: dict[str, tuple[object, str]] = {}
    if path is not None:
        written.update(sources.from_file(path, names, wrong))
    written.update(sources.from_environment(environment, names, wrong))
    written.update({name: (value, "flag") for name, value in (flags or {}).items() if value is not None})
    values: dict[str, Any] = {}
    for key in KEYS:
        value, origin = written.get(key.name, (key.default, "default"))
        try:
            values[key.name] = key.read(value)
        except Permanent as failure:
            wrong.append(f"{origin}: {key.name}: {failure.message}")
    if not wrong:
        wrong.extend(_contradictions(values))
    if wrong:
        raise Permanent("\n".join(wrong), code="bad_config")
    return _build(values, written)


def _build(values: Mapping[str, Any], written: Mapping[str, tuple[object, str]]) -> Settings:
    def section(name: str) -> dict[str, Any]:
        return {key.removeprefix(f"{name}."): value for key, value in values.items() if key.startswith(f"{name}.")}

    server, node = section("server"), section("node")
    server["public_url"] = server["public_url"] or server["listen"].url
    node["name"] = node["name"] or os.uname().nodename
    deadlines, limits, images = section("deadlines"), section("limits"), section("images")
    images["stall_s"] = images.pop("stall")
    return Settings(
        server=ServerSettings(**server),
        node=NodeSettings(**node),
        network=NetworkSettings(**section("network")),
        images=ImageSettings(**images),
        classes={known.name: replace(known, **section(f"classes.{known.name}")) for known in (STANDARD, XL)},
        deadlines=DeadlinePolicy(deadlines["startup"], deadlines["init"], deadlines["stopping"]),
        limits=StartLimit(limits["start_interval"], limits["start_burst"], limits["parallel"]),
        written=dict(written),
    )


def _contradictions(values: Mapping[str, Any]) -> Iterator[str]:
    """What cannot hold at the same time, each with the two keys and a way out."""
    for part in ("cpu_cores", "memory", "processes", "disk"):
        standard, xl = values[f"classes.standard.{part}"], values[f"classes.xl.{part}"]
        if xl < standard:
            yield f"classes.xl.{part} is less than classes.standard.{part}: raise the one or lower the other"
    grace_s, stopping_s = values["node.stop_grace_s"], values["deadlines.stopping"]
    if stopping_s <= grace_s:
        yield (
            f"deadlines.stopping ({stopping_s:g} s) is over before node.stop_grace_s ({grace_s:g} s) is, so that every "
            "stop would be forced: raise the deadline"
        )
    pool: IPv4Network = values["network.pool"]
    if values["node.parked"] * 4 > pool.num_addresses - 4:
        yield f"network.pool {pool} has too few addresses for node.parked = {values['node.parked']}: 4 for each"
    for allowed in values["network.allow"]:
        if allowed.network.subnet_of(pool):
            yield (
                f"network.allow names {allowed.network}, which is part of network.pool {pool}: "
                "workspaces never reach one another"
            )
    for server in values["network.nameservers"]:
        if _in_pool(server, pool):
            yield f"network.nameservers names {server}, which is part of network.pool {pool}: choose another pool"
    listen: read.Address = values["server.listen"]
    if _in_pool(listen.host, pool):
        yield f"server.listen {listen} is part of network.pool {pool}: choose another pool"


def _in_pool(host: str, pool: IPv4Network) -> bool:
    """Whether `host` is an address of `pool`; names are not looked up."""
    try:
        return ip_address(host) in pool
    except ValueError:
        return False
