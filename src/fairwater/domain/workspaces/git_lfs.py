"""Git LFS: whether a checkout uses it, how its files are brought in, and what is said where they cannot be."""

from __future__ import annotations

from collections.abc import Sequence

from fairwater.domain.workspaces.git import git_in
from fairwater.domain.workspaces.git_failure import last_words
from fairwater.domain.workspaces.notice import Level, Notice

ATTRIBUTES = ".gitattributes"
VERSION_COMMAND = ("git", "lfs", "version")
_PATIENCE = (
    "-c", "lfs.dialtimeout=15",
    "-c", "lfs.tlstimeout=15",
    "-c", "lfs.activitytimeout=30",
    "-c", "lfs.transfer.maxretries=2",
    "-c", "lfs.locksverify=false",
)  # fmt: skip


def uses_lfs_command(folder: str) -> tuple[str, ...]:
    """Succeeds where a `.gitattributes` of the commit asks for LFS."""
    return git_in(folder, "grep", "--quiet", "-I", "-e", "filter=lfs", "HEAD", "--", f":(glob)**/{ATTRIBUTES}")


def install_command(folder: str) -> tuple[str, ...]:
    """Makes LFS work in this checkout from now on: its filters, and the hook that sends files at a push."""
    # Without the options of `git_in`, one of which hides the folder where the hooks are to go. No hook runs by this.
    return ("git", "-c", "core.fsmonitor=false", "-C", folder, "lfs", "install", "--local")


def pull_command(folder: str, options: Sequence[str] = ()) -> tuple[str, ...]:
    return git_in(folder, "lfs", "pull", options=(*_PATIENCE, *options))


def unavailable_notice(place: str, words: str) -> Notice:
    """`place` is the checkout's folder below /workspace; `words` is what git-lfs said."""
    return Notice(
        Level.ERROR,
        "lfs_unavailable",
        f"the large files (Git LFS) of {place} could not be brought in, so they are pointers only: "
        f"{last_words(words) or 'git-lfs gave no reason'}; run 'git lfs pull' there later",
        ATTRIBUTES,
    )


def not_installed_notice(place: str) -> Notice:
    return Notice(
        Level.ERROR,
        "lfs_unavailable",
        f"the large files (Git LFS) of {place} are pointers only, since git-lfs is not installed on this node: ask its "
        "operator to install it (apt install git-lfs), then run 'git lfs pull' there",
        ATTRIBUTES,
    )
