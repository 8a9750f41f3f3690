"""The pages of git hosts that people paste: which repository they are about, and what of it.

Understands GitHub, GitLab, Gitea, Forgejo and Bitbucket, on their makers' hosts and on one's own. Which part of
`/tree/REF/FOLDER` is the ref is not known from the page: that stays open (`ref_path`). Refuses to know schemes and
hosts' names but for what one of them alone does.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from fairwater.domain.failure import Permanent
from fairwater.domain.workspaces.git_refs import check_ref, is_ref

_NUMBER = re.compile(r"[1-9][0-9]{0,9}", re.ASCII)
_WITH_PATH = frozenset({"tree", "blob", "raw", "blame", "edit", "commits"})
_ABOUT_A_FILE = frozenset({"blob", "raw", "blame", "edit"})
_WITHOUT_REF = frozenset(
    {
        "issues",
        "work_items",
        "pulls",
        "pull-requests",
        "merge_requests",
        "branches",
        "tags",
        "releases",
        "commits",
        "src",
    }
)
_TWO_NAMES = frozenset({"github.com", "www.github.com", "bitbucket.org"})
"""There a repository's path has two names, and all that follows is a page."""


@dataclass(frozen=True, slots=True)
class Page:
    """`repository` is the path to clone from. `anchored`: what follows a `#` is a place on the page, and no ref."""

    repository: str
    ref: str | None = None
    ref_path: str | None = None
    anchored: bool = False


def read_page(host: str, path: str) -> Page:
    """What `path` on `host`, unquoted, is about; a path that is no page is a repository's own.

    Raises:
        Permanent: `bad_context_url`, for a page that names nothing to check out.
    """
    repository, on_gitlab, page = path.partition("/-/")
    if on_gitlab:
        kind, *rest = _names(page) or [""]
        return _page(repository, kind, rest, pull="refs/merge-requests/{}/head", host=host)
    names = _names(path)
    if len(names) > 4 and names[0] in {"projects", "users"} and names[2] == "repos":
        return _bitbucket_server(names)
    for place, name in enumerate(names):  # GitLab, as it wrote addresses once: the group may be nested
        if name == "merge_requests" and place >= 2 and _NUMBER.fullmatch("".join(names[place + 1 : place + 2])):
            return _page("/".join(names[:place]), name, names[place + 1 :], "refs/merge-requests/{}/head", host)
    if len(names) > 2 and (host in _TWO_NAMES or _looks_like_page(names[2], names[3:])):
        return _page("/".join(names[:2]), names[2], names[3:], "refs/pull/{}/head", host)
    return Page(path)


def _looks_like_page(kind: str, rest: list[str]) -> bool:
    """On a host that is not known, a repository may lie as deep as a page of another."""
    if kind in {"pull", "pulls", "issues", "pull-requests"}:
        return bool(rest) and _NUMBER.fullmatch(rest[0]) is not None
    if kind == "src":
        return len(rest) > 1 and rest[0] in {"branch", "tag", "commit"}
    if kind == "releases":
        return len(rest) > 1 and rest[0] == "tag"
    return bool(rest) and kind in {"tree", "blob", "commit", "blame"}


def _page(repository: str, kind: str, rest: list[str], pull: str, host: str) -> Page:
    if rest and kind in {"pull", "pulls", "merge_requests", "pull-requests"} and _NUMBER.fullmatch(rest[0]):
        if host == "bitbucket.org":
            raise _bad(
                "Bitbucket gives out no refs of pull requests: give the branch that it comes from, as …/src/BRANCH"
            )
        return Page(repository, pull.format(rest[0]), anchored=True)
    if kind == "src" and len(rest) > 1 and rest[0] in {"branch", "tag", "commit"} and host != "bitbucket.org":
        return _ref_then_path(repository, rest[1:], anchored=True)  # Gitea and Forgejo; of a file they say no more
    if rest and kind in {"issues", "work_items"}:
        return Page(repository, anchored=True)
    if rest and kind == "commit":
        return Page(repository, check_ref(rest[0]))
    if rest and kind == "tags":
        return Page(repository, check_ref("/".join(rest)))
    if kind == "releases" and len(rest) > 1 and rest[0] == "tag":
        return Page(repository, check_ref("/".join(rest[1:])))
    if rest and kind == "commits" and host == "bitbucket.org":
        return Page(repository, check_ref(rest[0]))
    if rest and (kind in _WITH_PATH or kind == "src"):
        about_a_file = kind in _ABOUT_A_FILE and len(rest) > 1
        return _ref_then_path(repository, rest[:-1] if about_a_file else rest, anchored=kind in _ABOUT_A_FILE)
    if not rest and kind in _WITHOUT_REF:
        return Page(repository, anchored=True)
    raise _bad(
        f"a page of kind '{kind[:40]}' is not supported; give the repository, a branch (/tree/…), tag, commit or "
        "pull request"
    )


def _ref_then_path(repository: str, names: list[str], *, anchored: bool) -> Page:
    if not is_ref(names[0]) or any(name == ".." or name.lower() == ".git" for name in names):
        check_ref("/".join(names))
        raise _bad(f"{'/'.join(names)[:80]!r} is no branch, tag or commit with a folder in it")
    if len(names) == 1:
        return Page(repository, names[0], anchored=anchored)
    return Page(repository, ref_path="/".join(names), anchored=anchored)


def _bitbucket_server(names: list[str]) -> Page:
    """`/projects/KEY/repos/NAME/…`: such a server is cloned from elsewhere than where its pages are."""
    owner = f"~{names[1]}" if names[0] == "users" else names[1].lower()
    repository, kind, rest = f"scm/{owner}/{names[3]}.git", names[4], names[5:]
    if kind == "pull-requests" and rest and _NUMBER.fullmatch(rest[0]):
        return Page(repository, f"refs/pull-requests/{rest[0]}/from", anchored=True)
    if kind == "commits" and rest:
        return Page(repository, check_ref(rest[0]), anchored=True)
    if kind in {"browse", "branches", "commits", "pull-requests"} and not rest:
        return Page(repository, anchored=True)
    raise _bad(f"a page of kind '{kind[:40]}' is not supported on this host: give the address it shows for cloning")


def _names(path: str) -> list[str]:
    return [name for name in path.split("/") if name]


def _bad(message: str) -> Permanent:
    return Permanent(message, code="bad_context_url")
