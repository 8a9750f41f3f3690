"""Images on this node: pulled once, their layers shared, used only by those who have shown that they may have them.

Decides when an image that is here may be used, and when it must be brought in. How it is brought in is `bringing`'s.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from pathlib import Path

import structlog

from fairwater.domain.failure import Permanent, Temporary
from fairwater.domain.images.explain import local_only
from fairwater.domain.images.reference import Kind, Reference, parse_reference
from fairwater.domain.images.users import User
from fairwater.domain.workspaces.run import Progress
from fairwater.domain.workspaces.secrets import Credential, RunSecrets
from fairwater.node.images.bringing import Bringing, StoreSettings
from fairwater.node.images.collection import Collection, layer_folder
from fairwater.node.images.flight import SharedPulls
from fairwater.node.images.local import stamp
from fairwater.node.images.rate import WriteCeiling
from fairwater.node.images.records import ANYBODY, THIS_MACHINE, ImageRecord, NameRecord, Records
from fairwater.node.images.sandbox import ROLE, PullSandboxes
from fairwater.node.images.volume import ImageVolume
from fairwater.node.tree_removal import remove_tree
from fairwater.ports.images import ImageRoot, Images, ImageUser
from fairwater.ports.sandboxes import Sandbox

_PULLS_AT_ONCE = 2
_CHECK_AFTER_S = 3600.0
"""How old what is known of a name may be before it is checked again, for the next start."""
_CHECKS_MAX = 16


class ImageStore:
    """Implements `ports.images.Images` for all but `host`, below `folder`. Call `open` first, `close` at the end.

    `programs` is where the image `host` comes from, in which images are brought in. `in_use` tells the digests that
    sandboxes have; `group_of` the control group of a sandbox.
    """

    def __init__(
        self,
        folder: Path,
        sandboxes: PullSandboxes,
        programs: Images,
        settings: StoreSettings,
        in_use: Callable[[], frozenset[str]],
        group_of: Callable[[Sandbox], Path] | None = None,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._sandboxes = sandboxes
        self._programs = programs
        self._settings = settings
        self._now = now
        self._volume = ImageVolume(folder, settings.disk)
        self._root = self._volume.mount
        self._records = Records(self._root / "records")
        self._collection = Collection(self._root, self._records, in_use, now)
        self._ceiling = WriteCeiling(settings.pull_rate)
        self._group_of = group_of
        self._device = ""
        self._bringing = Bringing(
            self._root, self._records, self._collection, sandboxes, programs, settings, self._limit, now
        )
        self._pulls: SharedPulls[ImageRecord] = SharedPulls(_PULLS_AT_ONCE)
        self._checking: dict[tuple[str, str], asyncio.Task[None]] = {}
        self._log = structlog.get_logger().bind(part="images")

    async def open(self) -> None:
        """Mounts the disk of images, and clears what a predecessor began and did not end.

        Raises:
            Permanent: `volume_damaged`. Temporary: `disk_full`, `limit_not_applied`.
        """
        for sandbox in self._sandboxes.claimed():
            if sandbox.tenant.role == ROLE:
                await self._sandboxes.remove(sandbox)
        self._device = await asyncio.to_thread(self._volume.open)
        if self._volume.stale is not None:
            await asyncio.to_thread(self._ceiling.lift_device, self._volume.stale)
        await asyncio.to_thread(self._ceiling.hold_device, self._device)
        await asyncio.to_thread(self._sort_out)
        await self._collection.remove_unnamed()

    def _sort_out(self) -> None:
        for name in ("incoming", "removed"):
            remove_tree(self._root / name)
        for name in ("incoming", "removed", "layers", "empty"):
            (self._root / name).mkdir(exist_ok=True, mode=0o755)
        self._records.load()
        there = {f"sha256:{entry.name}" for entry in (self._root / "layers").iterdir()}
        for image in [*self._records.images.values()]:
            if not there >= set(image.layers) or not self._records.layers.keys() >= set(image.layers):
                self._records.forget_image(image.digest)
        for diff_id in self._records.layers.keys() - there:
            self._records.forget_layer(diff_id)
        for diff_id in there - self._records.layers.keys():
            remove_tree(layer_folder(self._root, diff_id))

    def _limit(self, sandbox: Sandbox) -> None:
        if self._group_of is not None:
            self._ceiling.hold_group(self._device, self._group_of(sandbox))

    @property
    def device(self) -> str:
        """The device that images are kept on, `/dev/loopN`."""
        return self._device

    async def close(self) -> None:
        """Ends what is under way; the disk stays mounted while sandboxes show images from it."""
        checks = [*self._checking.values()]
        for check in checks:
            check.cancel()
        await asyncio.gather(*checks, return_exceptions=True)
        await self._pulls.close()
        if self._device:
            await asyncio.to_thread(self._ceiling.lift_device, self._device)
        await asyncio.to_thread(self._volume.close)

    # --- ports.images.Images ------------------------------------------------------------------------------------

    async def find(self, reference: str, secrets: RunSecrets = RunSecrets()) -> ImageRoot | None:
        """Whether a person may name a folder of the machine is judged before."""
        wanted = parse_reference(reference)
        credential = self._credential(wanted, secrets)
        proof = self._proof(wanted, credential)
        name = self._known_name(wanted, proof)
        record = self._records.images.get(name.digest) if name else None
        if name is None or record is None or not {proof, ANYBODY} & set(record.proofs):
            return None
        if wanted.local and name.stamp != await asyncio.to_thread(self._stamp, wanted):
            return None
        now = self._now()
        if now - name.checked_at > _CHECK_AFTER_S and not wanted.local:
            self._check_again(wanted, credential, name.proof)
        self._records.touch(record.digest, now)
        return self._root_of(str(wanted), record)

    async def prepare(
        self,
        reference: str,
        secrets: RunSecrets = RunSecrets(),
        report: Callable[[Progress], None] = lambda _: None,
        *,
        local_allowed: bool = False,
    ) -> ImageRoot:
        wanted = parse_reference(reference)
        if wanted.kind is Kind.HOST:
            return await self._programs.prepare(reference)
        if wanted.local and not local_allowed:
            raise local_only(wanted)
        found = await self.find(reference, secrets)
        if found is not None:
            return found
        record = await self._brought(wanted, self._credential(wanted, secrets), report)
        self._records.touch(record.digest, self._now())
        return self._root_of(str(wanted), record)

    async def _brought(
        self, reference: Reference, credential: Credential | None, report: Callable[[Progress], None]
    ) -> ImageRecord:
        proof = self._proof(reference, credential)

        async def bring(tell: Callable[[Progress], None]) -> ImageRecord:
            return await self._bringing.bring(reference, credential, proof, tell)

        return await self._pulls.share((str(reference), proof), bring, report)

    def _check_again(self, reference: Reference, credential: Credential | None, proof: str) -> None:
        """Behind the caller's back, so that its start need not wait; what it finds counts from the next start on."""
        if proof == ANYBODY:
            credential = None
        key = (str(reference), proof)
        if key in self._checking or len(self._checking) >= _CHECKS_MAX:
            return

        async def check() -> None:
            try:
                await self._brought(reference, credential, lambda _: None)
            except Permanent as failure:
                if failure.code in {"image_denied", "no_such_image"}:
                    self._records.disprove(str(reference), proof)
                self._log.warning("image_not_there_any_more", image=str(reference), code=failure.code)
            except Temporary as failure:
                self._log.warning("image_not_checked", image=str(reference), reason=failure.message)
            finally:
                del self._checking[key]

        self._checking[key] = asyncio.create_task(check())

    # --- who may have what --------------------------------------------------------------------------------------

    def _credential(self, reference: Reference, secrets: RunSecrets) -> Credential | None:
        if reference.kind is not Kind.REGISTRY:
            return None
        return secrets.token_for(reference.host, plain_http=reference.host in self._settings.insecure)

    def _proof(self, reference: Reference, credential: Credential | None) -> str:
        return THIS_MACHINE if reference.local else self._records.fingerprint(credential)

    def _known_name(self, reference: Reference, proof: str) -> NameRecord | None:
        names = self._records.names
        return names.get((str(reference), proof)) or names.get((str(reference), ANYBODY))

    def _stamp(self, reference: Reference) -> str | None:
        try:
            return stamp(reference, self._settings.folders)
        except Permanent:
            return None

    def _root_of(self, reference: str, record: ImageRecord) -> ImageRoot:
        # A layer that comes twice counts where it lies uppermost: what it holds is the same.
        layers = tuple(layer_folder(self._root, diff_id) for diff_id in dict.fromkeys(reversed(record.layers)))
        return ImageRoot(
            reference=reference,
            layers=layers or (self._root / "empty",),
            environment=record.environment,
            digest=record.digest,
            user=_image_user(record.user),
            users=tuple(map(_image_user, record.users)),
            working_directory=record.working_directory,
            entrypoint=record.entrypoint,
            command=record.command,
            user_xattrs=True,
        )


def _image_user(user: User) -> ImageUser:
    return ImageUser(user.name, user.uid, user.gid, user.home, user.shell, user.groups)
