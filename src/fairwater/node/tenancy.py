"""What a claimed sandbox is to whom, and as whom and with what commands run in it; kept over a restart of the agent."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from fairwater.domain.failure import Permanent
from fairwater.domain.ids import RunNumber, WorkspaceId
from fairwater.domain.workspaces.home import home_directory
from fairwater.domain.workspaces.run import SandboxState
from fairwater.domain.workspaces.setup import SEARCHED
from fairwater.node.bundle import IDS
from fairwater.node.init_messages import GROUPS_MAX, Command
from fairwater.node.slot_record import Slot
from fairwater.ports.images import ImageUser
from fairwater.ports.sandboxes import Admission, Sandbox, SandboxId, Tenant


@dataclass(slots=True)
class Held:
    """A claimed slot. `environment` is every process's, `remote_environment` for commands and tasks beside the first;
    `cwd` is where they begin."""

    slot: Slot
    tenant: Tenant
    state: SandboxState
    user: ImageUser
    environment: dict[str, str] = field(default_factory=dict)
    remote_environment: dict[str, str] = field(default_factory=dict)
    cwd: str = "/workspace"
    arrival: asyncio.Future[None] | None = None
    """What can be done while the volume is still on its way: the host name, the network and the service opened."""

    def sandbox(self) -> Sandbox:
        return Sandbox(SandboxId(f"{self.slot.number}-{self.slot.pid}"), self.tenant, self.state)

    def admit(self, admission: Admission, service: Mapping[str, str]) -> None:
        """Notes what commands begin with. `service` are the variables of what serves the workspace."""
        self.user = admission.user or self.slot.user
        self.environment = {
            "PATH": SEARCHED,
            **dict(self.slot.environment),
            **_names_of(self.user),
            **service,
            **admission.environment,
        }
        self.remote_environment = dict(admission.remote_environment)
        self.cwd = admission.cwd

    def first_command(self, argv: tuple[str, ...], cwd: str | None) -> Command:
        return self._command(self.user, argv, cwd, self.environment)

    def command(
        self, argv: tuple[str, ...], cwd: str | None, environment: Mapping[str, str], user: str = "workspace"
    ) -> Command:
        """A command beside the first process. Raises Permanent: `bad_user`."""
        variables = {**self.environment, **self.remote_environment}
        if user in {"workspace", self.user.name}:
            return self._command(self.user, argv, cwd, {**variables, **environment})
        if user != "root":
            raise Permanent(f"user {user[:40]!r}: a command runs as 'workspace' or as 'root'", code="bad_user")
        return self._command(self.slot.root, argv, cwd, {**variables, **_names_of(self.slot.root), **environment})

    def _command(
        self, user: ImageUser, argv: tuple[str, ...], cwd: str | None, environment: Mapping[str, str]
    ) -> Command:
        groups = tuple(group for group in user.groups if group < IDS)[:GROUPS_MAX]
        return Command(argv, environment, cwd or self.cwd, user.uid, user.gid, groups)


def _names_of(user: ImageUser) -> dict[str, str]:
    home = home_directory(user.home, user.name)
    return {"HOME": home, "USER": user.name, "LOGNAME": user.name, "SHELL": user.shell}


def write_tenant(held: Held) -> None:
    record = {
        "workspace": held.tenant.workspace,
        "run": held.tenant.run,
        "role": held.tenant.role,
        "state": held.state.value,
        "user": asdict(held.user),
        "environment": held.environment,
        "remote_environment": held.remote_environment,
        "cwd": held.cwd,
    }
    aside = held.slot.folder / "tenant.new"
    with open(os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600), "w") as file:
        json.dump(record, file)
    aside.replace(held.slot.folder / "tenant.json")


def read_tenant(slot: Slot) -> Held | None:
    """Who has claimed the slot; an agent of before wrote neither user nor remote environment."""
    try:
        record: dict[str, Any] = json.loads((slot.folder / "tenant.json").read_text())
    except FileNotFoundError:
        return None
    tenant = Tenant(WorkspaceId(record["workspace"]), RunNumber(record["run"]), record["role"])
    user = slot.user
    if "user" in record:
        user = ImageUser(**record["user"])
        user = replace(user, groups=tuple(user.groups))
    remote = record.get("remote_environment", {})
    return Held(slot, tenant, SandboxState(record["state"]), user, record["environment"], remote, record["cwd"])


def forget_tenant(slot: Slot) -> None:
    (slot.folder / "tenant.json").unlink(missing_ok=True)
