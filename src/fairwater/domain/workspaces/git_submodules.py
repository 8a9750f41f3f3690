"""Submodules: what `.gitmodules` names, what of it is taken, and where it ends.

What a repository says there is hostile: names and paths that lead elsewhere, URLs that are options or other protocols,
repositories that hold one another without end. What is not taken is told in a notice; the rest goes on.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from fairwater.domain.failure import Permanent
from fairwater.domain.workspaces.git import git_in
from fairwater.domain.workspaces.git_urls import resolve_url, same_repository, source_of
from fairwater.domain.workspaces.notice import Level, Notice
from fairwater.domain.workspaces.run import Source

FILE = ".gitmodules"
DEPTH_MAX = 8
"""Levels of submodules in submodules."""
SUBMODULES_MAX = 200
"""Of one workspace, all levels together."""
_TIMES_IN_A_CHAIN_MAX = 2
"""How often a repository may stand in a chain of submodules: some keep a branch of their own as one."""
_SIGNS_MAX = 255
_COMMIT = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class Submodule:
    """A submodule as written. `path` is its place in the repository that names it."""

    name: str
    path: str
    url: str


@dataclass(frozen=True, slots=True)
class Step:
    """A checkout on the way down: `place` is relative to the workspace's repository, "" for that itself."""

    source: Source
    commit: str
    place: str = ""

    def below(self, path: str) -> str:
        return f"{self.place}/{path}" if self.place else path


Chain = tuple[Step, ...]
"""From the workspace's repository down to a checkout, which stands last."""


def list_file_command(folder: str) -> tuple[str, ...]:
    """Prints something where the checkout in `folder` has a file of submodules; fails where it has no commit."""
    return git_in(folder, "ls-tree", "-z", "HEAD", "--", FILE)


def read_file_command(folder: str) -> tuple[str, ...]:
    return git_in(folder, "config", f"--blob=HEAD:{FILE}", "--null", "--get-regexp", r"^submodule\..*\.(path|url)$")


def list_links_command(folder: str, paths: Sequence[str]) -> tuple[str, ...]:
    """Prints what the commit has at `paths`."""
    return git_in(folder, "ls-tree", "-z", "--full-tree", "HEAD", "--", *paths)


def parse_file(printed: bytes) -> tuple[Submodule, ...]:
    """The submodules in the order written, as `read_file_command` prints them; of what is said twice, the first counts,
    as for git. What is missing of one is "": git reads a broken file as far as it goes, and does not fail."""
    said: dict[str, dict[str, str]] = {}
    for entry in printed.decode("utf-8", "replace").split("\0"):
        key, newline, value = entry.partition("\n")
        name, dot, what = key.removeprefix("submodule.").rpartition(".")
        if newline and dot:
            said.setdefault(name, {}).setdefault(what, value)
    return tuple(
        Submodule(name, values.get("path", "").rstrip("/"), values.get("url", "")) for name, values in said.items()
    )


def says_nothing(status: int, words: str) -> bool:
    """Whether `read_file_command` ended so because the file names none: git leaves an empty one behind the last."""
    return status == 1 and "error:" not in words


def parse_links(printed: bytes) -> Mapping[str, str]:
    """Path to commit, of what `list_links_command` printed; what is no submodule's link is left out."""
    links = {}
    for entry in printed.decode("utf-8", "replace").split("\0"):
        kind, _, path = entry.partition("\t")
        words = kind.split(" ")
        if len(words) == 3 and words[0] == "160000" and _COMMIT.fullmatch(words[2]):
            links[path] = words[2]
    return links


def check_names(submodule: Submodule) -> None:
    """Raises Permanent (`submodule_refused`), where a name or path could lead out of the checkout or into its `.git`,
    or mean something else in a command line."""
    for what, text in (("name", submodule.name), ("path", submodule.path)):
        parts = text.split("/")
        if (
            not text
            or len(text) > _SIGNS_MAX
            or not text.isprintable()
            or text.startswith(("-", ":", "/"))
            or any(sign in text for sign in "*?[\\")
            or any(part in {"", ".", ".."} or part.lower() in {".git", "git~1"} for part in parts)
        ):
            raise Permanent(f"{text[:80]!r} is not a usable {what} of a submodule", code="submodule_refused")


def source_of_submodule(above: Source, submodule: Submodule) -> Source:
    """Where a submodule is to be had. Raises Permanent: `submodule_refused`, `bad_context_url`."""
    if len(submodule.url) > 2048 or "::" in submodule.url:
        raise Permanent(
            f"{submodule.url[:80]!r} is not an address that submodules are brought in from", code="submodule_refused"
        )
    source = source_of(resolve_url(above.clone_url, submodule.url))
    if source.local and not above.local:
        raise Permanent(f"{submodule.url[:80]!r} is a folder of this machine", code="submodule_refused")
    if source.ref is not None or source.ref_path is not None:
        raise Permanent(f"{submodule.url[:80]!r} is a page, not a repository", code="submodule_refused")
    return source


def closes_loop(chain: Chain, below: Step) -> bool:
    """Whether a submodule stands in its own chain already, so that there would be no end."""
    mine = same_repository(below.source.clone_url)
    same = [step for step in chain if same_repository(step.source.clone_url) == mine]
    return len(same) >= _TIMES_IN_A_CHAIN_MAX or any(step.commit == below.commit for step in same)


def update_commands(
    folder: str, submodule: Submodule, source: Source, options: Sequence[str] = ()
) -> tuple[tuple[str, ...], ...]:
    """The commands that bring in one submodule of the checkout in `folder`; what the repository says of how to update
    it does not count."""
    key = f"submodule.{submodule.name}"
    return (
        git_in(folder, "config", f"{key}.url", source.clone_url),
        git_in(folder, "config", f"{key}.active", "true"),
        git_in(
            folder, "submodule", "update", "--progress", "--checkout", "--no-recommend-shallow", "--",
            submodule.path, options=options,
        ),
    )  # fmt: skip


def loop_notice(step: Step) -> Notice:
    return Notice(
        Level.WARNING,
        "submodule_loop",
        f"the submodule {step.place} ({step.source.clone_url}) is a repository that it lies in itself: it was left "
        "out, since there would be no end",
        FILE,
    )


def bound_notice(place: str, *, depth: bool) -> Notice:
    what = f"more than {DEPTH_MAX} levels deep" if depth else f"beyond the {SUBMODULES_MAX} that are brought in"
    return Notice(
        Level.WARNING,
        "too_many_submodules",
        f"the submodule {place} and those after it were left out: {what}; run 'git submodule update --init' for "
        "those you need",
        FILE,
    )


def failure_notice(place: str, failure: Permanent) -> Notice:
    code = "submodule_refused" if failure.code in {"submodule_refused", "bad_context_url"} else "submodule_failed"
    again = "" if code == "submodule_refused" else f"; then run 'git submodule update --init {place}'"
    return Notice(Level.ERROR, code, f"the submodule {place} was not brought in: {failure.message}{again}", FILE)


def unreadable_notice(place: str, failure: Permanent) -> Notice:
    return Notice(
        Level.ERROR, "submodule_failed", f"the submodules of {place} were not brought in: {failure.message}", FILE
    )
