"""Brings content onto a volume in a helper sandbox of its own, limited like any neighbour.

Decides nothing about git (`content_bringing` has the order, `domain.workspaces.git` the commands). The helper sees the
volume, the network under the rules of every workspace, the workspace's own credentials by way of the service that
serves them, and for `file://` the repositories named, read-only; it is killed when it is done.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO

from fairwater.domain.ids import RunNumber, WorkspaceId
from fairwater.domain.units import GIB, Bytes
from fairwater.domain.workspaces.classes import WorkspaceClass
from fairwater.domain.workspaces.run import Progress, Source
from fairwater.domain.workspaces.setup import Brought
from fairwater.node.content_bringing import INCOMING, Bringing, Places
from fairwater.node.content_files import (
    folder_is_there,
    home_filled,
    keep_brought,
    keep_home_filled,
    read_brought,
    read_config_files,
)
from fairwater.node.content_helper import Helper, HelperSandboxes
from fairwater.node.content_home import fill_from_image, fill_from_skeleton
from fairwater.node.host_image import HOME, REFERENCE
from fairwater.node.tree_removal import remove_tree
from fairwater.ports.content import Configure
from fairwater.ports.images import ImageRoot, Images, ImageUser
from fairwater.ports.sandboxes import Admission, Sandbox, Tenant
from fairwater.ports.secrets import SecretKeeper

HELPER_LIMITS = WorkspaceClass("content", cpu_cores=2, memory=Bytes(2 * GIB), processes=512, disk=Bytes(0))


class SandboxedContent:
    """Implements `ports.content.Content`; `file://` sources must lie below one of `local_roots`."""

    def __init__(
        self,
        sandboxes: HelperSandboxes,
        images: Images,
        secrets: SecretKeeper,
        local_roots: Sequence[Path] = (),
        *,
        timeout_s: float = 900.0,
    ) -> None:
        self._sandboxes = sandboxes
        self._images = images
        self._secrets = secrets
        self._local_roots = tuple(local_roots)
        self._timeout_s = timeout_s

    def brought(self, volume: Path) -> Brought | None:
        return read_brought(volume)

    async def bring(
        self,
        workspace: WorkspaceId,
        run: RunNumber,
        source: Source | None,
        dotfiles: Source | None,
        volume: Path,
        log: Path,
        report: Callable[[Progress], None],
        configure: Configure,
    ) -> Brought:
        brought = read_brought(volume)
        if brought is not None:
            return brought
        places = Places(volume, "/workspace", HOME)
        with _appending(log) as output:
            async with self._helper(workspace, run, volume) as helper:
                helper.talk(f"{places.incoming}/home", output, report)
                if source is not None and source.local:
                    await helper.show(source)  # what cannot be shown is told before anything is done
                brought = await Bringing(helper, places, self._timeout_s).run(source, dotfiles, configure)
        await asyncio.to_thread(keep_brought, volume, brought)
        return brought

    async def config_files(self, volume: Path, repository: str) -> Mapping[str, bytes]:
        return await asyncio.to_thread(read_config_files, volume / "workspace", repository)

    async def has_folder(self, volume: Path, folder: str) -> bool:
        return await asyncio.to_thread(folder_is_there, volume, folder)

    def home_ready(self, volume: Path) -> bool:
        return home_filled(volume)

    async def fill_home(
        self, workspace: WorkspaceId, run: RunNumber, volume: Path, image: ImageRoot, user: ImageUser
    ) -> None:
        if home_filled(volume):
            return
        async with self._helper(workspace, run, volume) as helper:
            if image.reference == REFERENCE:
                await fill_from_skeleton(helper.start)
            else:
                await fill_from_image(helper.start, image, user, self._timeout_s)
        await asyncio.to_thread(keep_home_filled, volume)

    @contextlib.asynccontextmanager
    async def _helper(self, workspace: WorkspaceId, run: RunNumber, volume: Path) -> AsyncIterator[Helper]:
        """A helper that sees the volume, for as long as the block lasts."""
        image = await self._images.prepare(REFERENCE)
        sandbox = await self._sandboxes.claim(Tenant(workspace, run, role="content"), image)
        admission = Admission(HELPER_LIMITS, volume, {}, "/workspace")
        helper = Helper(self._sandboxes, sandbox, admission, self._local_roots, self._secrets.get(workspace))
        try:
            await self._sandboxes.admit(sandbox, admission)
            yield helper
        finally:
            await asyncio.shield(self._clear(sandbox, volume))
            helper.close()

    async def _clear(self, sandbox: Sandbox, volume: Path) -> None:
        await self._sandboxes.remove(sandbox)
        # Nobody is left who could change anything in it meanwhile.
        await asyncio.to_thread(remove_tree, volume / "workspace" / INCOMING)


@contextlib.contextmanager
def _appending(log: Path) -> Iterator[IO[bytes]]:
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW
    with os.fdopen(os.open(log, flags, 0o600), "wb", buffering=0) as output:
        yield output
