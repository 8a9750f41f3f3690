"""Sandboxes from slots: claimed for a run, filled, used and removed.

Decides who gets which; refuses to know what a run is for, and with what a command in it begins (`node.tenancy`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

from fairwater.domain.failure import Permanent
from fairwater.domain.workspaces.parking import ParkingPolicy
from fairwater.domain.workspaces.run import SandboxState
from fairwater.domain.workspaces.setup import Task
from fairwater.node.admission import bring_in, name_host, volume_placements
from fairwater.node.cgroups import Cgroups, limits_of
from fairwater.node.host_image import REFERENCE
from fairwater.node.image_usage import ImageUsage
from fairwater.node.init_client import InitClient
from fairwater.node.output_files import opened_for_task, opened_log
from fairwater.node.pool import SlotPool
from fairwater.node.sandbox_service import Service
from fairwater.node.slot_record import Slot
from fairwater.node.slots import Network, Slots
from fairwater.node.tenancy import Held, forget_tenant, read_tenant, write_tenant
from fairwater.ports.images import ImageRoot, Images
from fairwater.ports.process import ExecRequest, Process
from fairwater.ports.sandboxes import Admission, Sandbox, Tenant

_HELPERS = frozenset({"content", "image"})
"""Roles whose sandboxes run the machine's own programs, whatever the image."""
TERMINAL = "xterm-256color"
_UNSERVED = frozenset({"image"})
"""Roles of no workspace's own."""


class ParkedSandboxes:
    """Implements `ports.sandboxes.Sandboxes` and `Launcher` on slots. Call `open` first, `close` at the end."""

    def __init__(
        self,
        slots: Slots,
        cgroups: Cgroups,
        network: Network,
        images: Images,
        usage: ImageUsage,
        policy: ParkingPolicy,
        service: Service | None = None,
    ) -> None:
        self._slots = slots
        self._cgroups = cgroups
        self._network = network
        self._images = images
        self._service = service
        self._pool = SlotPool(slots, network, images, usage, policy, REFERENCE, self._gone)
        self._held: dict[Tenant, Held] = {}
        self._died: Callable[[Sandbox], None] = lambda _: None

    async def open(self) -> None:
        """Takes over what a predecessor left, and begins to park."""
        await asyncio.to_thread(self._slots.prepare)
        for slot in await self._pool.found():
            held = read_tenant(slot)
            if held is not None:
                await self._adopt(held)
            elif slot.alive():
                self._pool.park(slot)
            else:
                self._pool.clear(slot.number)
        self._pool.fill()

    async def close(self, *, remove_parked: bool = False) -> None:
        """Stops parking; with `remove_parked`, nothing is left but the claimed ones."""
        for held in self._held.values():
            if held.arrival is not None:
                await asyncio.wait({held.arrival})
            if service := self._service_of(held):
                await service.close(held.slot.service)  # the next agent opens it anew
        await self._pool.close(remove_parked=remove_parked)
        if remove_parked and not self._held:
            await asyncio.to_thread(self._slots.release)

    def parked(self) -> int:
        return len(self._pool.parked)

    def parked_of(self, digest: str) -> int:
        return sum(slot.digest == digest for slot in self._pool.parked)

    def hits(self) -> tuple[int, int]:
        """Of how many claims, how many found a parked sandbox; since this agent began."""
        return self._pool.hits, self._pool.hits + self._pool.misses

    def prefer(self, image: ImageRoot) -> None:
        """The image was just brought in: parks a sandbox of it at once."""
        self._pool.prefer(image)

    def in_use(self) -> frozenset[str]:
        """Digests of the images that parked and claimed sandboxes show: they must stay on this node."""
        return self._pool.digests() | {held.slot.digest for held in self._held.values()}

    def group(self, sandbox: Sandbox) -> str:
        return self._get(sandbox).slot.group

    # --- ports.sandboxes.Sandboxes ------------------------------------------------------------------------------

    def claimed(self) -> tuple[Sandbox, ...]:
        return tuple(held.sandbox() for held in self._held.values())

    def watch(self, died: Callable[[Sandbox], None]) -> None:
        self._died = died

    async def claim(self, tenant: Tenant, image: ImageRoot) -> Sandbox:
        held = self._held.get(tenant)
        if held is None:
            if tenant.role in _HELPERS:
                image = await self._images.prepare(REFERENCE)
            slot = await self._pool.take(image)
            held = Held(slot, tenant, SandboxState.PARKED, slot.user)
            self._held[tenant] = held
            held.arrival = self._begin_arrival(held)
            write_tenant(held)
        return held.sandbox()

    async def admit(self, sandbox: Sandbox, admission: Admission) -> None:
        held = self._get(sandbox)
        service = self._service_of(held)
        held.admit(admission, service.environment(held.tenant.workspace) if service else {})
        await asyncio.to_thread(self._admit, held, admission)
        arrival, held.arrival = held.arrival or self._begin_arrival(held), None
        await arrival
        held.state = SandboxState.ADMITTED
        write_tenant(held)

    def _admit(self, held: Held, admission: Admission) -> None:
        slot = held.slot
        self._cgroups.limit(slot.group, limits_of(admission.limits))
        placements = volume_placements(admission.volume, held.user)
        bring_in(slot, self._slots.first_id(slot), held.user, placements, admission.binds)

    def _begin_arrival(self, held: Held) -> asyncio.Future[None]:
        def name_and_open() -> None:
            name_host(held.slot, str(held.tenant.workspace))
            self._network.open(held.slot.number)

        async def arrive() -> None:
            named = asyncio.ensure_future(asyncio.to_thread(name_and_open))
            try:
                if service := self._service_of(held):
                    await service.open(held.slot.service, held.tenant.workspace)
            finally:
                await named

        arrival = asyncio.ensure_future(arrive())
        arrival.add_done_callback(lambda done: done.cancelled() or done.exception())  # told to whoever awaits it
        return arrival

    def _service_of(self, held: Held) -> Service | None:
        return None if held.tenant.role in _UNSERVED else self._service

    async def remove(self, sandbox: Sandbox) -> None:
        held = self._held.get(sandbox.tenant)
        if held is None or held.sandbox().id != sandbox.id:
            return
        self._pool.unwatch(held.slot.number)
        if held.arrival is not None:
            await asyncio.wait({held.arrival})
        if service := self._service_of(held):
            await service.close(held.slot.service)
        await asyncio.to_thread(self._kill, held.slot)
        forget_tenant(held.slot)
        del self._held[sandbox.tenant]
        self._pool.clear(held.slot.number)

    def _kill(self, slot: Slot) -> None:
        self._network.close(slot.number)
        self._slots.kill(slot)

    # --- ports.sandboxes.Launcher -------------------------------------------------------------------------------

    async def launch(
        self, sandbox: Sandbox, command: tuple[str, ...] | None, log: Path, *, cwd: str | None = None
    ) -> None:
        held = self._get(sandbox)
        what = held.first_command(command or (), cwd)
        with opened_log(log) as output:
            await self._init(held).launch(held.tenant.run, what, stdout=output, stderr=output)
        held.state = SandboxState.LAUNCHED

    async def start_task(self, sandbox: Sandbox, task: Task, log: Path, status: Path) -> None:
        held = self._get(sandbox)
        what = held.command(("sh", "-c", task.script), None, {"TERM": TERMINAL, **dict(task.environment)})
        with opened_for_task(log) as output, opened_for_task(status) as result:
            try:
                await self._init(held).start_task(task.number, what, log=output, status=result)
            except Permanent as failure:
                raise _no_shell() if failure.code == "command_not_found" else failure from failure

    async def exec(self, sandbox: Sandbox, request: ExecRequest) -> Process:
        held = self._get(sandbox)
        variables = dict(request.environment)
        if request.terminal:
            variables.setdefault("TERM", TERMINAL)
        what = held.command(request.command, request.cwd, variables, request.user)
        return await self._init(held).exec(what, request.terminal)

    async def terminate(self, sandbox: Sandbox) -> None:
        await self._init(self._get(sandbox)).terminate()

    async def alive(self, sandbox: Sandbox) -> int:
        return max(0, self._cgroups.processes(self._get(sandbox).slot.group) - 1)

    def _init(self, held: Held) -> InitClient:
        return InitClient(held.slot.control, host_ids=self._slots.first_id(held.slot))

    def _get(self, sandbox: Sandbox) -> Held:
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

    async def _adopt(self, held: Held) -> None:
        """A claimed slot of before: what its first process says counts."""
        self._held[held.tenant] = held
        if not held.slot.alive():
            held.state = SandboxState.DEAD
            return
        self._pool.watch(held.slot)
        if service := self._service_of(held):
            await service.open(held.slot.service, held.tenant.workspace)
        state = await self._init(held).hello()
        if state.launched_run == held.tenant.run:
            held.state = SandboxState.LAUNCHED


def _no_shell() -> Permanent:
    return Permanent(
        "the image has no shell 'sh', which tasks are run by: take an image with one, or leave the tasks out",
        code="no_shell",
    )
