"""Which keys the configuration files have, and what is said of those that are not followed.

From Gitpod's gitpod-schema.json and the Development Containers' devContainer.base.schema.json, with the keys that were
once part of them. A key that is in none of these tables is unknown, and told together with the nearest one that is.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from difflib import get_close_matches

from fairwater.domain.workspaces.config.findings import Findings, show
from fairwater.domain.workspaces.config.node import TableNode, asks_nothing
from fairwater.domain.workspaces.notice import Level

Refused = Mapping[str, tuple[Level, str]]
"""Key → how bad it is that it is not followed, and what to do; where it asks for nothing, nothing is said."""

_WARNING, _ERROR, _INFO = Level.WARNING, Level.ERROR, Level.INFO
_EDITOR = "is for an editor, and is not supported yet: set the editor up itself"

GITPOD = {
    "image", "tasks", "ports", "additionalRepositories", "checkoutLocation", "workspaceLocation",
}  # fmt: skip
GITPOD_REFUSED: Refused = {
    "vscode": (_WARNING, _EDITOR),
    "jetbrains": (_WARNING, _EDITOR),
    "github": (_WARNING, "is not supported yet: no prebuilds are made; init runs when a workspace first starts"),
    "gitConfig": (_WARNING, "is not supported yet: run `git config` in a task's `before`"),
    "coreDump": (_WARNING, "is not supported yet: run `ulimit -c` in a task's `before`"),
    "experimentalNetwork": (_WARNING, "is not supported yet, and was of no effect for long: remove it"),
    "mainConfiguration": (_WARNING, "is not supported yet: start the workspace from that repository instead"),
    "subRepositories": (_WARNING, "is not followed: its name is additionalRepositories now; rename it"),
    "mainRepository": (_WARNING, "is not supported yet: start the workspace from that repository instead"),
}
TASK = {"name", "before", "init", "prebuild", "command", "env"}
TASK_REFUSED: Refused = {
    "openMode": (_INFO, "is not followed: every task has a terminal of its own"),
    "openIn": (_INFO, "is not followed: every task has a terminal of its own"),
}
PORT = {"port", "onOpen", "visibility", "name", "description", "protocol"}
REPOSITORY = {"url", "checkoutLocation"}

DEVCONTAINER = {
    "$schema", "name",  # neither asks for anything
    "image", "containerEnv", "remoteEnv", "containerUser", "remoteUser", "workspaceFolder", "workspaceMount",
    "onCreateCommand", "updateContentCommand", "postCreateCommand", "postStartCommand", "postAttachCommand",
    "forwardPorts", "portsAttributes", "appPort", "hostRequirements", "overrideCommand", "userEnvProbe", "init",
}  # fmt: skip
_BUILD = "building images is not supported yet: build it elsewhere and name it as `image`"
_COMPOSE = "Docker Compose is not supported yet: name one `image`, and start what else is needed in a command"
DEVCONTAINER_REFUSED: Refused = {
    "build": (_ERROR, f"is not followed: {_BUILD}"),
    "dockerFile": (_ERROR, f"is not followed: {_BUILD}"),
    "context": (_WARNING, f"is not followed: {_BUILD}"),
    "features": (_ERROR, "is not followed: features are not supported yet; name an `image` that has them in it"),
    "overrideFeatureInstallOrder": (_WARNING, "is not followed: features are not supported yet"),
    "dockerComposeFile": (_ERROR, f"is not followed: {_COMPOSE}"),
    "service": (_WARNING, f"is not followed: {_COMPOSE}"),
    "runServices": (_WARNING, f"is not followed: {_COMPOSE}"),
    "initializeCommand": (
        _WARNING,
        "does not run: it is for the machine outside the workspace; use onCreateCommand, which runs inside",
    ),
    "waitFor": (_INFO, "is not followed: a workspace can be used at once, while its commands run"),
    "otherPortsAttributes": (_INFO, "is not followed: every other port is private and can be opened"),
    "shutdownAction": (_INFO, "is not followed: a workspace stops when it is told to, or when nobody uses it"),
    "customizations": (_WARNING, _EDITOR),
    "extensions": (_WARNING, _EDITOR),
    "settings": (_WARNING, _EDITOR),
    "devPort": (_INFO, "is not followed, and is no longer part of devcontainer.json: remove it"),
    "runArgs": (_WARNING, "is not supported yet: these options of Docker are not in force"),
    "mounts": (_WARNING, "is not supported yet: nothing is mounted; /workspace and the home directory are kept"),
    "privileged": (_WARNING, "is not supported: a workspace never has more rights than its user needs"),
    "capAdd": (_WARNING, "is not supported: a workspace gets no further capabilities"),
    "securityOpt": (_WARNING, "is not supported: a workspace's confinement cannot be loosened"),
    "secrets": (_INFO, "names secrets that the repository would like: set them as variables of yours"),
    "updateRemoteUserUID": (_INFO, "is not followed: files in a workspace belong to its user anyway"),
}
PORT_ATTRIBUTES = {"label", "protocol", "onAutoForward"}
PORT_ATTRIBUTES_REFUSED: Refused = {
    "requireLocalPort": (_INFO, "is not followed: a port has an address of its own, not one of your machine"),
    "elevateIfNeeded": (_INFO, "is not followed: a port has an address of its own, not one of your machine"),
}
REQUIREMENTS = {"cpus", "memory", "storage", "gpu"}


def check_keys(
    findings: Findings, table: TableNode, known: Collection[str], refused: Refused | None = None, within: str = ""
) -> None:
    """Reports the keys of `table` that are not followed. `within` is the table's own name, for the message."""
    refused = refused or {}
    for entry in table.entries:
        name = f"{within}.{entry.key}" if within else entry.key
        if entry.key in refused:
            level, what = refused[entry.key]
            if not asks_nothing(entry.value):
                findings.add(level, entry.place, "not_supported", f"{name} {what}")
        elif entry.key not in known:
            # Past the bound on notices the nearest key is not looked for: that costs more than all the rest.
            near = [] if findings.full else get_close_matches(entry.key[:64], [*known, *refused], n=1)
            meant = f"; did you mean {near[0]!r}?" if near else ": remove it, or check its spelling"
            findings.warning(entry.place, "unknown_key", f"{show(name)} is not a key that is known here{meant}")
