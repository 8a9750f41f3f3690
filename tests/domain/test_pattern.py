from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fairwater.domain.failure import Permanent
from fairwater.domain.workspaces.context import parse_context
from fairwater.domain.workspaces.pattern import matches, parse_pattern, specificity

REPO = "https://github.com/Org/Repo"
NESTED = "git@gitlab.example:group/sub/repo.git"
SSH = "ssh://git@gitlab.example:2222/group/sub/repo"
LOCAL = "file:///srv/git/team/app"
PORT = "https://git.example:8443/org/repo"


@pytest.mark.parametrize(
    ("pattern", "meant", "others"),
    [
        ("", {REPO, NESTED, LOCAL, PORT}, set()),
        ("**", {REPO, NESTED, LOCAL, PORT}, set()),
        ("*/*", {REPO, LOCAL, PORT}, {NESTED}),
        ("org/repo", {REPO, PORT}, {NESTED, LOCAL}),
        ("ORG/*", {REPO, PORT}, {NESTED, LOCAL}),
        ("*/repo", {REPO, PORT}, {NESTED, LOCAL}),
        ("org/r*", {REPO, PORT}, {LOCAL}),
        ("org/re*repo", set(), {REPO}),
        ("github.com/org/repo", {REPO}, {PORT, NESTED}),
        ("https://github.com/org/repo.git", {REPO}, {PORT, NESTED}),
        ("*.com/*/*", {REPO}, {PORT, NESTED}),
        ("git.example/org/*", {PORT}, {REPO}),
        ("git.example:8443/org/*", {PORT}, {REPO}),
        ("group/**", {NESTED}, {REPO, LOCAL}),
        ("group/sub/repo", {NESTED}, {REPO}),
        ("gitlab.example/**", {NESTED}, {REPO, LOCAL}),
        ("group/sub/repo/**", set(), {NESTED}),
        ("gitlab.example/group/**", {NESTED, SSH}, {REPO}),
        ("gitlab.example:2222/group/**", {SSH}, {NESTED}),
        ("team/app", {LOCAL}, {REPO}),
    ],
)
def test_a_pattern_means_these_repositories_and_not_those(pattern: str, meant: set[str], others: set[str]) -> None:
    parsed = parse_pattern(pattern)
    assert {url for url in (REPO, NESTED, LOCAL, PORT, SSH) if matches(parsed, parse_context(url))} >= meant
    assert not any(matches(parsed, parse_context(url)) for url in others)


@pytest.mark.parametrize(
    "text", ["repo", "*", "a//b", "a/b*c*d", "**/a", "a/**/b", "a b/c", "a/b?", "a/\0", "/".join("abcdefghijklmnopqrs"),
             f"a/{'b' * 300}"]
)  # fmt: skip
def test_what_is_no_pattern_is_refused(text: str) -> None:
    with pytest.raises(Permanent) as caught:
        parse_pattern(text)
    assert caught.value.code == "bad_pattern"


def test_the_more_specific_pattern_says_more() -> None:
    order = ["", "*/*", "group/**", "org/*", "github.com/*/*", "org/r*", "org/repo", "github.com/org/*"]
    assert specificity("github.com/org/repo") == max(specificity(one) for one in [*order, "github.com/org/repo"])
    for less, more in (("", "*/*"), ("*/*", "org/*"), ("org/*", "org/r*"), ("org/r*", "org/repo")):
        assert specificity(less) <= specificity(more)
    assert specificity("org/r*") < specificity("org/repo") < specificity("github.com/org/repo")
    assert specificity("org/**") < specificity("org/*")


@given(st.text("abc*/.", max_size=40))
def test_whatever_is_taken_as_a_pattern_stays_the_same_when_read_again(text: str) -> None:
    try:
        pattern = parse_pattern(text)
    except Permanent:
        return
    assert parse_pattern(pattern) == pattern
    assert isinstance(matches(pattern, parse_context(REPO)), bool)
