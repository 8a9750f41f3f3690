"""A node never takes a command of a run older than one it has seen, restarts of the agent in between or not."""

from __future__ import annotations

import asyncio
import tempfile
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from fairwater.domain.failure import Permanent
from fairwater.domain.ids import RunNumber, WorkspaceId
from fairwater.domain.workspaces.classes import STANDARD
from fairwater.domain.workspaces.run import RunSpec, RunState, Wish
from fairwater.loops.journal import Entry, Journal
from fairwater.loops.run_table import RunTable

NOW = datetime(2022, 4, 11, 8, 0, tzinfo=UTC)
IDS = (WorkspaceId("abcdefghjkmn"), WorkspaceId("bcdefghjkmnp"))
NUMBERS = st.integers(1, 6)


def entry(workspace: WorkspaceId, run: int) -> Entry:
    return Entry(workspace, RunNumber(run), RunSpec("host", STANDARD), Wish.RUNNING, RunState.STARTING, "starting", NOW)


def accepts(table: RunTable, workspace: WorkspaceId, run: int) -> bool:
    try:
        table.fence(workspace, RunNumber(run))
    except Permanent as failure:
        if failure.code != "stale_run" or f"run {run} of workspace {workspace} is over" not in failure.message:
            raise
        return False
    return True


class Fence(RuleBasedStateMachine):
    """Commands of any number reach the node in any order, as they do after lost replies and between two servers."""

    def __init__(self) -> None:
        super().__init__()
        self.scratch = tempfile.TemporaryDirectory()
        self.table = self.open_table()
        self.seen: dict[WorkspaceId, int] = {}

    def open_table(self) -> RunTable:
        journal = Journal(Path(self.scratch.name))
        assert journal.load(NOW) == ()
        return RunTable(journal)

    @rule(workspace=st.sampled_from(IDS), run=NUMBERS)
    def start(self, workspace: WorkspaceId, run: int) -> None:
        """What the node does with a start: fenced first, begun when it is new."""
        if accepts(self.table, workspace, run):
            assert run >= self.seen.get(workspace, 0)
            known = self.table.journal.get(workspace)
            if known is None or known.run < run:
                self.table.begin(entry(workspace, run))
                self.seen[workspace] = run
        else:
            assert run < self.seen[workspace]

    @rule(workspace=st.sampled_from(IDS), state=st.sampled_from(sorted(RunState)))
    def move(self, workspace: WorkspaceId, state: RunState) -> None:
        known = self.table.journal.get(workspace)
        if known is not None:
            self.table.change(replace(known, state=state))

    @rule()
    def restart(self) -> None:
        self.table = self.open_table()

    @invariant()
    def no_older_run_is_accepted(self) -> None:
        for workspace in IDS:
            for run in range(1, 7):
                assert accepts(self.table, workspace, run) == (run >= self.seen.get(workspace, 0))

    def teardown(self) -> None:
        self.scratch.cleanup()


TestFence = Fence.TestCase


@given(numbers=st.lists(st.tuples(st.sampled_from(IDS), NUMBERS), min_size=1, max_size=12))
def test_each_change_of_a_run_has_a_greater_revision(numbers: list[tuple[WorkspaceId, int]]) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        table = RunTable(Journal(Path(scratch)))
        table.journal.load(NOW)
        last: dict[WorkspaceId, tuple[int, int]] = {}
        for workspace, run in numbers:
            known = table.journal.get(workspace)
            if known is None or run > known.run:
                table.begin(entry(workspace, run))
            else:
                table.change(replace(known, reason="changed"))
            facts = table.facts(table.entry(workspace))
            assert (facts.run, facts.revision) > last.get(workspace, (0, 0))
            last[workspace] = (facts.run, facts.revision)


async def test_a_listener_that_does_not_keep_up_is_cut_off_and_the_others_are_not(tmp_path: Path) -> None:
    table = RunTable(Journal(tmp_path))
    table.journal.load(NOW)
    table.begin(entry(IDS[0], 1))
    slow, quick = table.changes(), table.changes()
    listening = [asyncio.ensure_future(anext(stream)) for stream in (slow, quick)]
    await asyncio.sleep(0)
    table.publish(table.entry(IDS[0]))
    facts = table.facts(table.entry(IDS[0]))
    assert await asyncio.gather(*listening) == [facts, facts]
    published = 5000
    for _ in range(published):
        table.publish(table.entry(IDS[0]))
        assert await anext(quick) == facts
    async with asyncio.timeout(5):
        heard = [told async for told in slow]
    assert len(heard) < published, "its stream has ended, and it reads everything anew"
    table.publish(table.entry(IDS[0]))
    assert await anext(quick) == facts
    table.close()
    async with asyncio.timeout(5):
        assert [told async for told in quick] == []
