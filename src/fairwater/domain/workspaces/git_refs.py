"""Refs: which names git takes for one, what a page's `REF/FOLDER` means, and under which refs pull requests are found.

Pure: reads what `git ls-remote` printed. Every name is treated as hostile: it will stand in a command line of git.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from fairwater.domain.failure import Permanent

_COMMIT = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
_COMMIT_PREFIX = re.compile(r"[0-9a-f]{7,64}")
_PULL_REQUEST = re.compile(
    r"refs/(?P<branch>(?:pull|merge-requests|pull-requests)/[1-9][0-9]{0,9})/(?:head|from)", re.ASCII
)
_CANDIDATES_MAX = 16
"""So many names long may a ref be that is followed by a folder."""


@dataclass(frozen=True, slots=True)
class RefAndFolder:
    """`folder` is relative to the repository, "" for its root."""

    ref: str
    folder: str = ""


def is_commit(ref: str) -> bool:
    """Whether `ref` is the full name of a commit (SHA-1 or SHA-256)."""
    return _COMMIT.fullmatch(ref) is not None


def may_be_commit(ref: str) -> bool:
    """Whether `ref` may be the beginning of a commit's name."""
    return _COMMIT_PREFIX.fullmatch(ref) is not None


def is_ref(text: str) -> bool:
    """By the rules of git-check-ref-format that keep it from being an option or a range."""
    bad = (
        not text
        or len(text) > 250
        or text == "@"
        or text.startswith(("-", "/", "."))
        or text.endswith(("/", ".", ".lock"))
        or any(part in text for part in ("..", "@{", "//", "\\", "/.", ".lock/"))
        or not text.isprintable()
        or any(sign in " ~^:?*[" for sign in text)
    )
    return not bad


def check_ref(text: str) -> str:
    """`text`, which is a ref. Raises Permanent: `bad_context_url`."""
    if not is_ref(text):
        raise Permanent(f"{text[:80]!r} is not the name of a branch, tag or commit", code="bad_context_url")
    return text


def pull_request_branch(ref: str) -> str | None:
    """The local branch for the ref of a pull or merge request: `pull/12` for `refs/pull/12/head`; else None."""
    found = _PULL_REQUEST.fullmatch(ref)
    return found["branch"] if found else None


def ref_patterns(ref_path: str) -> tuple[str, ...]:
    """The refs that `ref_path`, a ref followed by a folder, may begin with, the longest first."""
    segments = ref_path.split("/")[:_CANDIDATES_MAX]
    names = ("/".join(segments[:count]) for count in range(len(segments), 0, -1))
    return tuple(f"refs/{kind}/{name}" for name in names if is_ref(name) for kind in ("heads", "tags"))


def split_ref_path(ref_path: str, ls_remote: str) -> RefAndFolder | None:
    """`ref_path` told apart by what `git ls-remote` printed for `ref_patterns`: the longest ref that is there.

    Where none is, the first name may be (the beginning of) a commit's; else None.
    """
    there = {line.partition("\t")[2] for line in ls_remote.splitlines()}
    for pattern in ref_patterns(ref_path):
        if pattern in there:
            name = pattern.split("/", 2)[2]
            return RefAndFolder(name, ref_path[len(name) :].strip("/"))
    first, _, rest = ref_path.partition("/")
    return RefAndFolder(first, rest) if may_be_commit(first) else None
