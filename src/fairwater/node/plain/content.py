"""Brings content onto a volume with git as a plain process of the machine.

Decides nothing about git itself: see `node.content_bringing`. Credentials reach git through files that exist in memory
only (`git_credentials`).
"""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO

from fairwater.domain.failure import Permanent
from fairwater.domain.ids import RunNumber, WorkspaceId
from fairwater.domain.workspaces.git import CONFIG
from fairwater.domain.workspaces.git_urls import has_key_for, path_of
from fairwater.domain.workspaces.run import Progress, Source
from fairwater.domain.workspaces.secrets import RunSecrets
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
from fairwater.node.git_words import GitWords, listen
from fairwater.node.plain.git_credentials import HandedOver
from fairwater.node.plain.log import open_log
from fairwater.node.plain.process import start_process
from fairwater.ports.content import Configure
from fairwater.ports.images import ImageRoot, ImageUser
from fairwater.ports.secrets import SecretKeeper

_PATH = "/usr/local/bin:/usr/bin:/bin"


class PlainContent:
    """Implements `ports.content.Content`; `file://` sources must lie below one of `local_roots`. Without `secrets`,
    nobody signs in."""

    def __init__(
        self, local_roots: Sequence[Path] = (), secrets: SecretKeeper | None = None, *, timeout_s: float = 900.0
    ) -> None:
        self._local_roots = tuple(local_roots)
        self._secrets = secrets
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
        places = Places(volume, os.fspath(volume / "workspace"), os.fspath(volume / "home"))
        secrets = self._secrets.get(workspace) if self._secrets else RunSecrets()
        config = volume / "state" / "gitconfig"
        try:
            with open_log(log) as output, HandedOver(secrets) as handed:
                config.write_text(CONFIG, encoding="ascii")
                runner = _Runner(places, config, self._local_roots, secrets, handed, output, report)
                if source is not None and source.local:
                    await runner.show(source)
                brought = await Bringing(runner, places, self._timeout_s).run(source, dotfiles, configure)
        finally:
            config.unlink(missing_ok=True)
            await asyncio.to_thread(shutil.rmtree, volume / "workspace" / INCOMING, ignore_errors=True)
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
        """Nothing but the mark: the machine's own folders are no image's."""
        await asyncio.to_thread(keep_home_filled, volume)


class _Runner:
    """Implements `content_runner.GitRunner`."""

    def __init__(
        self,
        places: Places,
        config: Path,
        local_roots: Sequence[Path],
        secrets: RunSecrets,
        handed: HandedOver,
        output: IO[bytes],
        report: Callable[[Progress], None],
    ) -> None:
        self._places = places
        self._local_roots = local_roots
        self._secrets = secrets
        self._handed = handed
        self._output = output
        self._report = report
        self.home = f"{places.incoming}/home"
        self.config = os.fspath(config)

    async def run(self, command: tuple[str, ...], environment: Mapping[str, str], printed_max: int = 0) -> bytes:
        variables = {**self._handed.environment(environment), "PATH": _PATH}
        try:
            process = start_process(command, self._places.workspace, variables)
        except Permanent as failure:
            if failure.code == "command_not_found" and command[0] == "git":
                raise Permanent(
                    "git is not installed on this machine: install it (apt install git)", code="no_git"
                ) from failure
            raise
        try:
            return await listen(process, GitWords(self._output, self._report), printed_max)
        finally:
            # Interrupted, neither it nor what it started may go on.
            await process.signal("KILL")
            await process.wait()

    async def show(self, source: Source) -> tuple[str, ...]:
        """Git reads it where it is. A path is judged by where it really leads, symlinks followed."""
        path = Path(path_of(source))
        real = path.resolve()
        if not any(real.is_relative_to(root.resolve()) for root in self._local_roots):
            listed = ", ".join(map(str, self._local_roots)) or "none is"
            raise Permanent(
                f"{path} is not below a folder listed for file:// URLs ({listed}): add its folder to the configuration",
                code="not_a_listed_root",
            )
        return ()

    def offers_key(self, source: Source) -> bool:
        return has_key_for(self._secrets, source.clone_url)
