"""A server of the version before runs on the newest tables: rehearsed with its real source, as a real process.

The version before is the parent of the commit that added the newest migration; while that is not committed, it is the
newest commit.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from sqlalchemy import text
from tests.servers.fairwater_server import server_process

import fairwater
from fairwater.store.engine import open_engine
from fairwater.store.migration import migration_scripts, newest_revision

pytestmark = pytest.mark.long

ROOT = Path(__file__).parents[2]


def git(*arguments: str) -> str | None:
    """What git says, None where it has no answer."""
    ended = subprocess.run(["git", "-C", str(ROOT), *arguments], capture_output=True, text=True, check=False)
    return ended.stdout.strip() if ended.returncode == 0 else None


@pytest.fixture(scope="session")
def previous_source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    script = migration_scripts().get_revision(newest_revision())
    assert script is not None
    # Fairwater itself may be installed elsewhere.
    path = Path("src/fairwater/store/migrations/versions") / Path(script.path).name
    added = git("log", "--diff-filter=A", "--format=%H", "-1", "--", str(path))
    if added is None:
        pytest.skip("there is no git history here to take the version before from")
    commit = git("rev-parse", "--verify", "--quiet", f"{added}^" if added else "HEAD")
    if commit is None:
        pytest.skip("the git history here does not go back to the version before")
    folder = tmp_path_factory.mktemp("previous")
    archive = folder / "source.zip"
    subprocess.run(["git", "-C", str(ROOT), "archive", "-o", str(archive), commit, "src"], check=True)
    shutil.unpack_archive(archive, folder)
    assert not (folder / path).exists(), "it knows the newest migration: it is not the version before"
    return folder / "src"


def rehearse(folder: Path, url: str, previous: Path, between: Callable[[], None] = lambda: None) -> None:
    """The newest server writes, the one before it goes on, and the newest goes on from there."""
    with server_process(folder, url) as newest:
        assert newest.source() == Path(fairwater.__file__).parent
        first = newest.create("first-of-the-newest")
        newest.post("workspaces", context_url="https://example.org/a/b", name="second-of-the-newest", start=False)
        newest.post("users", name="of-the-newest")
        newest.set_variable(name="OF_THE_NEWEST", value="välue", secret=True)
    between()
    with server_process(folder, url, source=previous) as before:
        assert before.source() == previous / "fairwater"
        assert before.get(f"/api/v1/workspaces/{first['id']}")["name"] == "first-of-the-newest"
        before.create("of-the-one-before")
        before.post(f"workspaces/{first['id']}/stop")
        before.delete("workspaces/second-of-the-newest")
        before.post("users", name="of-the-one-before")
        before.set_variable(name="OF_THE_ONE_BEFORE", value="value", secret=True)
        assert set(before.phases()) == {"first-of-the-newest", "of-the-one-before"}
    with server_process(folder, url) as newest:
        assert set(newest.phases()) == {"first-of-the-newest", "of-the-one-before"}
        assert newest.phases()["first-of-the-newest"] == "stopping"
        users = {user["name"] for user in newest.get("/api/v1/users")["items"]}
        assert users >= {"of-the-newest", "of-the-one-before"}
        variables = {variable["name"] for variable in newest.get("/api/v1/users/me/variables")["items"]}
        assert variables == {"OF_THE_NEWEST", "OF_THE_ONE_BEFORE"}
        newest.post(f"workspaces/{first['id']}/stop")
        newest.create("after-that")


def knows(previous: Path, url: str) -> None:
    if url.startswith("postgresql") and not (previous / "fairwater/store/postgres.py").exists():
        pytest.skip("the version before does not know PostgreSQL")


@pytest.mark.pm(50)
def test_a_server_of_the_version_before_goes_on_with_a_database_of_the_newest(
    tmp_path: Path, empty_url: str, previous_source: Path
) -> None:
    knows(previous_source, empty_url)
    rehearse(tmp_path, empty_url, previous_source)


@pytest.mark.pm(50, sabotage=True)
def test_a_migration_that_takes_something_away_too_early_is_found_out(
    tmp_path: Path, empty_url: str, previous_source: Path
) -> None:
    knows(previous_source, empty_url)

    def take_away() -> None:
        engine = open_engine(empty_url, waits=True)
        with engine.begin() as connection:
            connection.execute(text("ALTER TABLE workspaces DROP COLUMN command"))
        engine.dispose()

    with pytest.raises(AssertionError, match="500"):
        rehearse(tmp_path, empty_url, previous_source, take_away)
