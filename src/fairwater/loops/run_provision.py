"""What a run needs before it has a sandbox, and what may take long: its content, its configuration, its image.

A stop interrupts it; how far it is, is told as it goes.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import replace
from typing import Any, TypeVar

from fairwater.domain.failure import Temporary
from fairwater.domain.workspaces.run import Progress, RunState
from fairwater.loops.journal import Entry
from fairwater.loops.run_parts import RunParts, log_file
from fairwater.loops.run_setup import RunSetup, find_user
from fairwater.loops.run_table import RunTable

T = TypeVar("T")


class RunProvision:
    def __init__(self, table: RunTable, parts: RunParts, setup: RunSetup) -> None:
        self._table = table
        self._parts = parts
        self._setup = setup

    async def bring_content(self, entry: Entry) -> None:
        source = entry.spec.source
        self._table.update(
            self._parts.clock.now(),
            entry,
            state=RunState.INITIALIZING,
            reason=self._again(entry, f"cloning {source.clone_url}" if source else "preparing the volume"),
        )
        root = await self._parts.root(entry.workspace)
        await self._unhurried(
            entry,
            self._parts.content.bring(
                entry.workspace, entry.run, source, entry.spec.dotfiles, root, log_file(root, entry.run),
                self._reporter(entry), self._setup.configure(entry),
            ),
            "stopped while its content was brought in",
        )  # fmt: skip

    async def configure(self, entry: Entry) -> None:
        setup = await self._setup.decide(entry, await self._parts.root(entry.workspace))
        self._table.change(replace(self._table.entry(entry.workspace), setup=setup))

    async def prepare_image(self, entry: Entry) -> None:
        assert entry.setup is not None
        self._table.update(
            self._parts.clock.now(),
            entry,
            state=RunState.INITIALIZING,
            reason=self._again(entry, f"bringing in the image {entry.setup.image}"),
        )
        setup = await self._unhurried(
            entry, self._setup.prepare(entry, self._reporter(entry)), "stopped while its image was brought in"
        )
        self._table.change(replace(self._table.entry(entry.workspace), setup=setup))

    async def _unhurried(self, entry: Entry, work: Coroutine[Any, Any, T], stopped: str) -> T:
        """The outcome of something long, which a stop interrupts. Raises Temporary then: `interrupted`."""
        live = self._table.live(entry.workspace)
        task: asyncio.Future[T] = asyncio.ensure_future(work)
        live.bringing = task
        try:
            await asyncio.wait({task})
            if task.cancelled():
                raise Temporary(stopped, code="interrupted", delay_s=0)
            return task.result()
        finally:
            # Interrupted from outside, the helper must not go on by itself.
            task.cancel()
            live.bringing = live.progress = None

    def _again(self, entry: Entry, what: str) -> str:
        """`what`, with why it was not done at the last try."""
        hindrance = self._table.live(entry.workspace).hindrance
        return f"{what} (the last try: {hindrance})" if hindrance else what

    def _reporter(self, entry: Entry) -> Callable[[Progress], None]:
        live = self._table.live(entry.workspace)

        def report(progress: Progress) -> None:
            live.progress = progress
            self._table.publish(self._table.entry(entry.workspace))

        return report

    async def fill_home(self, entry: Entry) -> None:
        image = await self._setup.present(entry)
        volume = await self._parts.root(entry.workspace)
        user = find_user(image, entry.setup.user if entry.setup else None) or image.user
        await self._parts.content.fill_home(entry.workspace, entry.run, volume, image, user)
