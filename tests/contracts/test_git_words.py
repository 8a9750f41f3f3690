"""What git says, and what it is told: the pure part of bringing in a repository."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fairwater.domain.failure import Permanent
from fairwater.domain.workspaces.git import clone_commands, clone_environment, wants_whole
from fairwater.domain.workspaces.git_failure import explain_end, explain_failure
from fairwater.domain.workspaces.git_progress import parse_progress
from fairwater.domain.workspaces.git_urls import has_key_for, host_of
from fairwater.domain.workspaces.run import Progress, Source
from fairwater.domain.workspaces.secrets import Credential, CredentialKind, RunSecrets

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
        ("Downloading LFS objects:  50% (1/2), 1.2 MB | 0 B/s", Progress("downloading LFS objects", 1, 2, "objects")),
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
        ("fatal: Authentication failed for 'https://x/y/'", REMOTE, "credential_refused"),
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
    source = Source("https://x/y", "y", commit)
    alone = clone_commands(source, "/t")
    assert ["init" in command or "fetch" in command for command in alone].count(True) == 2
    assert not any("clone" in command for command in alone)
    assert "clone" in clone_commands(source, "/t", whole=True)[0]
    assert wants_whole(source, "error: Server does not allow request for unadvertised object aaaa")
    assert not wants_whole(source, "fatal: repository 'https://x/y/' not found")


def test_the_beginning_of_a_commits_name_is_looked_for_among_all_commits() -> None:
    said = "fatal: Remote branch 0123abc not found in upstream origin"
    assert wants_whole(Source("https://x/y", "y", "0123abc"), said)
    assert not wants_whole(Source("https://x/y", "y", "main"), said)
    assert not wants_whole(Source("https://x/y", "y", None), said)


def test_a_pull_request_is_fetched_to_a_branch_of_its_own() -> None:
    commands = clone_commands(Source("https://x/y", "y", "refs/pull/12/head"), "/t")
    assert any("+refs/pull/12/head:refs/heads/pull/12" in command for command in commands)
    assert "pull/12" in commands[-1]


@pytest.mark.parametrize(
    ("url", "command"),
    [
        ("https://x.org/o/r", "fairwater credential add x.org'"),
        ("http://x.org:8080/o/r", "fairwater credential add x.org:8080 --plain-http'"),
        ("ssh://git@x.org/o/r", "fairwater credential add x.org --ssh-key FILE'"),
        ("git@x.org:o/r", "fairwater credential add x.org --ssh-key FILE'"),
    ],
)
def test_who_may_not_read_a_repository_is_told_the_whole_command_that_helps(url: str, command: str) -> None:
    for said in ("fatal: could not read Username for 'x'", "fatal: repository 'x' not found"):
        assert command in explain_failure(said, Source(url, "r")).message


@pytest.mark.parametrize(
    ("ref", "name"), [("refs/pull/99/head", "pull request 99"), ("refs/merge-requests/7/head", "merge request 7")]
)
def test_a_request_that_is_not_there_is_told_by_its_number(ref: str, name: str) -> None:
    failure = explain_failure(f"fatal: couldn't find remote ref {ref}", Source("https://x/y", "y", ref))
    assert failure.code == "no_such_ref"
    assert name in failure.message


def test_a_key_that_is_refused_is_told_from_one_that_is_missing() -> None:
    said = "git@x: Permission denied (publickey).\nfatal: Could not read from remote repository."
    source = Source("git@git.example.org:org/repo", "repo")
    missing, refused = explain_failure(said, source), explain_failure(said, source, key_offered=True)
    assert (missing.code, refused.code) == ("access_denied", "credential_refused")
    for failure in (missing, refused):
        assert "fairwater credential add git.example.org" in failure.message


@pytest.mark.parametrize(
    ("url", "host"),
    [
        ("https://git.example.org/a/b", "git.example.org"),
        ("https://git.example.org:443/a/b", "git.example.org"),
        ("http://git.example.org:8080/a/b", "git.example.org:8080"),
        ("git@Git.example.org:a/b", "git.example.org"),
        ("ssh://git@git.example.org:22/a/b", "git.example.org"),
        ("ssh://git@[2001:db8::1]:2222/a/b", "[2001:db8::1]:2222"),
        ("file:///srv/git/repo", ""),
    ],
)
def test_the_host_of_an_address_is_told(url: str, host: str) -> None:
    assert host_of(url) == host


def test_keys_are_offered_to_their_own_host_alone() -> None:
    secrets = RunSecrets((Credential(CredentialKind.SSH_KEY, "git.example.org", "git", "key"),))
    assert has_key_for(secrets, "git@git.example.org:a/b")
    assert has_key_for(secrets, "ssh://git@git.example.org:2222/a/b")
    assert not has_key_for(secrets, "git@evil.example.org:a/b")
    assert not has_key_for(secrets, "https://git.example.org/a/b")
    source = Source("git@git.example.org:a/b", "b")
    assert "IdentityAgent=none" in clone_environment(source, "/h", "/c")["GIT_SSH_COMMAND"]
    assert "IdentityAgent=none" not in clone_environment(source, "/h", "/c", keys=True)["GIT_SSH_COMMAND"]


def test_only_the_protocols_of_the_sources_kind_are_spoken() -> None:
    assert clone_environment(REMOTE, "/h", "/c")["GIT_ALLOW_PROTOCOL"] == "https:http:ssh"
    assert clone_environment(LOCAL, "/h", "/c")["GIT_ALLOW_PROTOCOL"] == "file"
    assert clone_environment(REMOTE, "/h", "/c")["GIT_TERMINAL_PROMPT"] == "0"
