"""A helper sandbox for content, as `content_runner.GitRunner`; and which repositories of the machine it is shown.

A `file://` repository is opened below a listed folder, by descriptor and without following a link, and shown to the
helper read-only: what was checked is what is shown.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import IO, Protocol

from fairwater.domain.failure import Permanent
from fairwater.domain.workspaces.git import seen_at
from fairwater.domain.workspaces.git_urls import has_key_for, path_of
from fairwater.domain.workspaces.run import Progress, Source
from fairwater.domain.workspaces.secrets import RunSecrets
from fairwater.node import linux
from fairwater.node.git_words import GitWords, listen
from fairwater.ports.process import ExecRequest, Process
from fairwater.ports.sandboxes import Admission, Launcher, Sandbox, Sandboxes

_ORIGINS = "/mnt/origin"
_ORIGINS_MAX = 32


class HelperSandboxes(Sandboxes, Launcher, Protocol):
    """Both halves are needed, of the same thing."""


class Helper:
    """An admitted sandbox. `secrets` say only which hosts the person has keys for: it is served them by others.

    To be left (`close`) when the sandbox is gone.
    """

    def __init__(
        self,
        sandboxes: HelperSandboxes,
        sandbox: Sandbox,
        admission: Admission,
        local_roots: Sequence[Path],
        secrets: RunSecrets,
    ) -> None:
        self._sandboxes = sandboxes
        self._sandbox = sandbox
        self._admission = admission
        self._local_roots = local_roots
        self._secrets = secrets
        self._held = contextlib.ExitStack()
        self._shown: dict[str, str] = {}
        self._output: IO[bytes] | None = None
        self._report: Callable[[Progress], None] = lambda _: None
        self.home = "/workspace"
        self.config = "/etc/gitconfig"

    def talk(self, home: str, output: IO[bytes], report: Callable[[Progress], None]) -> None:
        """What commands say goes to `output` and `report` from now on; `home` is an empty folder."""
        self.home, self._output, self._report = home, output, report

    def close(self) -> None:
        self._held.close()

    async def start(self, command: tuple[str, ...], environment: Mapping[str, str] | None = None) -> Process:
        request = ExecRequest(command, cwd="/workspace", environment=tuple((environment or {}).items()))
        return await self._sandboxes.exec(self._sandbox, request)

    # --- content_runner.GitRunner -----------------------------------------------------------------------------

    async def run(self, command: tuple[str, ...], environment: Mapping[str, str], printed_max: int = 0) -> bytes:
        assert self._output is not None
        words = GitWords(self._output, self._report)
        return await listen(await self.start(command, environment), words, printed_max)

    async def show(self, source: Source) -> tuple[str, ...]:
        place = self._shown.get(source.clone_url)
        if place is None:
            if len(self._shown) == _ORIGINS_MAX:
                raise Permanent(
                    f"more than {_ORIGINS_MAX} repositories of this machine are not brought into one workspace",
                    code="clone_failed",
                )
            place = f"{_ORIGINS}-{len(self._shown)}"
            folder = self._held.enter_context(listed(source, self._local_roots))
            self._admission = replace(self._admission, binds=(*self._admission.binds, (folder, place)))
            await self._sandboxes.admit(self._sandbox, self._admission)
            self._shown[source.clone_url] = place
        return seen_at(source.clone_url, place)

    def offers_key(self, source: Source) -> bool:
        return has_key_for(self._secrets, source.clone_url)


@contextlib.contextmanager
def listed(source: Source, roots: Sequence[Path]) -> Iterator[Path]:
    """The repository of a `file://` URL below one of `roots`, by a path that leads to it while the block lasts.

    Raises:
        Permanent: `not_a_listed_root`, `not_a_repository`.
    """
    path = Path(path_of(source))
    for root in roots:
        if path.is_relative_to(root):
            found = _opened_below(root, path)
            try:
                yield Path(f"/proc/self/fd/{found}")
            finally:
                os.close(found)
            return
    there = ", ".join(map(str, roots)) or "none is"
    raise Permanent(
        f"{path} is not below a folder listed for file:// URLs ({there}): add its folder to git_file_roots in the "
        "configuration",
        code="not_a_listed_root",
    )


def _opened_below(root: Path, path: Path) -> int:
    rules = linux.RESOLVE_BENEATH | linux.RESOLVE_NO_SYMLINKS | linux.RESOLVE_NO_MAGICLINKS
    with linux.opened(root, os.O_PATH | os.O_DIRECTORY) as folder:
        try:
            return linux.openat2(folder, os.fspath(path.relative_to(root)), os.O_PATH | os.O_DIRECTORY, resolve=rules)
        except OSError as error:
            if error.errno in {errno.ELOOP, errno.EXDEV}:
                raise Permanent(
                    f"{path} leads through a symbolic link: give its real path", code="not_a_listed_root"
                ) from error
            raise Permanent(f"{path} is not a git repository: {error.strerror}", code="not_a_repository") from error
