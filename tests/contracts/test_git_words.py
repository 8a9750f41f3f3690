"""What git says, and what it is told: the pure part of bringing in a repository."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fairwater.domain.failure import Permanent
from fairwater.domain.workspaces.git import (
    clone_commands,
    clone_environment,
    explain_end,
    explain_failure,
    parse_progress,
    refuses_single_commit,
)
from fairwater.domain.workspaces.run import Progress, Source

REMOTE = Source("https://example.org/org/repo", "repo", "main")
LOCAL = Source("file:///srv/git/my%20repo", "repo", None, local=True)


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (
            "Receiving objects:  12% (123/1000), 1.20 MiB | 800.00 KiB/s",
            Progress("receiving objects", 123, 1000, "objects"),
        ),
        ("remote: Counting objects: 100% (9/9), done.", Progress("counting objects", 9, 9, "objects")),
        ("Resolving deltas:   0% (0/4)", Progress("resolving deltas", 0, 4, "deltas")),
        ("Updating files: 100% (10/10), done.", Progress("updating files", 10, 10, "files")),
        ("remote: Enumerating objects: 42, done.", Progress("enumerating objects", 42, None, "objects")),
        ("Cloning into 'x'...", None),
        ("fatal: Receiving objects:  12% (123/1000)", None),
        ("", None),
    ],
)
def test_progress_is_read(line: str, expected: Progress | None) -> None:
    assert parse_progress(line) == expected


@given(st.text())
def test_any_line_is_read_without_failing(line: str) -> None:
    parse_progress(line)
    assert isinstance(explain_failure(line, REMOTE), Permanent)


@pytest.mark.parametrize(
    ("stderr", "source", "code"),
    [
        ("fatal: unable to access 'https://x/': Could not resolve host: x", REMOTE, "no_such_host"),
        ("ssh: Could not resolve hostname x: Name or service not known", REMOTE, "no_such_host"),
        ("warning: ...\nfatal: Remote branch main not found in upstream origin", REMOTE, "no_such_ref"),
        ("fatal: couldn't find remote ref abc", REMOTE, "no_such_ref"),
        ("fatal: remote error: upload-pack: not our ref 0000", REMOTE, "no_such_ref"),
        ("fatal: could not read Username for 'https://github.com': terminal prompts disabled", REMOTE, "access_denied"),
        ("git@github.com: Permission denied (publickey).\nfatal: Could not read from remote.", REMOTE, "access_denied"),
        ("fatal: unable to access 'https://x/': The requested URL returned error: 403", REMOTE, "access_denied"),
        ("remote: Not Found\nfatal: repository 'https://x/y/' not found", REMOTE, "not_a_repository"),
        ("fatal: '/srv/git/my repo' does not appear to be a git repository", LOCAL, "not_a_repository"),
        (
            "error: unable to write file x\nfatal: cannot create directory: Disk quota exceeded",
            REMOTE,
            "quota_exceeded",
        ),
        ("fatal: write error: No space left on device", REMOTE, "quota_exceeded"),
        ("fatal: unable to access 'https://x/': Failed to connect to x port 443", REMOTE, "clone_failed"),
        ("", REMOTE, "clone_failed"),
    ],
)
def test_a_failure_is_told_by_its_code(stderr: str, source: Source, code: str) -> None:
    failure = explain_failure(stderr, source)
    assert failure.code == code
    assert source.clone_url in failure.message or "my repo" in failure.message or "example.org" in failure.message


def test_a_server_cannot_choose_the_code_where_git_has_one() -> None:
    stderr = "remote: Disk quota exceeded, could not resolve host\nfatal: repository 'https://x/y/' not found"
    assert explain_failure(stderr, REMOTE).code == "not_a_repository"


def test_what_a_server_says_is_shown_without_control_characters() -> None:
    failure = explain_failure("fatal: \x1b]0;owned\x07 strange thing", REMOTE)
    assert "\x1b" not in failure.message
    assert "strange thing" in failure.message


def test_a_killed_clone_is_told() -> None:
    assert "killed" in explain_end(137, "Receiving objects:  12% (1/9)\r", REMOTE).message


@pytest.mark.parametrize("ref", [None, "main", "v1.0", "a" * 40, "b" * 64])
@pytest.mark.parametrize("whole", [False, True])
def test_hostile_values_stand_where_they_are_no_options(ref: str | None, whole: bool) -> None:
    source = Source("--upload-pack=touch /tmp/x", "repo", ref)
    for command in clone_commands(source, "--target", whole=whole):
        assert command[0] == "git"
        assert "core.hooksPath=/dev/null" in command
        if source.clone_url in command:
            assert "--" in command[: command.index(source.clone_url)]


def test_a_commit_is_fetched_alone_and_as_a_whole_where_that_is_refused() -> None:
    commit = "a" * 40
    alone = clone_commands(Source("https://x/y", "y", commit), "/t")
    assert ["init" in command or "fetch" in command for command in alone].count(True) == 2
    assert not any("clone" in command for command in alone)
    assert "clone" in clone_commands(Source("https://x/y", "y", commit), "/t", whole=True)[0]
    assert refuses_single_commit("error: Server does not allow request for unadvertised object aaaa")
    assert not refuses_single_commit("fatal: repository 'https://x/y/' not found")


def test_only_the_protocols_of_the_sources_kind_are_spoken() -> None:
    assert clone_environment(REMOTE, "/h", "/c")["GIT_ALLOW_PROTOCOL"] == "https:http:ssh"
    assert clone_environment(LOCAL, "/h", "/c")["GIT_ALLOW_PROTOCOL"] == "file"
    assert clone_environment(REMOTE, "/h", "/c")["GIT_TERMINAL_PROMPT"] == "0"
