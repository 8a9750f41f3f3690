"""One repository, brought into a folder with all that belongs to it: the ref asked for, submodules, large files.

Decides in which order, and that what fails beside the repository itself is told and not fatal. Refuses to know where
git runs (`GitRunner`), and what git is told (`domain.workspaces.git`).
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace

from fairwater.domain.failure import Permanent
from fairwater.domain.workspaces import git_lfs as lfs
from fairwater.domain.workspaces import git_submodules as submodules
from fairwater.domain.workspaces.git import (
    clone_commands,
    clone_environment,
    git_in,
    list_refs_command,
    wants_whole,
)
from fairwater.domain.workspaces.git_failure import explain_end, no_such_ref, out_of_time
from fairwater.domain.workspaces.git_refs import RefAndFolder, is_commit, split_ref_path
from fairwater.domain.workspaces.git_submodules import Chain, Step, Submodule
from fairwater.domain.workspaces.notice import Notice
from fairwater.domain.workspaces.run import Source
from fairwater.node.content_runner import PART_S, Deadline, GitRunner
from fairwater.node.git_words import GitFailed

_PRINTED_MAX = 1024 * 1024


class Checkout:
    """Brings in repositories one after the other; the bound on submodules is for all of them together."""

    def __init__(self, runner: GitRunner, deadline: Deadline) -> None:
        self._runner = runner
        self._deadline = deadline
        self._submodules_left = submodules.SUBMODULES_MAX

    async def clone(self, source: Source, target: str) -> RefAndFolder:
        """Clones `source` to the folder `target`, which is not there; what was checked out ("" for the default branch),
        and the folder in it that was asked for.

        Raises:
            Permanent: those of `ports.content.Content.bring`.
        """
        try:
            async with asyncio.timeout_at(self._deadline.at):
                return await self._clone(source, target)
        except TimeoutError:
            raise out_of_time(source, self._deadline.all_s) from None
        except GitFailed as failed:
            raise self._explained(failed, source) from failed

    async def _clone(self, source: Source, target: str) -> RefAndFolder:
        options = await self._options(source)
        environment = self.environment(source)
        found = RefAndFolder(source.ref or "")
        if source.ref_path is not None:
            first = source.ref_path.partition("/")[0]
            printed = b""
            if not is_commit(first):
                printed = await self._runner.run(list_refs_command(source, options), environment, _PRINTED_MAX)
            split = split_ref_path(source.ref_path, printed.decode("utf-8", "replace"))
            if split is None:
                raise no_such_ref(source)
            found = split
        wanted = replace(source, ref=found.ref or None)
        try:
            for command in clone_commands(wanted, target, options=options):
                await self._runner.run(command, environment)
        except GitFailed as failed:
            if not wants_whole(wanted, failed.stderr):
                raise
            await self._runner.run(("rm", "-rf", target), environment)
            for command in clone_commands(wanted, target, whole=True, options=options):
                await self._runner.run(command, environment)
        return found

    async def complete(self, source: Source, target: str, place: str) -> list[Notice]:
        """Brings in the submodules and the large files of the checkout in `target`, which a person will find at
        `place`; what could not be had is told."""
        notices = await self._large_files(source, target, place)
        commit = await self._commit(target, source)
        chains: deque[Chain] = deque([(Step(source, commit),)] if commit else [])
        while chains:
            chain = chains.popleft()
            below, told = await self._level(chain, target, place)
            chains.extend(below)
            notices += told
        return notices

    async def _level(self, chain: Chain, target: str, place: str) -> tuple[list[Chain], list[Notice]]:
        """The submodules that one checkout names: the chains that go on below them, and what is to be told."""
        above = chain[-1]
        folder = _join(target, above.place)
        try:
            named, notices = await self._named(above, folder)
        except (GitFailed, Permanent) as failed:
            failure = failed if isinstance(failed, Permanent) else self._explained(failed, above.source)
            return [], [submodules.unreadable_notice(_join(place, above.place), failure)]
        below: list[Chain] = []
        for submodule, commit in named:
            step = Step(above.source, commit, above.below(submodule.path))
            try:
                step = replace(step, source=submodules.source_of_submodule(above.source, submodule))
            except Permanent as failure:
                notices.append(submodules.failure_notice(step.place, failure))
                continue
            if submodules.closes_loop(chain, step):
                notices.append(submodules.loop_notice(step))
                continue
            if len(chain) > submodules.DEPTH_MAX or self._submodules_left == 0:
                notices.append(submodules.bound_notice(step.place, depth=len(chain) > submodules.DEPTH_MAX))
                break
            self._submodules_left -= 1
            failed_update = await self._update(folder, submodule, step.source)
            if failed_update is not None:
                notices.append(submodules.failure_notice(step.place, failed_update))
                continue
            notices += await self._large_files(step.source, _join(target, step.place), _join(place, step.place))
            below.append((*chain, step))
        return below, notices

    async def _named(self, above: Step, folder: str) -> tuple[list[tuple[Submodule, str]], list[Notice]]:
        """The submodules of a commit and theirs; one that is named, but not part of the commit, is none to git too."""
        environment = self.environment(above.source)
        if not await self._runner.run(submodules.list_file_command(folder), environment, _PRINTED_MAX):
            return [], []
        try:
            printed = await self._runner.run(submodules.read_file_command(folder), environment, _PRINTED_MAX)
        except GitFailed as failed:
            if submodules.says_nothing(failed.status, failed.stderr):
                return [], []
            raise
        usable, notices = [], []
        for submodule in submodules.parse_file(printed)[: submodules.SUBMODULES_MAX + 1]:
            try:
                submodules.check_names(submodule)
                usable.append(submodule)
            except Permanent as failure:
                notices.append(submodules.failure_notice(above.below(submodule.path[:200]), failure))
        if not usable:
            return [], notices
        paths = [submodule.path for submodule in usable]
        printed = await self._runner.run(submodules.list_links_command(folder, paths), environment, _PRINTED_MAX)
        links = submodules.parse_links(printed)
        return [(submodule, links[submodule.path]) for submodule in usable if submodule.path in links], notices

    async def _update(self, folder: str, submodule: Submodule, source: Source) -> Permanent | None:
        async def update() -> None:
            options = await self._options(source)
            for command in submodules.update_commands(folder, submodule, source, options):
                await self._runner.run(command, self.environment(source))

        return await self.apart(update, source)

    async def _large_files(self, source: Source, folder: str, place: str) -> list[Notice]:
        environment = self.environment(source)
        if not await self._succeeds(lfs.uses_lfs_command(folder), environment):
            return []
        if not await self._succeeds(lfs.VERSION_COMMAND, environment):
            return [lfs.not_installed_notice(place)]
        try:
            async with asyncio.timeout_at(self._deadline.part()):
                await self._runner.run(lfs.install_command(folder), environment)
                await self._runner.run(lfs.pull_command(folder, await self._options(source)), environment)
        except TimeoutError:
            return [lfs.unavailable_notice(place, "it took too long and was stopped")]
        except GitFailed as failed:
            return [lfs.unavailable_notice(place, failed.stderr)]
        return []

    async def _succeeds(self, command: tuple[str, ...], environment: Mapping[str, str]) -> bool:
        try:
            await self._runner.run(command, environment)
        except GitFailed:
            return False
        return True

    async def _commit(self, folder: str, source: Source) -> str | None:
        """What is checked out; None in a repository without a commit."""
        command = git_in(folder, "rev-parse", "--verify", "--quiet", "HEAD^{commit}")
        try:
            return (await self._runner.run(command, self.environment(source), _PRINTED_MAX)).decode("ascii").strip()
        except GitFailed:
            return None

    async def apart(self, work: Callable[[], Awaitable[object]], source: Source) -> Permanent | None:
        """Does something that is not fatal within its time; why it failed, where it did."""
        try:
            async with asyncio.timeout_at(self._deadline.part()):
                await work()
        except TimeoutError:
            return out_of_time(source, min(PART_S, self._deadline.all_s))
        except GitFailed as failed:
            return self._explained(failed, source)
        except Permanent as failure:
            return failure
        return None

    def environment(self, source: Source) -> dict[str, str]:
        runner = self._runner
        return clone_environment(source, runner.home, runner.config, keys=runner.offers_key(source))

    async def _options(self, source: Source) -> tuple[str, ...]:
        return await self._runner.show(source) if source.local else ()

    def _explained(self, failed: GitFailed, source: Source) -> Permanent:
        return explain_end(failed.status, failed.stderr, source, key_offered=self._runner.offers_key(source))


def _join(folder: str, place: str) -> str:
    return f"{folder}/{place}" if place else folder
