"""Folders below `/workspace` as configuration files name them.

Decides which may be named at all: none that leads elsewhere, none that is Fairwater's own.
"""

from __future__ import annotations

from fairwater.domain.workspaces.config.findings import show

WORKSPACE = "/workspace"
_LENGTH_MAX = 512
_SEGMENT_MAX = 100


class BadFolder(Exception):
    """Why a folder cannot be had, for the end of a sentence."""


def below_workspace(text: str) -> str:
    """`text` relative to `/workspace`, "" for that folder itself. `text` may be absolute or relative to it.

    Raises:
        BadFolder.
    """
    if len(text) > _LENGTH_MAX or not text.isprintable() or "\\" in text:
        raise BadFolder(f"it holds control characters or backslashes, or has more than {_LENGTH_MAX} characters")
    if text.startswith("/") and text != WORKSPACE and not text.startswith(WORKSPACE + "/"):
        raise BadFolder("it is not below /workspace: write it relative to that")
    segments = [part for part in text.removeprefix(WORKSPACE).split("/") if part not in {"", "."}]
    if not text.startswith("/"):
        segments = [part for part in text.split("/") if part not in {"", "."}]
    for segment in segments:
        if segment == "..":
            raise BadFolder("it leads out of its folder by '..': write it without")
        if segment.startswith(("-", "~")) or len(segment) > _SEGMENT_MAX or segment == ".git":
            raise BadFolder(f"{show(segment)} cannot be a folder's name here")
    if segments and segments[0].startswith(".fairwater"):
        raise BadFolder("folders that begin with .fairwater are Fairwater's own: choose another name")
    return "/".join(segments)
