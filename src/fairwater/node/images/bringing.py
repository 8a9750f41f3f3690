"""Brings an image in: a sandbox, a pull in it, what it led to kept, and its users read.

Keeps the rule of who may use what is here already: a layer only who has brought it in themselves, or whom the registry
that it came from let have an image with it; what a manifest of somebody else's registry names proves nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import structlog

from fairwater.domain.images.manifest import ARCHITECTURES, Platform
from fairwater.domain.images.reference import HOST, Kind, Reference
from fairwater.domain.images.users import Accounts, parse_accounts, resolve_user
from fairwater.domain.units import Bytes
from fairwater.domain.workspaces.run import Progress
from fairwater.domain.workspaces.secrets import Credential
from fairwater.node.images.collection import Collection, layer_folder
from fairwater.node.images.layers import keep
from fairwater.node.images.local import opened_listed, stamp
from fairwater.node.images.pull import Brought, Found, Pull
from fairwater.node.images.records import ANYBODY, ImageRecord, LayerRecord, NameRecord, Records
from fairwater.node.images.sandbox import PullSandboxes, pull_sandbox
from fairwater.node.images.skopeo import Registry
from fairwater.node.images.view import merged, read_in
from fairwater.ports.images import Images
from fairwater.ports.sandboxes import Sandbox

_ACCOUNTS_MAX = 1024 * 1024
"""Bytes of /etc/passwd, and of /etc/group, that are read."""


@dataclass(frozen=True, slots=True)
class StoreSettings:
    """`disk` bounds the images' disk, `pull_rate` what is written to it, in bytes a second. `insecure` are registries
    (`host` or `host:port`) without TLS; `folders` those that hold images of the machine. An image may have
    `image_max` bytes unpacked, by default half of the disk."""

    disk: Bytes
    pull_rate: Bytes | None = None
    insecure: tuple[str, ...] = ()
    folders: tuple[Path, ...] = ()
    stall_s: float = 60.0
    image_max: Bytes | None = None


@dataclass
class _Access:
    """What of the layers that are here this pull may count on; they stay as long as it is under way."""

    records: Records
    collection: Collection
    proof: str
    counted: list[str] = field(default_factory=list)

    def known(self, blob: str) -> LayerRecord | None:
        record = self.records.layer_of(blob)
        if record is None or not {self.proof, ANYBODY} & set(record.proofs):
            return None
        self.count(record.diff_id)
        return record

    def here(self, diff_id: str, blob: str) -> bool:
        record = self.records.layers.get(diff_id)
        if record is None or blob not in record.blobs:
            return False
        self.count(diff_id)
        return True

    def count(self, diff_id: str) -> None:
        self.collection.pin(diff_id)
        self.counted.append(diff_id)

    def release(self) -> None:
        for diff_id in self.counted:
            self.collection.unpin(diff_id)


class Bringing:
    """`root` is the images' disk; `limit` is called with each sandbox before anything runs in it."""

    def __init__(
        self,
        root: Path,
        records: Records,
        collection: Collection,
        sandboxes: PullSandboxes,
        programs: Images,
        settings: StoreSettings,
        limit: Callable[[Sandbox], None],
        now: Callable[[], float],
    ) -> None:
        self._root = root
        self._records = records
        self._collection = collection
        self._sandboxes = sandboxes
        self._programs = programs
        self._settings = settings
        self._limit = limit
        self._now = now
        self._image_max = settings.image_max or settings.disk // 2
        machine = os.uname().machine
        self._platform = Platform("linux", ARCHITECTURES.get(machine, machine))
        self._log = structlog.get_logger().bind(part="images")

    async def bring(
        self,
        reference: Reference,
        credential: Credential | None,
        proof: str,
        report: Callable[[Progress], None],
    ) -> ImageRecord:
        """Asks what the reference stands for now, and brings in what of that is not here.

        Raises:
            Permanent, Temporary: those of `ports.images.Images.prepare`.
        """
        began = self._now()
        report(Progress("pulling image"))
        access = _Access(self._records, self._collection, proof)
        with contextlib.ExitStack() as held:
            held.callback(access.release)
            origin, shown, mark = None, None, ""
            if reference.local:
                folders = self._settings.folders
                origin = held.enter_context(opened_listed(reference, folders))
                shown = held.enter_context(_shown(reference, origin, folders))
                mark = stamp(reference, folders)
            programs = await self._programs.prepare(HOST)
            incoming = self._root / "incoming"
            async with pull_sandbox(self._sandboxes, programs, incoming, shown, self._limit) as sandbox:
                insecure = reference.host in self._settings.insecure
                registry = None if reference.local else Registry(sandbox, reference, credential, insecure)
                pull = Pull(
                    sandbox, reference, self._platform, registry, origin, Path(reference.path).name, access.known,
                    access.here, self._collection.make_room, report, self._image_max, self._settings.stall_s,
                )  # fmt: skip
                found = await pull.find()
                record = self._shown_before(reference, found, proof)
                if record is None:
                    brought = await pull.bring(found)
                    report(Progress("unpacking image"))
                    record = await self._keep(reference, brought, access, sandbox.done)
        self._records.put_name(NameRecord(str(reference), record.digest, proof, began, mark))
        self._log.info("image_ready", image=str(reference), digest=record.digest, s=round(self._now() - began, 1))
        return record

    def _shown_before(self, reference: Reference, found: Found | None, proof: str) -> ImageRecord | None:
        """The image where it is here and may be used: whoever asks had it before, or the same repository that it came
        from has just handed out its manifest to them."""
        record = self._records.images.get(found.digest) if found is not None else None
        if record is None:
            return None
        if proof in record.proofs or ANYBODY in record.proofs:
            return record
        if reference.source not in record.sources:
            return None
        for diff_id in record.layers:
            self._records.prove_layer(diff_id, proof)
        return self._records.prove_image(record.digest, proof)

    async def _keep(self, reference: Reference, brought: Brought, access: _Access, done: Path) -> ImageRecord:
        """Layers first, then what tells of them: interrupted in between, nothing counts as here that is not."""
        found, config, proof = brought.found, brought.config, access.proof
        for one in brought.unpacked:
            access.count(one.diff_id)
        await asyncio.to_thread(keep, self._root / "layers", done, brought.unpacked)
        for one in brought.unpacked:
            self._records.put_layer(LayerRecord(one.diff_id, one.size, (one.blob,), (proof,)))
        for diff_id in config.diff_ids:
            self._records.prove_layer(diff_id, proof)
        accounts = await asyncio.to_thread(self._accounts, config.diff_ids)
        return self._records.put_image(
            ImageRecord(
                digest=found.digest,
                layers=config.diff_ids,
                proofs=(proof,),
                sources=(reference.source,),
                user=resolve_user(config.user, accounts),
                users=accounts.users,
                environment=config.environment,
                working_directory=config.working_directory,
                entrypoint=config.entrypoint,
                command=config.command,
            )
        )

    def _accounts(self, diff_ids: tuple[str, ...]) -> Accounts:
        layers = tuple(layer_folder(self._root, diff_id) for diff_id in dict.fromkeys(reversed(diff_ids)))
        if not layers:
            return Accounts()
        with merged(layers, user_xattrs=True) as root:
            passwd = read_in(root, "/etc/passwd", _ACCOUNTS_MAX) or b""
            return parse_accounts(passwd, read_in(root, "/etc/group", _ACCOUNTS_MAX) or b"")


@contextlib.contextmanager
def _shown(reference: Reference, origin: int, folders: tuple[Path, ...]) -> Iterator[Path]:
    """The folder that the sandbox sees: the image itself, or that which an archive lies in."""
    if reference.kind is Kind.OCI_FOLDER:
        yield Path(f"/proc/self/fd/{origin}")
        return
    with opened_listed(Reference(Kind.OCI_FOLDER, path=str(Path(reference.path).parent)), folders) as parent:
        yield Path(f"/proc/self/fd/{parent}")
