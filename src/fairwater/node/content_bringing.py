"""Everything that comes onto a volume: the repository, what its configuration names beside it, dotfiles.

Decides the order and the places: all is cloned aside and moved when it is whole. Only the repository itself can make it
fail; the rest is told in notices.
"""

from __future__ import annotations

import asyncio
import re
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from fairwater.domain.failure import Permanent
from fairwater.domain.workspaces.git_failure import explain_failure, last_words
from fairwater.domain.workspaces.git_urls import source_of
from fairwater.domain.workspaces.notice import Level, Notice
from fairwater.domain.workspaces.run import Source
from fairwater.domain.workspaces.setup import AdditionalRepository, Brought, Wanted
from fairwater.node.content_checkout import Checkout
from fairwater.node.content_files import is_file, is_folder, is_free, read_config_files
from fairwater.node.content_runner import Deadline, GitRunner, script
from fairwater.node.git_words import GitFailed
from fairwater.ports.content import Configure

INCOMING = ".fairwater-incoming"
"""The folder below `/workspace` where all is aside until it is whole."""
DOTFILES = ".dotfiles"
REPOSITORIES_MAX = 16
NOTICES_MAX = 50
_PLACE_MAX = 512


@dataclass(frozen=True, slots=True)
class Places:
    """`volume` is on the machine; `workspace` and `home` are its two folders, as commands see them."""

    volume: Path
    workspace: str
    home: str

    @property
    def incoming(self) -> str:
        return f"{self.workspace}/{INCOMING}"

    def on_machine(self, place: str) -> Path:
        return self.volume / "workspace" / place


class Bringing:
    """One bringing-in, from an empty volume, or one that was left half-way."""

    def __init__(self, runner: GitRunner, places: Places, timeout_s: float) -> None:
        self._runner = runner
        self._places = places
        self._deadline = Deadline(asyncio.get_running_loop().time() + timeout_s, timeout_s)
        self._checkout = Checkout(runner, self._deadline)
        self._notices: list[Notice] = []

    async def run(self, source: Source | None, dotfiles: Source | None, configure: Configure) -> Brought:
        """Raises Permanent: those of `ports.content.Content.bring`."""
        incoming = self._places.incoming
        await self._shell("rm -rf {incoming}", "mkdir -p {incoming}/home", incoming=incoming)
        place = subfolder = ""
        if source is not None:
            place, subfolder = await self._repository(source, configure)
        if dotfiles is not None:
            await self._dotfiles(dotfiles, local_allowed=source is not None and source.local)
        await self._shell("rm -rf {incoming}", incoming=incoming)
        if len(self._notices) > NOTICES_MAX:
            more = len(self._notices) - NOTICES_MAX
            self._notices[NOTICES_MAX:] = [Notice(Level.WARNING, "more_notices", f"and {more} more of the same kind")]
        return Brought(place, subfolder, tuple(self._notices))

    async def _repository(self, source: Source, configure: Configure) -> tuple[str, str]:
        """Where the repository is below /workspace, and the folder in it that was asked for."""
        aside = f"{self._places.incoming}/repository"
        found = await self._checkout.clone(source, aside)
        machine = self._places.on_machine(f"{INCOMING}/repository")
        files = await asyncio.to_thread(read_config_files, machine, "")
        wanted = await asyncio.to_thread(configure, files)
        place = self._place(wanted.checkout, source.name, wanted.file)
        subfolder = await asyncio.to_thread(self._subfolder, machine, found.folder)
        self._notices += await self._checkout.complete(source, aside, place)
        await self._move(aside, place)
        await self._additional(wanted, source, place)
        return place, subfolder

    def _place(self, asked: str, name: str, file: str | None) -> str:
        """Checked again here, whoever read it: nothing may go where it is not seen."""
        if not asked or asked == name:
            return name
        if is_place(asked):
            return asked
        message = f"{asked[:80]!r} cannot be where the repository goes: it is at /workspace/{name}"
        self._notices.append(Notice(Level.WARNING, "bad_location", message, file))
        return name

    def _subfolder(self, checkout: Path, asked: str) -> str:
        """`asked`, or the folder of the file that it names; "" where there is neither."""
        if not asked or is_folder(checkout, asked):
            return asked
        parent = asked.rpartition("/")[0]
        if is_file(checkout, asked) and (not parent or is_folder(checkout, parent)):
            return parent
        message = f"the repository has no folder {asked[:200]!r}: commands begin at its root"
        self._notices.append(Notice(Level.WARNING, "no_such_folder", message))
        return ""

    async def _additional(self, wanted: Wanted, main: Source, main_place: str) -> None:
        taken = [main_place]
        for number, repository in enumerate(wanted.repositories):
            if number == REPOSITORIES_MAX:
                message = f"of the additional repositories only the first {REPOSITORIES_MAX} are brought in"
                self._notices.append(Notice(Level.ERROR, "too_many_repositories", message, wanted.file))
                return
            try:
                source, place = _source_and_place(repository, main, taken)
            except Permanent as failure:
                shown = re.sub(r"//[^/@]*@", "//", repository.url[:200])  # it may hold what is nobody's to read
                self._missing("repository_failed", f"the additional repository {shown}", failure, wanted.file)
                continue
            failure_of_clone = await self._beside(source, place)
            if failure_of_clone is None:
                taken.append(place)
            else:
                what = f"the additional repository {source.clone_url}"
                self._missing("repository_failed", what, failure_of_clone, wanted.file)

    async def _beside(self, source: Source, place: str) -> Permanent | None:
        aside = f"{self._places.incoming}/beside"
        failure = await self._checkout.apart(lambda: self._checkout.clone(source, aside), source)
        if failure is None:
            self._notices += await self._checkout.complete(source, aside, place)
            failure = await self._checkout.apart(lambda: self._move(aside, place), source)
        await self._shell("rm -rf {aside}", aside=aside)
        return failure

    async def _dotfiles(self, source: Source, *, local_allowed: bool) -> None:
        if source.local and not local_allowed:
            self._missing("dotfiles_failed", "your dotfiles", _local_only())
            return
        target = f"{self._places.home}/{DOTFILES}"
        await self._shell("rm -rf {target}", target=target)
        failure = await self._checkout.apart(lambda: self._checkout.clone(source, target), source)
        if failure is None:
            self._notices += await self._checkout.complete(source, target, f"~/{DOTFILES}")
            return
        await self._shell("rm -rf {target}", target=target)
        self._missing("dotfiles_failed", f"your dotfiles {source.clone_url}", failure)

    def _missing(self, code: str, what: str, failure: Permanent, file: str | None = None) -> None:
        self._notices.append(Notice(Level.ERROR, code, f"{what}: not brought in: {failure.message}", file))

    async def _move(self, aside: str, place: str) -> None:
        target = PurePosixPath(self._places.workspace, place)
        await self._shell(
            "rm -rf {target}", "mkdir -p {parent}", "mv -T {aside} {target}",
            aside=aside, target=str(target), parent=str(target.parent),
        )  # fmt: skip

    async def _shell(self, *lines: str, **names: str) -> None:
        """Raises Permanent: `quota_exceeded`, `clone_failed`."""
        try:
            await self._runner.run(script(*lines, **names), {})
        except GitFailed as failed:
            said = explain_failure(failed.stderr, Source("the volume", ""))
            if said.code == "quota_exceeded":
                raise said from failed
            raise Permanent(
                f"the volume cannot be prepared: {last_words(failed.stderr)}", code="clone_failed"
            ) from failed


def is_place(text: str) -> bool:
    """Whether a checkout may be at `text` below /workspace."""
    names = text.split("/")
    return (
        len(text) <= _PLACE_MAX
        and text.isprintable()
        and not any(name in {"", ".", "..", ".git"} for name in names)
        and not names[0].startswith(".fairwater")
    )


def _source_and_place(repository: AdditionalRepository, main: Source, taken: list[str]) -> tuple[Source, str]:
    """Raises Permanent: `bad_context_url`, `bad_location`, `not_a_listed_root`."""
    source = source_of(repository.url)
    if source.local and not main.local:
        raise _local_only()
    place = repository.location or source.name
    if not is_place(place):
        raise Permanent(f"{place[:80]!r} is not a folder below /workspace", code="bad_location")
    if not is_free(place, taken):
        raise Permanent(f"/workspace/{place} is taken by another repository: give it a location", code="bad_location")
    return source, place


def _local_only() -> Permanent:
    return Permanent("file:// is for a workspace that is itself from a folder of this machine", code="local_only")
