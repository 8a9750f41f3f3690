"""The node tests' fixtures, for the tests that run inside the machine."""

from __future__ import annotations

from tests.node.workspace.conftest import data_dir, lab, open_lab, repository

__all__ = ["data_dir", "lab", "open_lab", "repository"]
