"""The contract of `ports.content.Content`, on local repositories, hostile ones among them."""

from __future__ import annotations

import os
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from fairwater.domain.failure import Permanent
from fairwater.domain.workspaces.run import Source

if TYPE_CHECKING:
    from tests.contracts.conftest import ContentUnderTest, Repository


def head(checkout: Path) -> str:
    # `safe.directory`: on a volume the checkout may belong to the workspace's user.
    command = ("git", "-c", "safe.directory=*", "-C", str(checkout), "rev-parse", "HEAD")
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


async def test_the_default_branch_is_checked_out(content: ContentUnderTest, repository: Repository) -> None:
    assert not content.content.ready(content.root)
    checkout = await content.bring(repository.source())
    assert head(checkout) == repository.second
    assert (checkout / "README.md").read_text() == "second\n"
    assert content.content.ready(content.root)


async def test_a_branch_is_checked_out(content: ContentUnderTest, repository: Repository) -> None:
    checkout = await content.bring(repository.source("other"))
    assert (checkout / "other.txt").read_text() == "other\n"


async def test_a_tag_is_checked_out(content: ContentUnderTest, repository: Repository) -> None:
    checkout = await content.bring(repository.source("v1"))
    assert head(checkout) == repository.first


async def test_a_commit_is_checked_out(content: ContentUnderTest, repository: Repository) -> None:
    checkout = await content.bring(repository.source(repository.first))
    assert head(checkout) == repository.first
    assert (checkout / "README.md").read_text() == "first\n"


async def test_progress_is_reported(content: ContentUnderTest, repository: Repository) -> None:
    await content.bring(repository.source())
    assert any(progress.total and progress.done == progress.total for progress in content.progress)


async def test_what_git_said_is_in_the_log(content: ContentUnderTest, repository: Repository) -> None:
    await content.bring(repository.source())
    assert "Cloning into" in (content.root / "state" / "run-1.log").read_text()


async def test_without_a_source_the_volume_is_ready_and_empty(content: ContentUnderTest) -> None:
    await content.bring(None)
    assert content.content.ready(content.root)
    assert list((content.root / "workspace").iterdir()) == []


async def test_bringing_again_changes_nothing(content: ContentUnderTest, repository: Repository) -> None:
    checkout = await content.bring(repository.source())
    (checkout / "README.md").write_text("edited")
    await content.bring(repository.source())
    assert (checkout / "README.md").read_text() == "edited"


async def test_the_clone_knows_where_it_came_from(content: ContentUnderTest, repository: Repository) -> None:
    checkout = await content.bring(repository.source())
    config = (checkout / ".git" / "config").read_text()
    assert f"url = {repository.source().clone_url}" in config


@pytest.mark.parametrize("ref", ["nowhere", "0" * 40])
async def test_a_missing_branch_or_commit_is_told(content: ContentUnderTest, repository: Repository, ref: str) -> None:
    with pytest.raises(Permanent) as told:
        await content.bring(repository.source(ref))
    assert told.value.code == "no_such_ref"
    assert ref in told.value.message
    nothing_is_left(content)


async def test_a_folder_that_is_no_repository_is_told(content: ContentUnderTest, repository: Repository) -> None:
    empty = repository.path.parent / "empty"
    empty.mkdir()
    with pytest.raises(Permanent) as told:
        await content.bring(Source(f"file://{empty}", "repo", None, local=True))
    assert told.value.code == "not_a_repository"
    assert str(empty) in told.value.message
    nothing_is_left(content)


async def test_an_unknown_host_is_told(content: ContentUnderTest) -> None:
    with pytest.raises(Permanent) as told:
        await content.bring(Source("https://no-such-host.invalid/org/repo", "repo"))
    assert told.value.code == "no_such_host"
    assert "no-such-host.invalid" in told.value.message
    nothing_is_left(content)


async def test_a_folder_that_is_not_listed_is_refused(content: ContentUnderTest, tmp_path: Path) -> None:
    with pytest.raises(Permanent) as told:
        await content.bring(Source(f"file://{tmp_path}/elsewhere", "repo", None, local=True))
    assert told.value.code == "not_a_listed_root"


async def test_a_link_out_of_the_listed_folders_is_refused(
    content: ContentUnderTest, repository: Repository, tmp_path: Path
) -> None:
    secret = tmp_path / "secret"
    repository.path.rename(secret)
    repository.path.symlink_to(secret)
    with pytest.raises(Permanent) as told:
        await content.bring(repository.source())
    assert told.value.code == "not_a_listed_root"


async def test_hooks_of_a_repository_do_not_run(
    content: ContentUnderTest, repository: Repository, tmp_path: Path
) -> None:
    evidence = tmp_path / "hook-ran"
    for folder in (repository.path / ".git" / "hooks", repository.path / ".githooks"):
        folder.mkdir(exist_ok=True)
        for name in ("post-checkout", "pre-upload", "post-merge", "reference-transaction"):
            (folder / name).write_text(f"#!/bin/sh\ntouch {evidence}\n")
            (folder / name).chmod(0o755)
    repository.git("config", "core.hooksPath", ".githooks")
    repository.git("config", "uploadpack.packObjectsHook", f"touch {evidence} #")
    repository.git("-c", "core.hooksPath=/dev/null", "add", "--all")
    repository.git("-c", "core.hooksPath=/dev/null", "commit", "--quiet", "--message", "hooks")
    evidence.unlink(missing_ok=True)
    await content.bring(repository.source())
    assert not evidence.exists()


async def test_filters_named_by_a_repository_do_not_run(
    content: ContentUnderTest, repository: Repository, tmp_path: Path
) -> None:
    evidence = tmp_path / "filter-ran"
    repository.write(".gitattributes", "* filter=evil\n")
    repository.write(".gitmodules", '[submodule "x"]\n\tpath = x\n\turl = ext::sh -c "touch ' + str(evidence) + '"\n')
    repository.commit("attributes")
    repository.git("config", "filter.evil.smudge", f"touch {evidence}; cat")
    await content.bring(repository.source())
    assert not evidence.exists()


async def test_symlinks_of_a_repository_stay_symlinks(content: ContentUnderTest, repository: Repository) -> None:
    (repository.path / "passwd").symlink_to("/etc/passwd")
    (repository.path / "etc").symlink_to("/etc")
    repository.commit("links")
    checkout = await content.bring(repository.source())
    assert (checkout / "passwd").readlink() == Path("/etc/passwd")
    assert (checkout / "etc").readlink() == Path("/etc")


@pytest.mark.pm(35)
@pytest.mark.root
async def test_a_repository_of_another_owner_is_cloned(content: ContentUnderTest, repository: Repository) -> None:
    give_away(repository.path)
    checkout = await content.bring(repository.source())
    assert head(checkout) == repository.second


@pytest.mark.pm(35)
@pytest.mark.root
async def test_a_commit_of_a_repository_of_another_owner_is_fetched(
    content: ContentUnderTest, repository: Repository
) -> None:
    give_away(repository.path)
    checkout = await content.bring(repository.source(repository.first))
    assert head(checkout) == repository.first


async def test_after_an_interruption_it_begins_anew(content: ContentUnderTest, repository: Repository) -> None:
    gone = replace(repository.source(), clone_url=f"file://{repository.path}-gone")
    with pytest.raises(Permanent):
        await content.bring(gone)
    assert head(await content.bring(repository.source())) == repository.second


def give_away(path: Path) -> None:
    for folder, _, files in os.walk(path):
        os.chown(folder, 54321, 54321)
        for name in files:
            os.lchown(Path(folder) / name, 54321, 54321)


def nothing_is_left(content: ContentUnderTest) -> None:
    assert not content.content.ready(content.root)
    assert list((content.root / "workspace").iterdir()) == []
