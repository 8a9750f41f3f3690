from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fairwater.domain.failure import Permanent
from fairwater.domain.workspaces.context import Scheme, parse_context
from fairwater.domain.workspaces.git_refs import (
    RefAndFolder,
    is_commit,
    pull_request_branch,
    ref_patterns,
    split_ref_path,
)

SHA = "0123456789abcdef0123456789abcdef01234567"

UNDERSTOOD = [
    # what is pasted, what is cloned, the folder, what is checked out
    ("https://github.com/org/repo", "https://github.com/org/repo", "repo", None),
    ("https://github.com/org/repo/", "https://github.com/org/repo", "repo", None),
    ("  https://github.com/org/repo\n", "https://github.com/org/repo", "repo", None),
    ("https://github.com/org/repo.git", "https://github.com/org/repo.git", "repo", None),
    ("HTTPS://GitHub.COM/Org/Repo", "https://github.com/Org/Repo", "Repo", None),
    ("http://git.intern/repo", "http://git.intern/repo", "repo", None),
    ("https://git.example.com:8443/a/b/c/repo.git", "https://git.example.com:8443/a/b/c/repo.git", "repo", None),
    ("https://[2001:db8::1]:8443/org/repo", "https://[2001:db8::1]:8443/org/repo", "repo", None),
    ("https://github.com/org/repo#main", "https://github.com/org/repo", "repo", "main"),
    ("https://github.com/org/repo.git#v1.2.3", "https://github.com/org/repo.git", "repo", "v1.2.3"),
    ("https://github.com/org/repo#feature%2Fx", "https://github.com/org/repo", "repo", "feature/x"),
    (f"https://github.com/org/repo#{SHA}", "https://github.com/org/repo", "repo", SHA),
    ("https://github.com/org/repo/tree/main", "https://github.com/org/repo", "repo", "main"),
    (f"https://github.com/org/repo/commit/{SHA}", "https://github.com/org/repo", "repo", SHA),
    ("https://github.com/org/repo/releases/tag/v2.0", "https://github.com/org/repo", "repo", "v2.0"),
    ("https://github.com/org/repo/tree/main#v3", "https://github.com/org/repo", "repo", "v3"),
    ("https://gitlab.com/a/b/c/-/tree/dev", "https://gitlab.com/a/b/c", "c", "dev"),
    (f"https://gitlab.example.com/a/b/-/commit/{SHA}", "https://gitlab.example.com/a/b", "b", SHA),
    ("https://gitlab.com/a/b/-/tags/v1", "https://gitlab.com/a/b", "b", "v1"),
    ("https://bitbucket.org/team/repo/src/main", "https://bitbucket.org/team/repo", "repo", "main"),
    (f"https://bitbucket.org/team/repo/commits/{SHA}", "https://bitbucket.org/team/repo", "repo", SHA),
    ("https://github.com/org/repo/blob/main/README.md", "https://github.com/org/repo", "repo", "main"),
    ("https://github.com/org/repo/blob/main/README.md#L10-L20", "https://github.com/org/repo", "repo", "main"),
    ("https://github.com/org/repo?tab=readme-ov-file#readme", "https://github.com/org/repo", "repo", None),
    ("https://github.com/org/repo?tab=MIT-1-ov-file", "https://github.com/org/repo", "repo", None),
    ("https://github.com/org/repo/issues", "https://github.com/org/repo", "repo", None),
    ("https://github.com/org/repo/issues/5#issuecomment-1", "https://github.com/org/repo", "repo", None),
    ("https://github.com/org/repo/pull/12", "https://github.com/org/repo", "repo", "refs/pull/12/head"),
    ("https://github.com/org/repo/pull/12/files#diff-a1", "https://github.com/org/repo", "repo", "refs/pull/12/head"),
    ("https://ghe.intern:8443/org/repo/pull/12", "https://ghe.intern:8443/org/repo", "repo", "refs/pull/12/head"),
    ("https://gitea.intern/org/repo/pulls/3", "https://gitea.intern/org/repo", "repo", "refs/pull/3/head"),
    ("https://gitea.intern/org/repo/src/branch/main", "https://gitea.intern/org/repo", "repo", "main"),
    (f"https://codeberg.org/org/repo/src/commit/{SHA}", "https://codeberg.org/org/repo", "repo", SHA),
    ("https://gitlab.com/a/b/c/-/merge_requests/5", "https://gitlab.com/a/b/c", "c", "refs/merge-requests/5/head"),
    ("https://gl.intern/a/b/c/merge_requests/5/diffs", "https://gl.intern/a/b/c", "c", "refs/merge-requests/5/head"),
    ("https://gitlab.com/a/b/-/issues/5", "https://gitlab.com/a/b", "b", None),
    ("https://gitlab.com/a/b/-/blob/main/README.md?ref_type=heads", "https://gitlab.com/a/b", "b", "main"),
    (
        "https://bb.intern/projects/KEY/repos/repo/pull-requests/7/overview",
        "https://bb.intern/scm/key/repo.git",
        "repo",
        "refs/pull-requests/7/from",
    ),
    ("https://bb.intern/users/jo/repos/repo/browse", "https://bb.intern/scm/~jo/repo.git", "repo", None),
    ("git@github.com:org/repo.git", "git@github.com:org/repo.git", "repo", None),
    ("git@GitHub.com:org/repo.git#dev", "git@github.com:org/repo.git", "repo", "dev"),
    ("jo@host.intern:~/git/repo", "jo@host.intern:~/git/repo", "repo", None),
    ("jo@host.intern:repo/", "jo@host.intern:repo", "repo", None),
    ("ssh://jo@host.intern/~/git/repo", "ssh://jo@host.intern/~/git/repo", "repo", None),
    ("deploy@host.intern:/srv/git/repo", "ssh://deploy@host.intern/srv/git/repo", "repo", None),
    ("ssh://git@github.com/org/repo.git", "ssh://git@github.com/org/repo.git", "repo", None),
    ("ssh://github.com/org/repo.git", "ssh://git@github.com/org/repo.git", "repo", None),
    ("ssh://git@host.intern:2222/org/repo", "ssh://git@host.intern:2222/org/repo", "repo", None),
    ("file:///srv/git/repo", "file:///srv/git/repo", "repo", None),
    ("file://localhost/srv/git/repo.git#main", "file:///srv/git/repo.git", "repo", "main"),
    ("https://host.intern/org/my%20project/repo", "https://host.intern/org/my%20project/repo", "repo", None),
]

HOSTILE = [
    # an option to git or ssh
    "--upload-pack=touch /tmp/x",
    "-oProxyCommand=id",
    "ssh://-oProxyCommand=id/org/repo",
    "ssh://git@-oProxyCommand=id/org/repo",
    "ssh://-oProxyCommand=id@host/org/repo",
    "git@-oProxyCommand=id:org/repo",
    "-oProxyCommand=id@host:org/repo",
    "https://github.com/-org/repo",
    "https://github.com/org/--upload-pack=id",
    "https://github.com/org/repo#-b",
    "https://github.com/org/repo/tree/--output=x",
    # another transport
    "ext::sh -c id",
    "ext::id",
    "fd::17",
    "git://github.com/org/repo",
    "ftp://host/repo",
    "javascript:alert(1)",
    "data:text/plain,x",
    "/srv/git/repo",
    "../repo",
    "org/repo",
    "host:org/repo",
    # a way out of a folder
    "https://github.com/org/..",
    "https://github.com/../../etc/passwd",
    "https://github.com/%2e%2e/%2e%2e/etc",
    "https://github.com/org/.git",
    "https://github.com/org/..git",
    "file:///srv/../etc/repo",
    "file:///srv/%2e%2e/etc/repo",
    "file:///",
    "file://otherhost/srv/repo",
    "file://srv/repo",
    # secrets
    "https://user:secret@github.com/org/repo",
    "https://token@github.com/org/repo",
    "ssh://git:secret@github.com/org/repo",
    # signs that change meaning further on
    "https://github.com/org/re po",
    "https://github.com/org/repo\nHost: evil",
    "https://github.com/org/repo\x00",
    "https://github.com/org/repo%00",
    "https://github.com/org/repo%0a",
    "https://github.com/org/$(id)",
    "https://github.com/org/`id`",
    "https://github.com/org/repo;id",
    "https://github.com/org/repo\\..\\x",
    "https://github.com\\@evil.example/org/repo",
    "https://gi%74hub.com/org/repo",
    "https://host_with_underscore/org/repo",
    "https://.github.com/org/repo",
    "https://github..com/org/repo",
    "https://[::1/org/repo",
    "https://[::1%25eth0]/org/repo",
    "https://github.com:99999/org/repo",
    "https://github.com:port/org/repo",
    # no repository
    "",
    "   ",
    "https://",
    "https:///org/repo",
    "https://github.com",
    "https://github.com/",
    "https://github.com/org/repo/actions",
    "https://github.com/org/repo/pull/0",
    "https://github.com/org/repo/pull/12x",
    "https://bitbucket.org/team/repo/pull-requests/3",
    "https://gitlab.com/org/repo/-/pipelines/5",
    "https://github.com/org/repo/tree/main/../../x",
    "https://github.com/org/repo/tree/main/.git/hooks",
    "https://github.com/org/repo/blob/-x/README.md",
    "git@github.com:",
    "git@github.com:../repo",
    "git@github.com:a/./repo",
    "git@github.com:$(id)",
    "git@github.com:org/repo?x",
    # a query may hold a token, and the URL is kept
    "https://github.com/org/repo?token=x",
    "https://github.com/org/repo?tab=ghp_0123456789abcdefghijABCDEFGHIJ012345",
    "https://github.com/org/repo?tab=glpat-0123456789abcdefghij",
    "https://gitlab.com/org/repo?private_token=x&tab=readme",
    "https://github.com/" + "a" * 2100,
    "https://github.com/org/" + "a" * 101,
]

BAD_REFS = [
    *("-x", "/x", ".x", "x/", "x.", "x.lock", "a..b", "a@{1}", "a//b", "a\\b", "a/.b"),
    *("a b", "a~1", "a^", "a:b", "a?", "a*", "a[b", "a\x7fb", "r" * 251),
]


@pytest.mark.parametrize(("url", "clone_url", "name", "ref"), UNDERSTOOD)
def test_an_address_that_people_paste_is_understood(url: str, clone_url: str, name: str, ref: str | None) -> None:
    context = parse_context(url)
    assert (context.clone_url, context.name, context.ref) == (clone_url, name, ref)
    scheme, is_url, _ = clone_url.partition("://")
    assert context.scheme == Scheme(scheme if is_url else "ssh")
    assert context.ref_path is None


@pytest.mark.parametrize(("url", "clone_url", "name", "ref"), UNDERSTOOD)
def test_a_clone_url_asks_for_itself(url: str, clone_url: str, name: str, ref: str | None) -> None:
    context = parse_context(clone_url)
    assert (context.clone_url, context.name, context.ref) == (clone_url, name, None)


@pytest.mark.parametrize("url", HOSTILE)
def test_a_hostile_or_meaningless_address_is_refused(url: str) -> None:
    with pytest.raises(Permanent) as refusal:
        parse_context(url)
    assert refusal.value.code == "bad_context_url"
    assert len(refusal.value.message) < 400


@pytest.mark.parametrize("ref", BAD_REFS)
def test_a_ref_that_git_would_read_otherwise_is_refused(ref: str) -> None:
    escaped = "".join(f"%{byte:02x}" for byte in ref.encode())
    with pytest.raises(Permanent) as refusal:
        parse_context(f"https://github.com/org/repo#{escaped}")
    assert refusal.value.code == "bad_context_url"


@pytest.mark.parametrize("url", ["https://user:hunter2@github.com/org/repo", "ssh://git:hunter2@host/org/repo"])
def test_a_password_in_an_address_is_not_repeated_in_the_refusal(url: str) -> None:
    with pytest.raises(Permanent) as refusal:
        parse_context(url)
    assert "hunter2" not in refusal.value.message


@pytest.mark.parametrize(
    ("ref", "whole"),
    [(SHA, True), ("a" * 64, True), (SHA[:12], False), (SHA.upper(), False), (SHA + "\n", False), ("main", False)],
)
def test_only_the_full_name_of_a_commit_counts_as_one(ref: str, whole: bool) -> None:
    assert is_commit(ref) is whole


SIGNS = st.sampled_from(list("aZ0/.-_~#@:?%&=+[]\\$`;'\"!* \t\n\x00\x7fäλ…")) | st.characters(codec="utf-8")
PREFIXES = st.sampled_from(
    [
        "",
        "https://",
        "http://host/",
        "https://github.com/org/repo/",
        "ssh://",
        "ssh://u@h/",
        "git@host:",
        "https://gitlab.com/a/b/-/tree/",
        "https://h/o/r#",
    ]
)


@given(PREFIXES, st.text(SIGNS, max_size=60))
def test_any_address_is_refused_or_becomes_something_safe(prefix: str, rest: str) -> None:
    try:
        context = parse_context(prefix + rest)
    except Permanent as refusal:
        code = refusal.code
    else:
        code = "bad_context_url"
        remote_shell = f"{context.clone_url.partition('@')[0]}@{context.host}:"
        assert context.clone_url.startswith((f"{context.scheme}://", remote_shell))
        assert context.clone_url.isascii()
        assert not any(ord(sign) < 33 for sign in context.clone_url)
        assert "/../" not in context.clone_url + "/"
        assert not context.host.startswith("-")
        assert "/" not in context.name
        assert context.name.strip(".")
        assert not context.name.startswith((".", "-"))
        if context.ref is not None:
            assert context.ref
            assert not context.ref.startswith("-")
            assert not set(context.ref) & set(" ~^:?*[\\\x00\n\t\x7f")
        if context.ref_path is not None:
            assert context.ref is None
            assert not {"..", "", ".git"} & set(context.ref_path.split("/"))
            assert not context.ref_path.startswith("-")
        assert parse_context(context.clone_url).name == context.name
    assert code == "bad_context_url"


SEGMENTS = st.from_regex(r"[A-Za-z0-9_][A-Za-z0-9._]{0,20}", fullmatch=True).filter(
    lambda segment: segment.removesuffix(".git") not in {"", ".", ".."} and not segment.startswith(".")
)
BRANCHES = st.from_regex(r"[a-z][a-z0-9-]{0,10}(/[a-z][a-z0-9-]{0,10}){0,3}", fullmatch=True)


@given(SEGMENTS, SEGMENTS, BRANCHES)
def test_a_branchs_page_and_the_fragment_ask_for_the_same(org: str, repo: str, branch: str) -> None:
    page = parse_context(f"https://github.com/{org}/{repo}/tree/{branch}")
    fragment = parse_context(f"https://github.com/{org}/{repo}#{branch}")
    assert (page.clone_url, page.ref or page.ref_path) == (fragment.clone_url, branch)
    assert fragment.ref == branch


@pytest.mark.parametrize(
    ("url", "ref_path"),
    [
        ("https://github.com/org/repo/tree/feature/a/src", "feature/a/src"),
        ("https://github.com/org/repo/tree/release%2F1.0/", "release/1.0"),
        ("https://github.com/org/repo/blob/feature/a/src/x.py#L3", "feature/a/src"),
        ("https://gitlab.intern/a/b/c/-/tree/main/src/lib?ref_type=heads", "main/src/lib"),
        ("https://bitbucket.org/team/repo/src/main/lib/", "main/lib"),
        ("https://gitea.intern/org/repo/src/branch/feature/x/lib", "feature/x/lib"),
        ("https://github.com/org/repo/tree/main/my%20folder", "main/my folder"),
    ],
)
def test_a_ref_with_a_folder_is_left_for_the_repository_to_tell_apart(url: str, ref_path: str) -> None:
    context = parse_context(url)
    assert (context.ref, context.ref_path) == (None, ref_path)


HEADS = "aaa\trefs/heads/feature/a\nbbb\trefs/tags/feature\nccc\trefs/heads/main\n"


@pytest.mark.parametrize(
    ("ref_path", "expected"),
    [
        ("feature/a/src/lib", RefAndFolder("feature/a", "src/lib")),
        ("feature/b/src", RefAndFolder("feature", "b/src")),
        ("main/src", RefAndFolder("main", "src")),
        ("main", RefAndFolder("main")),
        ("0123abc/src", RefAndFolder("0123abc", "src")),
        (f"{SHA}/src", RefAndFolder(SHA, "src")),
        ("nowhere/src", None),
        ("main/my folder~1", RefAndFolder("main", "my folder~1")),
    ],
)
def test_the_longest_ref_that_is_there_counts(ref_path: str, expected: RefAndFolder | None) -> None:
    assert split_ref_path(ref_path, HEADS) == expected


@given(st.text(SIGNS, max_size=300), st.text(max_size=100))
def test_whatever_a_page_asks_for_only_refs_are_looked_up(ref_path: str, printed: str) -> None:
    for pattern in ref_patterns(ref_path):
        assert pattern.startswith(("refs/heads/", "refs/tags/"))
        assert not set(pattern) & set("*?[ ~^:\\")
    split_ref_path(ref_path, printed)


@pytest.mark.parametrize(
    ("ref", "branch"),
    [
        ("refs/pull/12/head", "pull/12"),
        ("refs/merge-requests/5/head", "merge-requests/5"),
        ("refs/pull-requests/7/from", "pull-requests/7"),
        ("refs/heads/pull/12", None),
        ("refs/pull/0/head", None),
        ("refs/pull/../head", None),
        ("refs/pull/12/head\n", None),
    ],
)
def test_pull_requests_are_known_by_their_refs(ref: str, branch: str | None) -> None:
    assert pull_request_branch(ref) == branch
