"""Which repositories a person means by `github.com/org/repo`, `org/*` or `*/*`, and which of two patterns says more.

A `*` stands for any part of one segment, once in each; `**`, as the last segment, for one segment or more. The host may
be left out. A repository of this machine (`file://`) is known by its last two folders.
"""

from __future__ import annotations

import re
from urllib.parse import unquote, urlsplit

from fairwater.domain.failure import Permanent
from fairwater.domain.workspaces.context import Context, Scheme

_SEGMENTS_MAX = 16
_SEGMENT = re.compile(r"[A-Za-z0-9._~@+:\[\]-]*\*?[A-Za-z0-9._~@+:\[\]-]*")
_LENGTH_MAX = 255


def parse_pattern(text: str) -> str:
    """`text` as a pattern, in small letters; "" is every repository.

    Raises:
        Permanent: `bad_pattern`.
    """
    pattern = text.strip().removeprefix("https://").removeprefix("ssh://").strip("/").removesuffix(".git").lower()
    if pattern in {"", "**"}:
        return ""
    segments = pattern.split("/")
    bad = next((one for one in segments[:-1] if not _SEGMENT.fullmatch(one) or not one), None)
    if bad is None and segments[-1] != "**" and not (segments[-1] and _SEGMENT.fullmatch(segments[-1])):
        bad = segments[-1]
    if bad is not None or not 2 <= len(segments) <= _SEGMENTS_MAX or len(pattern) > _LENGTH_MAX:
        raise Permanent(
            f"{text[:80]!r} names no repositories: write org/repo, org/*, */* or host/org/repo"
            + (f" ({bad[:40]!r} may hold letters, digits, '.', '_', '-' and one '*')" if bad is not None else ""),
            code="bad_pattern",
        )
    return pattern


def matches(pattern: str, context: Context) -> bool:
    """Whether `pattern`, as `parse_pattern` gives it, means the repository of `context`."""
    if not pattern:
        return True
    wanted = pattern.split("/")
    url = context.clone_url.lower()
    if "://" not in url:  # git@host:org/repo
        host, _, rest = url.partition(":")
        url = f"ssh://{host}/{rest}"
    parts = urlsplit(url)
    path = [segment for segment in unquote(parts.path).removesuffix(".git").split("/") if segment]
    if context.scheme is Scheme.FILE:
        return _match(wanted, path[-2:])
    hosts = {parts.hostname or "", parts.netloc.rpartition("@")[2]}
    return _match(wanted, path) or any(_match(wanted, [host, *path]) for host in hosts)


def specificity(pattern: str) -> tuple[int, int, int]:
    """Greater for a pattern that says more: by whole segments first, then by characters, then fewer open ends."""
    segments = pattern.split("/") if pattern else []
    literal = sum("*" not in segment for segment in segments)
    return literal, sum(len(segment.replace("*", "")) for segment in segments), -pattern.count("**")


def _match(wanted: list[str], found: list[str]) -> bool:
    if wanted[-1] == "**":
        if len(found) < len(wanted):
            return False
        wanted, found = wanted[:-1], found[: len(wanted) - 1]
    return len(wanted) == len(found) and all(_one(*pair) for pair in zip(wanted, found, strict=True))


def _one(wanted: str, found: str) -> bool:
    before, star, after = wanted.partition("*")
    if not star:
        return wanted == found
    return len(found) >= len(before) + len(after) and found.startswith(before) and found.endswith(after)
