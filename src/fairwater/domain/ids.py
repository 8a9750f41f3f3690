"""Identifiers, and the rules a name must keep.

A workspace's id is a DNS label, because workspaces are reached at `{id}.ws.…` and `{port}-{id}.ws.…`; it begins
with a letter, so that the second form can be told from the first.
"""

from __future__ import annotations

import re
from typing import NewType

from fairwater.domain.failure import Permanent

WorkspaceId = NewType("WorkspaceId", str)
UserId = NewType("UserId", str)
OrganisationId = NewType("OrganisationId", str)
RunNumber = NewType("RunNumber", int)
"""Counts the runs of one workspace from 1. The node agent refuses commands of a number older than it has seen."""

ID_ALPHABET = "abcdefghijkmnpqrstuvwxyz23456789"
"""32 signs, none that looks like another (no l, o, 0, 1): 5 bits each."""
ID_LENGTH = 12
_ID = re.compile(r"[a-z][a-z0-9]{11}")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")


def workspace_id(random: bytes) -> WorkspaceId:
    """A workspace's id from 12 random bytes: a letter, then 11 signs (about 59 bits)."""
    if len(random) != ID_LENGTH:
        raise ValueError(f"an id takes {ID_LENGTH} random bytes, got {len(random)}")
    letters = ID_ALPHABET[:24]
    first = letters[random[0] % len(letters)]
    return WorkspaceId(first + "".join(ID_ALPHABET[byte % 32] for byte in random[1:]))


def parse_workspace_id(text: str) -> WorkspaceId:
    """`text` as a workspace's id.

    Raises:
        Permanent: `bad_id`, when it is none.
    """
    if not _ID.fullmatch(text):
        raise Permanent(f"{text[:80]!r} is not a workspace id: 12 small letters and digits", code="bad_id")
    return WorkspaceId(text)


def parse_name(text: str) -> str:
    """`text` as a person's name for a workspace: letters, digits, `.`, `_`, `-`, at most 63 signs.

    Raises:
        Permanent: `bad_name`, when it is none.
    """
    if not _NAME.fullmatch(text):
        raise Permanent(
            f"{text[:80]!r} cannot be a name: use 1 to 63 letters, digits, '.', '_' or '-', beginning with a letter "
            "or digit",
            code="bad_name",
        )
    return text
