"""Brings a repository onto a volume with git in a helper sandbox of its own, limited like any neighbour.

Decides nothing about git (`domain.workspaces.git` has its commands and words). The helper sees the volume, the network
under the rules of every workspace, and for `file://` the one repository, read-only; it is killed when it is done.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import shlex
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import IO, Protocol

from fairwater.domain.failure import Permanent
from fairwater.domain.ids import RunNumber, WorkspaceId
from fairwater.domain.units import GIB, Bytes
from fairwater.domain.workspaces.classes import WorkspaceClass
from fairwater.domain.workspaces.git import (
    clone_commands,
    clone_environment,
    explain_end,
    out_of_time,
    path_of,
    refuses_single_commit,
)
from fairwater.domain.workspaces.run import Progress, Source
from fairwater.node import linux
from fairwater.node.git_words import GitFailed, GitWords
from fairwater.node.host_image import HOME, REFERENCE
from fairwater.ports.process import Channel, ExecRequest
from fairwater.ports.sandboxes import Admission, Launcher, Sandbox, Sandboxes, Tenant

HELPER_LIMITS = WorkspaceClass("content", cpu_cores=2, memory=Bytes(2 * GIB), processes=512, disk=Bytes(0))
_ORIGIN = "/mnt/origin"
_INCOMING = "/workspace/.fairwater-incoming"
_PREPARE = f"rm -rf {_INCOMING} && mkdir {_INCOMING} {_INCOMING}/home && cp -rn /etc/skel/. {HOME}/"
_MARK = "content-ready"


class _Sandboxes(Sandboxes, Launcher, Protocol):
    """Both halves are needed, of the same thing."""


class SandboxedContent:
    """Implements `ports.content.Content`; `file://` sources must lie below one of `local_roots`."""

    def __init__(self, sandboxes: _Sandboxes, local_roots: Sequence[Path] = (), *, timeout_s: float = 900.0) -> None:
        self._sandboxes = sandboxes
        self._local_roots = tuple(local_roots)
        self._timeout_s = timeout_s

    def ready(self, volume: Path) -> bool:
        return (volume / "state" / _MARK).exists()

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
        tenant = Tenant(workspace, run, role="content")
        with contextlib.ExitStack() as held:
            binds: tuple[tuple[Path, str], ...] = ()
            if source is not None and source.local:
                binds = ((held.enter_context(self._listed(source)), _ORIGIN),)
            output = held.enter_context(_appending(log))
            sandbox = await self._sandboxes.claim(tenant, REFERENCE)
            try:
                admission = Admission(HELPER_LIMITS, volume, {}, "/workspace", binds)
                await self._sandboxes.admit(sandbox, admission)
                async with asyncio.timeout(self._timeout_s):
                    await self._fill(sandbox, source, output, report)
            except TimeoutError:
                assert source is not None
                raise out_of_time(source, self._timeout_s) from None
            except GitFailed as failed:
                if source is None:
                    raise Permanent(
                        f"the volume cannot be prepared: {failed.stderr[-300:]}", code="clone_failed"
                    ) from failed
                raise explain_end(failed.status, failed.stderr, source) from failed
            finally:
                await asyncio.shield(self._clear(sandbox, volume))
        (volume / "state" / _MARK).touch(mode=0o600)

    async def _clear(self, sandbox: Sandbox, volume: Path) -> None:
        await self._sandboxes.remove(sandbox)
        # Nobody is left who could swap a folder for a link meanwhile, and rmtree follows none.
        await asyncio.to_thread(shutil.rmtree, volume / _INCOMING.lstrip("/"), ignore_errors=True)

    async def _fill(
        self, sandbox: Sandbox, source: Source | None, output: IO[bytes], report: Callable[[Progress], None]
    ) -> None:
        words = GitWords(output, report)
        await self._run(sandbox, ("sh", "-c", _PREPARE), {}, words)
        finish = f"rm -rf {_INCOMING}"
        if source is not None:
            await self._clone(sandbox, source, words, output, report)
            place = shlex.quote(f"/workspace/{source.name}")
            finish = f"rm -rf {place} && mv -T {_INCOMING}/repository {place} && {finish}"
        await self._run(sandbox, ("sh", "-c", finish), {}, words)

    async def _clone(
        self, sandbox: Sandbox, source: Source, words: GitWords, output: IO[bytes], report: Callable[[Progress], None]
    ) -> None:
        environment = clone_environment(source, f"{_INCOMING}/home", "/etc/gitconfig")
        seen = replace(source, clone_url=f"file://{_ORIGIN}") if source.local else source
        target = f"{_INCOMING}/repository"
        try:
            for command in clone_commands(seen, target):
                await self._run(sandbox, command, environment, words)
        except GitFailed as failed:
            if source.ref is None or not refuses_single_commit(failed.stderr):
                raise
            words = GitWords(output, report)
            await self._run(sandbox, ("rm", "-rf", target), {}, words)
            for command in clone_commands(seen, target, whole=True):
                await self._run(sandbox, command, environment, words)
        if source.local:
            rename = ("git", "-C", target, "remote", "set-url", "--", "origin", source.clone_url)
            await self._run(sandbox, rename, environment, words)

    async def _run(
        self, sandbox: Sandbox, command: tuple[str, ...], environment: dict[str, str], words: GitWords
    ) -> None:
        """One command to its end. Interrupted, it is hung up; the sandbox is about to be removed anyway.

        Raises:
            GitFailed: its status is not 0.
        """
        request = ExecRequest(command, cwd="/workspace", environment=tuple(environment.items()))
        process = await self._sandboxes.exec(sandbox, request)
        try:
            await process.write(b"")
            async for channel, chunk in process.output():
                if channel is Channel.STDERR:
                    words.feed(chunk)
            status = await process.wait()
        finally:
            await process.close()
        if status:
            raise GitFailed(status, words.said)

    @contextlib.contextmanager
    def _listed(self, source: Source) -> Iterator[Path]:
        """The repository of a `file://` URL, held open, so that what was checked is what is shown to the helper."""
        path = Path(path_of(source))
        for root in self._local_roots:
            if not path.is_relative_to(root):
                continue
            with linux.opened(root, os.O_PATH | os.O_DIRECTORY) as folder:
                below = os.fspath(path.relative_to(root))
                rules = linux.RESOLVE_BENEATH | linux.RESOLVE_NO_SYMLINKS | linux.RESOLVE_NO_MAGICLINKS
                try:
                    found = linux.openat2(folder, below, os.O_PATH | os.O_DIRECTORY, resolve=rules)
                except OSError as error:
                    raise _not_there(path, error) from error
            try:
                yield Path(f"/proc/self/fd/{found}")
            finally:
                os.close(found)
            return
        listed = ", ".join(map(str, self._local_roots)) or "none is"
        raise Permanent(
            f"{path} is not below a folder listed for file:// URLs ({listed}): add its folder to git_file_roots in the "
            "configuration",
            code="not_a_listed_root",
        )


def _not_there(path: Path, error: OSError) -> Permanent:
    if error.errno in {errno.ELOOP, errno.EXDEV}:
        return Permanent(f"{path} leads through a symbolic link: give its real path", code="not_a_listed_root")
    return Permanent(f"{path} is not a git repository: {error.strerror}", code="not_a_repository")


@contextlib.contextmanager
def _appending(log: Path) -> Iterator[IO[bytes]]:
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW
    with os.fdopen(os.open(log, flags, 0o600), "wb", buffering=0) as output:
        yield output
