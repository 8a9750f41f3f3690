"""What a node remembers of its runs: whole files only, whatever cut it off."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from fairwater.domain.ids import RunNumber, WorkspaceId
from fairwater.domain.workspaces.classes import STANDARD
from fairwater.domain.workspaces.run import RunSpec, RunState, Source, Wish
from fairwater.loops.journal import FENCE_KEPT, Entry, Journal

NOW = datetime(2022, 4, 11, 8, 0, 0, 123456, tzinfo=UTC)
ID, OTHER = WorkspaceId("abcdefghjkmn"), WorkspaceId("bcdefghjkmnp")
SOURCE = Source("https://example.org/team/repo", "repo", "main")
SPEC = RunSpec("host", STANDARD, SOURCE, (("A", "b"), ("QUOTE", "\"'\n\\")), ("sh", "-c", "echo 'ü'"))
ENTRY = Entry(
    ID, RunNumber(3), SPEC, Wish.STOPPED, RunState.STOPPING, "stopping", NOW, launched=True, content_ready=True,
    failure="broken", code="clone_failed", revision=7,
)  # fmt: skip


def opened(folder: Path) -> Journal:
    journal = Journal(folder)
    assert journal.load(NOW) == ()
    return journal


@pytest.mark.parametrize(
    "entry",
    [
        ENTRY,
        replace(ENTRY, spec=RunSpec("host", STANDARD), failure=None, code=None),
        replace(ENTRY, spec=replace(SPEC, command=()), state=RunState.ENDED, reason=""),
        replace(ENTRY, spec=replace(SPEC, source=replace(SOURCE, clone_url="file:///srv/git/r", ref=None, local=True))),
    ],
)
def test_what_was_written_is_read_again(tmp_path: Path, entry: Entry) -> None:
    opened(tmp_path).put(entry)
    journal = opened(tmp_path)
    assert journal.get(ID) == entry
    assert journal.entries() == (entry,)


def test_the_folder_is_made_and_is_the_agent_s_alone(tmp_path: Path) -> None:
    folder = tmp_path / "node" / "runs"
    opened(folder).put(ENTRY)
    assert folder.stat().st_mode & 0o077 == 0
    assert (folder / f"{ID}.json").stat().st_mode & 0o077 == 0, "an environment may hold secrets"


def test_the_last_word_counts(tmp_path: Path) -> None:
    journal = opened(tmp_path)
    journal.put(ENTRY)
    journal.put(replace(ENTRY, run=RunNumber(4)))
    assert journal.get(ID) == replace(ENTRY, run=RunNumber(4))
    assert opened(tmp_path).get(ID) == replace(ENTRY, run=RunNumber(4))


def test_of_a_deleted_workspace_only_the_fence_is_left_for_a_while(tmp_path: Path) -> None:
    journal = opened(tmp_path)
    secret = replace(ENTRY.spec, environment=(("TOKEN", "hunter2"),), command=("login", "hunter2"))
    journal.put(replace(ENTRY, spec=secret))
    journal.put(replace(ENTRY, workspace=OTHER))
    journal.bury(replace(ENTRY, spec=secret))
    assert [entry.workspace for entry in journal.entries()] == [OTHER]
    assert "hunter2" not in (tmp_path / f"{ID}.json").read_text()
    buried = opened(tmp_path).get(ID)
    assert buried is not None
    assert (buried.deleted, buried.run, buried.state) == (True, ENTRY.run, RunState.ENDED)
    later = Journal(tmp_path)
    assert later.load(NOW + FENCE_KEPT + timedelta(seconds=1)) == ()
    assert later.get(ID) is None
    assert later.get(OTHER) is not None


KILLED = """
    import os, signal
    from dataclasses import replace
    from datetime import UTC, datetime
    from pathlib import Path
    from fairwater.domain.ids import WorkspaceId
    from fairwater.loops.journal import Journal

    def killed(*_):
        os.kill(os.getpid(), signal.SIGKILL)

    journal = Journal(Path({folder!r}))
    journal.load(datetime.now(UTC))
    entry = journal.get(WorkspaceId({workspace!r}))
    {how}
    journal.put(replace(entry, run=entry.run + 1, reason="x" * 100_000))
"""


@pytest.mark.parametrize("how", ["Path.replace = killed", "os.fdopen = killed"], ids=["before the rename", "half-way"])
def test_a_kill_in_the_middle_of_writing_leaves_the_old(tmp_path: Path, how: str) -> None:
    opened(tmp_path).put(ENTRY)
    script = textwrap.dedent(KILLED).format(folder=str(tmp_path), workspace=str(ID), how=how)
    done = subprocess.run([sys.executable, "-c", script], check=False, timeout=20)
    assert done.returncode == -9
    assert [path.suffix for path in sorted(tmp_path.iterdir())] == [".json", ".new"]
    journal = opened(tmp_path)
    assert journal.entries() == (ENTRY,)
    journal.put(replace(ENTRY, run=RunNumber(4)))
    assert opened(tmp_path).get(ID) == replace(ENTRY, run=RunNumber(4))


def test_a_full_disk_leaves_the_old(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    journal = opened(tmp_path)
    journal.put(ENTRY)

    def full(*_: object, **__: object) -> int:
        raise OSError(28, os.strerror(28))

    with monkeypatch.context() as patched:
        patched.setattr(os, "open", full)
        with pytest.raises(OSError, match="No space left"):
            journal.put(replace(ENTRY, run=RunNumber(4)))
    assert journal.get(ID) == ENTRY, "what is believed is what is written"
    assert opened(tmp_path).get(ID) == ENTRY


@pytest.mark.parametrize(
    "damage",
    [b"", b"{", b"\xff\xfe\x00", b"[]", b'{"workspace": "abcdefghjkmn"}', b"\0" * 4096],
    ids=["empty", "cut off", "not text", "no entry", "half an entry", "zeros"],
)
def test_a_damaged_file_is_told_of_and_left_and_the_others_are_read(tmp_path: Path, damage: bytes) -> None:
    opened(tmp_path).put(replace(ENTRY, workspace=OTHER))
    (tmp_path / f"{ID}.json").write_bytes(damage)
    journal = Journal(tmp_path)
    assert journal.load(NOW) == (f"{ID}.json",)
    assert [entry.workspace for entry in journal.entries()] == [OTHER]
    assert (tmp_path / f"{ID}.json").read_bytes() == damage
