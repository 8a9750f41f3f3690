"""The name of a workspace that nobody has named: its repository's, with a number when that is taken."""

from __future__ import annotations

from collections.abc import Collection

from fairwater.domain.ids import parse_name

_LENGTH_MAX = 63
_SUFFIX_MAX = 6
STEM_LENGTH_MAX = _LENGTH_MAX - _SUFFIX_MAX


def name_stem(repository: str) -> str:
    """The repository's name, as far as it can be a workspace's."""
    return repository.lstrip("._-")[:STEM_LENGTH_MAX] or "workspace"


def free_name(stem: str, taken: Collection[str]) -> str:
    """`stem`, else `stem-2`, `stem-3`, …: the first that is not taken."""
    name, number = stem, 1
    while name in taken:
        number += 1
        name = f"{stem}-{number}"
    return parse_name(name)
