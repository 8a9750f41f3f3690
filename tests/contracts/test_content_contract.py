"""The contract of `ports.content.Content`, on local repositories, hostile ones among them."""

from __future__ import annotations

import os
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from fairwater.domain.failure import Permanent
from fairwater.domain.ids import RunNumber, WorkspaceId
from fairwater.domain.workspaces.run import Source
from fairwater.node.content_bringing import NOTICES_MAX
from fairwater.ports.images import ROOT, ImageRoot, ImageUser

if TYPE_CHECKING:
    from tests.contracts.conftest import ContentUnderTest, Repository

WORKSPACE = WorkspaceId("abcdefgh2345")


def head(checkout: Path) -> str:
    # `safe.directory`: on a volume the checkout may belong to the workspace's user.
    command = ("git", "-c", "safe.directory=*", "-C", str(checkout), "rev-parse", "HEAD")
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


async def test_the_default_branch_is_checked_out(content: ContentUnderTest, repository: Repository) -> None:
    assert content.content.brought(content.root) is None
    checkout = await content.bring(repository.source())
    assert head(checkout) == repository.second
    assert (checkout / "README.md").read_text() == "second\n"
    assert content.content.brought(content.root) == content.outcome


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
    assert content.content.brought(content.root) == content.outcome
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


async def test_submodules_beside_a_repository_are_brought_in(
    content: ContentUnderTest, repository: Repository, tmp_path: Path
) -> None:
    lib = type(repository)(tmp_path / "origin" / "lib")
    link(repository, lib.first, "../lib")
    checkout = await content.bring(repository.source())
    assert content.outcome.notices == ()
    assert (checkout / "lib/README.md").read_text() == "first\n"
    assert f"url = file://{lib.path}" in (checkout / ".git/modules/lib/config").read_text()


async def test_a_submodule_in_a_folder_that_is_not_listed_is_told(
    content: ContentUnderTest, repository: Repository, tmp_path: Path
) -> None:
    secret = type(repository)(tmp_path / "secret")
    link(repository, secret.first, "../../secret")
    checkout = await content.bring(repository.source())
    assert [notice.code for notice in content.outcome.notices] == ["submodule_failed"]
    assert "not below a folder listed" in content.outcome.notices[0].message
    assert not list((checkout / "lib").iterdir())


async def test_more_submodules_than_are_brought_in_are_told(content: ContentUnderTest, repository: Repository) -> None:
    modules = "".join(f'[submodule "m{n}"]\n\tpath = m{n}\n\turl = ../gone\n' for n in range(60))
    for number in range(60):
        repository.git("update-index", "--add", "--cacheinfo", f"160000,{repository.first},m{number}")
    repository.write(".gitmodules", modules)
    repository.git("add", ".gitmodules")
    repository.git("commit", "--quiet", "--message", "many")
    await content.bring(repository.source())
    assert len(content.outcome.notices) == NOTICES_MAX + 1
    assert "10 more" in content.outcome.notices[-1].message


async def test_dotfiles_on_the_machine_are_not_for_a_repository_from_elsewhere(
    content: ContentUnderTest, repository: Repository
) -> None:
    await content.bring(None, dotfiles=repository.source())
    assert [notice.code for notice in content.outcome.notices] == ["dotfiles_failed"]
    assert not (content.root / "home/.dotfiles").exists()


async def test_a_home_directory_is_filled_once(content: ContentUnderTest) -> None:
    image, user = ImageRoot("host", ()), ImageUser("dev", 1000, 1000, "/home/dev")
    assert not content.content.home_ready(content.root)
    await content.content.fill_home(WORKSPACE, RunNumber(1), content.root, image, user)
    assert content.content.home_ready(content.root)
    (content.root / "home/.profile").write_text("mine")
    await content.content.fill_home(WORKSPACE, RunNumber(1), content.root, image, user)
    assert (content.root / "home/.profile").read_text() == "mine"


@pytest.mark.root
@pytest.mark.parametrize("content", ["sandboxed"], indirect=True)
async def test_a_home_directory_gets_what_the_image_has_in_it(content: ContentUnderTest, tmp_path: Path) -> None:
    upper, lower = tmp_path / "upper", tmp_path / "lower"
    for layer, text in ((lower, "old"), (upper, "new")):
        (layer / "root/.config").mkdir(parents=True)
        (layer / "root/.bashrc").write_text(text)
    (lower / "root/.config/kept").write_text("kept")
    (lower / "root/tool").write_text("#!/bin/sh\n")
    (lower / "root/tool").chmod(0o755)
    (lower / "root/secret").write_text("secret")
    (lower / "root/secret").chmod(0o600)
    os.chown(lower / "root/secret", 33, 33)
    (lower / "root/link").symlink_to("/etc/shadow")
    os.mkfifo(lower / "root/pipe")
    (content.root / "home/.config").mkdir()
    os.chown(content.root / "home/.config", 1000, 1000)
    (content.root / "home/.config/kept").write_text("mine")
    image = ImageRoot("registry.example.org/image", (upper, lower), digest="sha256:x")
    await content.content.fill_home(WORKSPACE, RunNumber(1), content.root, image, ROOT)
    home = content.root / "home"
    assert (home / ".bashrc").read_text() == "new"
    assert (home / ".config/kept").read_text() == "mine"
    assert (home / "tool").stat().st_mode & 0o777 == 0o755
    assert (home / "secret").read_text() == "secret"
    assert (home / "link").readlink() == Path("/etc/shadow")
    assert {path.lstat().st_uid for path in home.iterdir()} == {1000}


@pytest.mark.root
@pytest.mark.parametrize("content", ["sandboxed"], indirect=True)
async def test_an_image_whose_home_directory_does_not_fit_is_told(content: ContentUnderTest, tmp_path: Path) -> None:
    (tmp_path / "layer/home/jo").mkdir(parents=True)
    with (tmp_path / "layer/home/jo/big").open("wb") as big:
        for _ in range(300):
            big.write(os.urandom(1024 * 1024))
    image = ImageRoot("registry.example.org/image", (tmp_path / "layer",), digest="sha256:x")
    with pytest.raises(Permanent) as told:
        await content.content.fill_home(
            WORKSPACE, RunNumber(1), content.root, image, ImageUser("jo", 1001, 1001, "/home/jo")
        )
    assert told.value.code == "quota_exceeded"
    assert not content.content.home_ready(content.root)


@pytest.mark.root
@pytest.mark.parametrize("content", ["sandboxed"], indirect=True)
@pytest.mark.parametrize("home", ["/", "/nowhere", "/etc", "/home/jo/../..", "/home/file"])
async def test_a_home_directory_that_is_none_is_passed_over(
    content: ContentUnderTest, tmp_path: Path, home: str
) -> None:
    (tmp_path / "layer/home").mkdir(parents=True)
    (tmp_path / "layer/home/file").write_text("")
    (tmp_path / "layer/etc").mkdir()
    (tmp_path / "layer/etc/passwd").write_text("")
    image = ImageRoot("registry.example.org/image", (tmp_path / "layer",), digest="sha256:x")
    await content.content.fill_home(WORKSPACE, RunNumber(1), content.root, image, ImageUser("jo", 1, 1, home))
    assert content.content.home_ready(content.root)
    assert list((content.root / "home").iterdir()) == []


def link(repository: Repository, commit: str, url: str) -> None:
    repository.git("update-index", "--add", "--cacheinfo", f"160000,{commit},lib")
    repository.write(".gitmodules", f'[submodule "lib"]\n\tpath = lib\n\turl = {url}\n')
    repository.git("add", ".gitmodules")
    repository.git("commit", "--quiet", "--message", "submodule")


def give_away(path: Path) -> None:
    for folder, _, files in os.walk(path):
        os.chown(folder, 54321, 54321)
        for name in files:
            os.lchown(Path(folder) / name, 54321, 54321)


def nothing_is_left(content: ContentUnderTest) -> None:
    assert content.content.brought(content.root) is None
    assert list((content.root / "workspace").iterdir()) == []
