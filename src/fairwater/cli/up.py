"""`fairwater up`: server, node agent and a first workspace on this machine, under one supervisor."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fairwater.cli.command import ConfigOption, DataDirOption, application, local

app = application("Start Fairwater on this machine: server and node, and a first workspace.")


@app.command("up")
@local
def up(
    git_url: Annotated[
        str | None, typer.Argument(metavar="[GIT_URL]", help="Repository of a first workspace; a local folder is fine.")
    ] = None,
    data_dir: DataDirOption = None,
    listen: Annotated[
        str | None, typer.Option(metavar="HOST:PORT", help="Where to listen.", show_default=False)
    ] = None,
    file_root: Annotated[
        list[Path] | None, typer.Option(help="Folder that file:// URLs may name; may be repeated.", show_default=False)
    ] = None,
    config: ConfigOption = None,
) -> None:
    """Start Fairwater on this machine, and stop everything in order at Ctrl-C; content stays.

    Data is kept in /var/lib/fairwater as root, else in ~/.local/share/fairwater.
    """
    from fairwater.cli.installation import Installation

    raise typer.Exit(Installation.prepared(git_url, data_dir, listen, file_root or [], config).run())
