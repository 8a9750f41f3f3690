"""What `.gitmodules` may say, and what of it is taken."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fairwater.domain.failure import Permanent
from fairwater.domain.workspaces.git_submodules import (
    Step,
    Submodule,
    check_names,
    closes_loop,
    parse_file,
    parse_links,
    source_of_submodule,
    update_commands,
)
from fairwater.domain.workspaces.git_urls import resolve_url
from fairwater.domain.workspaces.run import Source

SHA = "0123456789abcdef0123456789abcdef01234567"
REMOTE = Source("https://git.example.org/group/repo.git", "repo")
LOCAL = Source("file:///srv/git/repo", "repo", local=True)


@pytest.mark.parametrize(
    ("base", "url", "expected"),
    [
        ("https://h/group/repo.git", "../lib.git", "https://h/group/lib.git"),
        ("https://h:8443/group/repo", "../../other/lib", "https://h:8443/other/lib"),
        ("https://h/group/repo", "./lib", "https://h/group/repo/lib"),
        ("git@h:group/repo.git", "../lib.git", "git@h:group/lib.git"),
        ("ssh://git@h/group/repo", "../lib", "ssh://git@h/group/lib"),
        ("file:///srv/git/repo", "../lib", "file:///srv/git/lib"),
        ("https://h/group/repo", "https://other/x/y", "https://other/x/y"),
    ],
)
def test_a_relative_address_is_resolved_as_git_does(base: str, url: str, expected: str) -> None:
    assert resolve_url(base, url) == expected


@pytest.mark.parametrize(
    "url",
    [
        "--upload-pack=touch /tmp/x",
        "-u",
        "ext::sh -c id",
        "fd::17",
        "file:///etc",
        "/etc",
        "../../../../../x",
        "https://user:token@git.example.org/a/b",
        "https://git.example.org/a/b/tree/main",
        "ssh://-oProxyCommand=id/a/b",
        "https://git.example.org/a/b\nx",
        "x" * 3000,
        "",
    ],
)
def test_a_hostile_address_is_refused(url: str) -> None:
    with pytest.raises(Permanent) as refusal:
        source_of_submodule(REMOTE, Submodule("x", "x", url))
    assert refusal.value.code in {"submodule_refused", "bad_context_url"}
    assert "token" not in refusal.value.message


def test_a_repository_of_this_machine_may_name_its_neighbours() -> None:
    assert source_of_submodule(LOCAL, Submodule("x", "x", "../lib")).local


@pytest.mark.parametrize(
    "text",
    ["../x", "a/../b", "/x", "-x", ":x", ".git", "a/.GIT/hooks", "git~1", "a//b", "", "a*", "a\\b", "a\nb", "x" * 300],
)
@pytest.mark.parametrize("what", ["name", "path"])
def test_a_name_or_path_that_leads_elsewhere_is_refused(text: str, what: str) -> None:
    submodule = Submodule(text, "x", "../x") if what == "name" else Submodule("x", text, "../x")
    with pytest.raises(Permanent) as refusal:
        check_names(submodule)
    assert refusal.value.code == "submodule_refused"


def test_of_what_is_said_twice_the_first_counts() -> None:
    printed = b"submodule.a.path\nlib/a\0submodule.a.path\nother\0submodule.a.url\n../a\0submodule.b.c.url\n../b\0"
    assert parse_file(printed) == (Submodule("a", "lib/a", "../a"), Submodule("b.c", "", "../b"))


def test_only_links_to_commits_are_links() -> None:
    printed = f"160000 commit {SHA}\tlib/a\x00100644 blob {SHA}\tlib/b\x00160000 commit x\tlib/c\0".encode()
    assert parse_links(printed) == {"lib/a": SHA}


@given(st.binary(max_size=200))
def test_anything_that_is_printed_is_read(printed: bytes) -> None:
    parse_file(printed)
    parse_links(printed)


def test_a_repository_within_itself_ends() -> None:
    here = Step(Source("https://h/a/b.git", "b"), "1" * 40)
    again = Step(Source("https://h/A/b/", "b"), "2" * 40, "x")
    assert closes_loop((here,), Step(here.source, here.commit, "x"))
    assert not closes_loop((here,), again)
    assert closes_loop((here, again), Step(here.source, "3" * 40, "x/x"))
    assert not closes_loop((here, again), Step(Source("https://h/a/c", "c"), "3" * 40, "x/x"))


def test_what_stands_in_a_command_line_is_no_option() -> None:
    for command in update_commands("/t", Submodule("x", "p", "u"), Source("https://h/a/b", "b")):
        assert "core.hooksPath=/dev/null" in command
        if "update" in command:
            assert command[-2:] == ("--", "p")
