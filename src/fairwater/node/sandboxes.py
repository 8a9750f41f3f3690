"""Sandboxes from slots: claimed for a run, filled, watched, and removed behind its back.

Keeps as many slots parked as it is told, so that a start finds one ready. Decides which slot a run gets; refuses to
know what a run is for.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import structlog

from fairwater.domain.failure import Permanent, Temporary
from fairwater.domain.ids import RunNumber, WorkspaceId
from fairwater.domain.workspaces.run import SandboxState
from fairwater.node.admission import bring_in, name_host, volume_placements
from fairwater.node.cgroups import Cgroups, limits_of
from fairwater.node.host_image import HOME, REFERENCE, UID, USER
from fairwater.node.init_client import InitClient
from fairwater.node.init_messages import Command
from fairwater.node.slots import SLOTS_MAX, Network, Slot, Slots
from fairwater.ports.images import Images
from fairwater.ports.process import ExecRequest, Process
from fairwater.ports.sandboxes import Admission, Sandbox, SandboxId, Tenant

_MAKING_AT_ONCE = 2
_RETRY_S = (1.0, 5.0, 15.0, 60.0)


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
        self._images = images
        self._target = parked
        self._image = image
        self._parked: list[Slot] = []
        self._held: dict[Tenant, _Held] = {}
        self._numbers: set[int] = set()
        self._pidfds: dict[int, int] = {}
        self._died: Callable[[Sandbox], None] = lambda _: None
        self._making = asyncio.Semaphore(_MAKING_AT_ONCE)
        self._tasks: set[asyncio.Task[None]] = set()
        self._wanted = asyncio.Event()
        self._closed = False
        self._log = structlog.get_logger().bind(part="sandboxes")
        self.last_failure: str | None = None

    async def open(self) -> None:
        """Takes over what a predecessor left, and begins to park."""
        await asyncio.to_thread(self._slots.prepare)
        for number, slot in await asyncio.to_thread(self._slots.found):
            self._numbers.add(number)
            held = _read_tenant(slot) if slot is not None else None
            if slot is None or (held is None and not slot.alive()):
                self._clear_behind(number)
            elif held is None:
                self._parked.append(slot)
                self._watch(slot)
            else:
                await self._adopt(held)
        self._spawn(self._keep_parked())

    async def close(self, *, remove_parked: bool = False) -> None:
        """Stops parking; with `remove_parked`, nothing is left but the claimed ones."""
        self._closed = True
        self._wanted.set()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for number in list(self._pidfds):
            self._unwatch(number)
        if remove_parked:
            for slot in self._parked:
                await asyncio.to_thread(self._slots.clear, slot.number)
            self._parked.clear()

    def parked(self) -> int:
        return len(self._parked)

    # --- ports.sandboxes.Sandboxes ------------------------------------------------------------------------------

    def claimed(self) -> tuple[Sandbox, ...]:
        return tuple(held.sandbox() for held in self._held.values())

    def watch(self, died: Callable[[Sandbox], None]) -> None:
        self._died = died

    async def claim(self, tenant: Tenant, image: str) -> Sandbox:
        held = self._held.get(tenant)
        if held is None:
            slot = self._take(image)
            if slot is None:
                root = await self._images.prepare(image)
                self._log.info("pool_empty", image=root.reference)
                slot = await self._make(image)
            held = _Held(slot, tenant, SandboxState.PARKED)
            self._held[tenant] = held
            held.naming = self._begin_naming(held)
            _write_tenant(held)
            self._wanted.set()
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
        self._unwatch(held.slot.number)
        if held.naming is not None:
            await asyncio.wait({held.naming})
        await asyncio.to_thread(self._kill, held.slot)
        (held.slot.folder / "tenant.json").unlink(missing_ok=True)
        del self._held[sandbox.tenant]
        self._clear_behind(held.slot.number)

    def _kill(self, slot: Slot) -> None:
        self._network.close(slot.number)
        self._slots.kill(slot)

    # --- ports.sandboxes.Launcher -------------------------------------------------------------------------------

    async def launch(self, sandbox: Sandbox, command: tuple[str, ...] | None, log: Path) -> None:
        held = self._get(sandbox)
        output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            what = self._command(held, command or (), None, {}, "workspace")
            await self._init(held).launch(held.tenant.run, what, stdout=output, stderr=output)
        finally:
            os.close(output)
        held.state = SandboxState.LAUNCHED

    async def exec(self, sandbox: Sandbox, request: ExecRequest) -> Process:
        held = self._get(sandbox)
        what = self._command(held, request.command, request.cwd, dict(request.environment), request.user)
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

    # --- the pool -----------------------------------------------------------------------------------------------

    def _take(self, image: str) -> Slot | None:
        for index, slot in enumerate(self._parked):
            if slot.image == image and slot.alive():
                return self._parked.pop(index)
        return None

    async def _make(self, image: str) -> Slot:
        async with self._making:
            number = self._free_number()
            self._numbers.add(number)
            try:
                root = await self._images.prepare(image)
                slot = await asyncio.to_thread(self._slots.park, number, root)
                await InitClient(slot.control).hello()
            except BaseException:
                self._numbers.discard(number)
                raise
        self._watch(slot)
        return slot

    def _free_number(self) -> int:
        for number in range(SLOTS_MAX):
            if number not in self._numbers:
                return number
        raise Temporary(f"all {SLOTS_MAX} slots of this node are taken: stop a workspace", code="node_full", delay_s=5)

    async def _keep_parked(self) -> None:
        """Fills the pool whenever it is short; backs off while slots cannot be made."""
        failures = 0
        while not self._closed:
            self._wanted.clear()
            short = self._target - len(self._parked)
            if short > 0:
                made = await asyncio.gather(
                    *(self._make(self._image) for _ in range(min(short, _MAKING_AT_ONCE))), return_exceptions=True
                )
                slots = [slot for slot in made if isinstance(slot, Slot)]
                self._parked.extend(slots)
                failed = [error for error in made if isinstance(error, BaseException)]
                for error in failed:
                    if not isinstance(error, (Temporary, Permanent)):
                        self._log.error("parking_failed", error=repr(error))
                if slots:
                    failures = 0
                    self.last_failure = None
                    continue
                self.last_failure = str(failed[0])
                self._log.warning("parking_delayed", reason=self.last_failure)
                delay_s = _RETRY_S[min(failures, len(_RETRY_S) - 1)]
                failures += 1
            else:
                delay_s = 30.0
            try:
                await asyncio.wait_for(self._wanted.wait(), delay_s)
            except TimeoutError:
                await self._repair_network()

    async def _repair_network(self) -> None:
        """Somebody else may have flushed the machine's rules; nobody tells."""
        try:
            await asyncio.to_thread(self._network.prepare)
        except (Temporary, Permanent) as failure:
            self._log.warning("network_not_prepared", reason=failure.message)

    def _clear_behind(self, number: int) -> None:
        async def clear() -> None:
            try:
                await asyncio.to_thread(self._slots.clear, number)
                self._numbers.discard(number)
            except Exception:  # noqa: BLE001 - the number stays taken; the next start of the agent clears it
                self._log.exception("slot_not_cleared", slot=number)

        self._spawn(clear())

    # --- watching -----------------------------------------------------------------------------------------------

    def _watch(self, slot: Slot) -> None:
        try:
            pidfd = os.pidfd_open(slot.pid)
        except ProcessLookupError:
            asyncio.get_running_loop().call_soon(self._gone, slot)
            return
        self._pidfds[slot.number] = pidfd
        asyncio.get_running_loop().add_reader(pidfd, self._gone, slot)

    def _unwatch(self, number: int) -> None:
        pidfd = self._pidfds.pop(number, None)
        if pidfd is not None:
            asyncio.get_running_loop().remove_reader(pidfd)
            os.close(pidfd)

    def _gone(self, slot: Slot) -> None:
        """The first process of `slot` ended, by no doing of ours."""
        self._unwatch(slot.number)
        if slot in self._parked:
            self._parked.remove(slot)
            self._clear_behind(slot.number)
            self._wanted.set()
            return
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
        self._watch(held.slot)
        state = await self._init(held).hello()
        if state.launched_run == held.tenant.run:
            held.state = SandboxState.LAUNCHED

    def _spawn(self, work: object) -> None:
        task = asyncio.ensure_future(work)  # type: ignore[call-overload]
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


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
