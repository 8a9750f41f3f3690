"""Reading one configuration file in a test, and looking at what was noticed."""

from __future__ import annotations

import textwrap

from fairwater.domain.workspaces.config import read_configuration
from fairwater.domain.workspaces.setup import Wanted

GITPOD = ".gitpod.yml"
DEVCONTAINER = ".devcontainer/devcontainer.json"


def gitpod(text: str, repository: str = "shop") -> Wanted:
    return read_configuration({GITPOD: textwrap.dedent(text).encode()}, repository)


def devcontainer(text: str, repository: str = "shop") -> Wanted:
    return read_configuration({DEVCONTAINER: textwrap.dedent(text).encode()}, repository)


def noticed(wanted: Wanted) -> list[tuple[str, str, int | None, int | None]]:
    """Level, code, line and column of each notice."""
    return [(str(one.level), one.code, one.line, one.column) for one in wanted.notices]


def messages(wanted: Wanted) -> str:
    return "\n".join(str(notice) for notice in wanted.notices)
