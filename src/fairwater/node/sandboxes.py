"""Sandboxes from slots: claimed for a run, filled, used and removed.

Decides what a sandbox holds and as whom commands run in it; refuses to know what a run is for.
"""

from __future__ import annotations

import asyncio
import errno
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from fairwater.domain.failure import Permanent
from fairwater.domain.ids import RunNumber, WorkspaceId
from fairwater.domain.workspaces.run import SandboxState
from fairwater.node.admission import bring_in, name_host, volume_placements
from fairwater.node.cgroups import Cgroups, limits_of
from fairwater.node.host_image import HOME, REFERENCE, UID, USER
from fairwater.node.init_client import InitClient
from fairwater.node.init_messages import Command
from fairwater.node.pool import SlotPool
from fairwater.node.slots import Network, Slot, Slots
from fairwater.ports.images import Images
from fairwater.ports.process import ExecRequest, Process
from fairwater.ports.sandboxes import Admission, Sandbox, SandboxId, Tenant


@dataclass(slots=True)
class _Held:
    """A claimed slot. `environment` and `cwd` are what commands in it begin with."""

    slot: Slot
    tenant: Tenant
    state: SandboxState
    environment: dict[str, str] = field(default_factory=dict)
    cwd: str = "/workspace"
    naming: asyncio.Future[None] | None = None
    """What can be done while the volume is still on its way: the host name, and the network opened."""

    def sandbox(self) -> Sandbox:
        return Sandbox(SandboxId(f"{self.slot.number}-{self.slot.pid}"), self.tenant, self.state)


class ParkedSandboxes:
    """Implements `ports.sandboxes.Sandboxes` and `Launcher` on slots. Call `open` first, `close` at the end."""

    def __init__(
        self, slots: Slots, cgroups: Cgroups, network: Network, images: Images, parked: int, image: str = REFERENCE
    ) -> None:
        self._slots = slots
        self._cgroups = cgroups
        self._network = network
        self._pool = SlotPool(slots, network, images, parked, image, self._gone)
        self._held: dict[Tenant, _Held] = {}
        self._died: Callable[[Sandbox], None] = lambda _: None

    async def open(self) -> None:
        """Takes over what a predecessor left, and begins to park."""
        await asyncio.to_thread(self._slots.prepare)
        for slot in await self._pool.found():
            held = _read_tenant(slot)
            if held is not None:
                await self._adopt(held)
            elif slot.alive():
                self._pool.park(slot)
            else:
                self._pool.clear(slot.number)
        self._pool.fill()

    async def close(self, *, remove_parked: bool = False) -> None:
        """Stops parking; with `remove_parked`, nothing is left but the claimed ones."""
        await self._pool.close(remove_parked=remove_parked)

    def parked(self) -> int:
        return len(self._pool.parked)

    # --- ports.sandboxes.Sandboxes ------------------------------------------------------------------------------

    def claimed(self) -> tuple[Sandbox, ...]:
        return tuple(held.sandbox() for held in self._held.values())

    def watch(self, died: Callable[[Sandbox], None]) -> None:
        self._died = died

    async def claim(self, tenant: Tenant, image: str) -> Sandbox:
        held = self._held.get(tenant)
        if held is None:
            slot = await self._pool.take(image)
            held = _Held(slot, tenant, SandboxState.PARKED)
            self._held[tenant] = held
            held.naming = self._begin_naming(held)
            _write_tenant(held)
        return held.sandbox()

    async def admit(self, sandbox: Sandbox, admission: Admission) -> None:
        held = self._get(sandbox)
        held.environment = {
            **dict(held.slot.environment),
            "HOME": HOME,
            "USER": USER,
            "LOGNAME": USER,
            **admission.environment,
        }
        held.cwd = admission.cwd
        await asyncio.to_thread(self._admit, held, admission)
        naming, held.naming = held.naming or self._begin_naming(held), None
        await naming
        held.state = SandboxState.ADMITTED
        _write_tenant(held)

    def _admit(self, held: _Held, admission: Admission) -> None:
        slot = held.slot
        self._cgroups.limit(slot.group, limits_of(admission.limits))
        bring_in(slot, self._slots.first_id(slot), volume_placements(admission.volume), admission.binds)

    def _begin_naming(self, held: _Held) -> asyncio.Future[None]:
        def name_and_open() -> None:
            name_host(held.slot, str(held.tenant.workspace))
            self._network.open(held.slot.number)

        naming = asyncio.ensure_future(asyncio.to_thread(name_and_open))
        naming.add_done_callback(lambda done: done.cancelled() or done.exception())  # told to whoever awaits it
        return naming

    async def remove(self, sandbox: Sandbox) -> None:
        held = self._held.get(sandbox.tenant)
        if held is None or held.sandbox().id != sandbox.id:
            return
        self._pool.unwatch(held.slot.number)
        if held.naming is not None:
            await asyncio.wait({held.naming})
        await asyncio.to_thread(self._kill, held.slot)
        (held.slot.folder / "tenant.json").unlink(missing_ok=True)
        del self._held[sandbox.tenant]
        self._pool.clear(held.slot.number)

    def _kill(self, slot: Slot) -> None:
        self._network.close(slot.number)
        self._slots.kill(slot)

    # --- ports.sandboxes.Launcher -------------------------------------------------------------------------------

    async def launch(self, sandbox: Sandbox, command: tuple[str, ...] | None, log: Path) -> None:
        held = self._get(sandbox)
        output = _open_log(log)
        try:
            what = self._command(held, command or (), None, {}, "workspace")
            await self._init(held).launch(held.tenant.run, what, stdout=output, stderr=output)
        finally:
            os.close(output)
        held.state = SandboxState.LAUNCHED

    async def exec(self, sandbox: Sandbox, request: ExecRequest) -> Process:
        held = self._get(sandbox)
        variables = dict(request.environment)
        if request.terminal:
            variables.setdefault("TERM", "xterm-256color")
        what = self._command(held, request.command, request.cwd, variables, request.user)
        return await self._init(held).exec(what, request.terminal)

    async def terminate(self, sandbox: Sandbox) -> None:
        await self._init(self._get(sandbox)).terminate()

    async def alive(self, sandbox: Sandbox) -> int:
        return max(0, self._cgroups.processes(self._get(sandbox).slot.group) - 1)

    def _command(
        self, held: _Held, argv: tuple[str, ...], cwd: str | None, environment: Mapping[str, str], user: str
    ) -> Command:
        if user not in {"workspace", USER, "root"}:
            raise Permanent(f"user {user[:40]!r}: a command runs as 'workspace' or as 'root'", code="bad_user")
        root = user == "root"
        names = {"HOME": "/root", "USER": "root", "LOGNAME": "root"} if root else {}
        variables = {**held.environment, **names, **environment}
        ident = 0 if root else UID
        return Command(
            arguments=argv,
            cwd=cwd or held.cwd,
            environment=variables,
            uid=ident,
            gid=ident,
        )

    def _init(self, held: _Held) -> InitClient:
        return InitClient(held.slot.control, host_ids=self._slots.first_id(held.slot))

    def _get(self, sandbox: Sandbox) -> _Held:
        held = self._held.get(sandbox.tenant)
        if held is None or held.sandbox().id != sandbox.id:
            raise Permanent(f"sandbox {sandbox.id} is gone", code="not_running")
        return held

    # --- what ends, and what was there before -------------------------------------------------------------------

    def _gone(self, slot: Slot) -> None:
        """The first process of a claimed slot ended, by no doing of ours."""
        for held in self._held.values():
            if held.slot == slot:
                held.state = SandboxState.DEAD
                self._died(held.sandbox())
                return

    async def _adopt(self, held: _Held) -> None:
        """A claimed slot of before: what its first process says counts."""
        self._held[held.tenant] = held
        if not held.slot.alive():
            held.state = SandboxState.DEAD
            return
        self._pool.watch(held.slot)
        state = await self._init(held).hello()
        if state.launched_run == held.tenant.run:
            held.state = SandboxState.LAUNCHED


def _open_log(log: Path) -> int:
    """The log, to be appended to. A full volume has none: its owner must still get in, to make room."""
    try:
        output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        os.fchmod(output, 0o622)  # so that the workspace's user can open its /dev/stdout; its folder is closed to it
    except OSError as error:
        if error.errno not in {errno.ENOSPC, errno.EDQUOT}:
            raise
        return os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
    return output


def _write_tenant(held: _Held) -> None:
    record = {
        "workspace": held.tenant.workspace,
        "run": held.tenant.run,
        "role": held.tenant.role,
        "state": held.state.value,
        "environment": held.environment,
        "cwd": held.cwd,
    }
    aside = held.slot.folder / "tenant.new"
    with open(os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600), "w") as file:
        json.dump(record, file)
    aside.replace(held.slot.folder / "tenant.json")


def _read_tenant(slot: Slot) -> _Held | None:
    try:
        record = json.loads((slot.folder / "tenant.json").read_text())
    except FileNotFoundError:
        return None
    tenant = Tenant(WorkspaceId(record["workspace"]), RunNumber(record["run"]), record["role"])
    return _Held(slot, tenant, SandboxState(record["state"]), record["environment"], record["cwd"])
