"""Brings a repository onto a volume with git as a plain process of the machine.

Decides nothing about git itself (`domain.workspaces.git` has its commands and its words); keeps the order of the
steps: cloned aside, out of the workspace's sight, then moved into place, then marked as complete.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO

from fairwater.domain.failure import Permanent
from fairwater.domain.ids import RunNumber, WorkspaceId
from fairwater.domain.workspaces.git import (
    CONFIG,
    clone_commands,
    clone_environment,
    explain_end,
    out_of_time,
    path_of,
    refuses_single_commit,
)
from fairwater.domain.workspaces.run import Progress, Source
from fairwater.node.git_words import GitFailed, GitWords
from fairwater.node.plain.log import open_log

_PATH = "/usr/local/bin:/usr/bin:/bin"
_CHUNK_BYTES = 8192


class PlainContent:
    """Implements `ports.content.Content`; `file://` sources must lie below one of `local_roots`."""

    def __init__(self, local_roots: Sequence[Path] = (), *, timeout_s: float = 900.0) -> None:
        self._local_roots = tuple(local_roots)
        self._timeout_s = timeout_s

    def ready(self, volume: Path) -> bool:
        return (volume / "state" / "content-ready").exists()

    async def bring(
        self,
        workspace: WorkspaceId,
        run: RunNumber,
        source: Source | None,
        volume: Path,
        log: Path,
        report: Callable[[Progress], None],
    ) -> None:
        if self.ready(volume):
            return
        if source is not None:
            if source.local:
                self._refuse_unlisted(source)
            await self._bring(source, volume, log, report)
        (volume / "state" / "content-ready").touch(mode=0o600)

    async def _bring(self, source: Source, volume: Path, log: Path, report: Callable[[Progress], None]) -> None:
        place = volume / "workspace" / source.name
        if place.exists():
            return  # moved into place before an interruption; only the mark was missing
        incoming = volume / "state" / "incoming"
        await asyncio.to_thread(shutil.rmtree, incoming, ignore_errors=True)
        incoming.mkdir(mode=0o700)
        (incoming / "home").mkdir(mode=0o700)
        (incoming / "config").write_text(CONFIG, encoding="ascii")
        environment = clone_environment(source, os.fspath(incoming / "home"), os.fspath(incoming / "config"))
        target = incoming / "repository"
        try:
            with open_log(log) as output:
                async with asyncio.timeout(self._timeout_s):
                    await self._clone(source, target, {**environment, "PATH": _PATH}, output, report)
            target.rename(place)
        except TimeoutError:
            raise out_of_time(source, self._timeout_s) from None
        except GitFailed as failed:
            raise explain_end(failed.status, failed.stderr, source) from failed
        finally:
            await asyncio.to_thread(shutil.rmtree, incoming, ignore_errors=True)

    async def _clone(
        self,
        source: Source,
        target: Path,
        environment: dict[str, str],
        output: IO[bytes],
        report: Callable[[Progress], None],
    ) -> None:
        try:
            for command in clone_commands(source, os.fspath(target)):
                await _run_git(command, target.parent, environment, output, report)
        except GitFailed as failed:
            if source.ref is None or not refuses_single_commit(failed.stderr):
                raise
            await asyncio.to_thread(shutil.rmtree, target, ignore_errors=True)
            for command in clone_commands(source, os.fspath(target), whole=True):
                await _run_git(command, target.parent, environment, output, report)

    def _refuse_unlisted(self, source: Source) -> None:
        """A path is judged by where it really leads, symlinks followed."""
        path = Path(path_of(source))
        real = path.resolve()
        if not any(real.is_relative_to(root.resolve()) for root in self._local_roots):
            listed = ", ".join(map(str, self._local_roots)) or "none is"
            raise Permanent(
                f"{path} is not below a folder listed for file:// URLs ({listed}): add its folder to the configuration",
                code="not_a_listed_root",
            )


async def _run_git(
    command: tuple[str, ...],
    folder: Path,
    environment: dict[str, str],
    output: IO[bytes],
    report: Callable[[Progress], None],
) -> None:
    """Runs one command of git to its end; with the caller interrupted, it and all it started are killed.

    Raises:
        GitFailed: its status is not 0.
    """
    try:
        process = await asyncio.create_subprocess_exec(
            *command,
            cwd=folder,
            env=environment,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
            start_new_session=True,
        )
    except FileNotFoundError:
        raise Permanent("git is not installed on this machine: install it (apt install git)", code="no_git") from None
    assert process.stderr is not None
    words = GitWords(output, report)
    try:
        while chunk := await process.stderr.read(_CHUNK_BYTES):
            words.feed(chunk)
        status = await process.wait()
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        await process.wait()
    if status != 0:
        raise GitFailed(status if status > 0 else 128 - status, words.said)
