"""Removal of what a stranger has put into a folder."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from fairwater.node.tree_removal import remove_tree


def nested(folder: Path, depth: int) -> None:
    """Folders in folders, deeper than a path can tell."""
    at = os.open(folder, os.O_PATH | os.O_DIRECTORY)
    for _ in range(depth):
        os.mkdir("a", dir_fd=at)
        below = os.open("a", os.O_PATH | os.O_DIRECTORY, dir_fd=at)
        os.close(at)
        at = below
    os.close(os.open("file", os.O_CREAT | os.O_WRONLY, dir_fd=at))
    os.close(at)


@pytest.mark.parametrize("depth", [1, 33, 34, 67, 3000])
def test_however_deep_it_is_nothing_is_left(tmp_path: Path, depth: int) -> None:
    folder = tmp_path / "folder"
    for name in ("one", "two"):
        (folder / name).mkdir(parents=True)
        nested(folder / name, depth)
    remove_tree(folder)
    assert list(tmp_path.iterdir()) == []


def test_no_link_is_followed(tmp_path: Path) -> None:
    kept, folder = tmp_path / "kept", tmp_path / "folder"
    for each in (kept, folder):
        each.mkdir()
    (kept / "file").write_text("stays")
    (folder / "link").symlink_to(kept)
    (folder / "dangling").symlink_to("nowhere")
    os.mkfifo(folder / "pipe")
    remove_tree(folder)
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]
    (tmp_path / "itself").symlink_to(kept)
    remove_tree(tmp_path / "itself")
    remove_tree(tmp_path / "missing")
    assert (kept / "file").read_text() == "stays"
