"""`fairwater config`: what a configuration file would do, what is in force, and what a repository's own asks for."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fairwater.cli.command import ConfigOption, JsonOption, application, connected, local
from fairwater.cli.output import ExitCode, write_json, write_line, write_table

if TYPE_CHECKING:
    from fairwater.cli.client import Client
    from fairwater.settings import Settings

app = application("Check and show the configuration.")


@app.command()
@local
def check(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The file to check.")], as_json: JsonOption = False
) -> None:
    """Say what FILE would do: each key that differs from its default, or each thing that is wrong with it."""
    from fairwater.settings import load_settings

    _write(load_settings(file, {}), as_json, changed_only=True)
    if not as_json:
        write_line(f"{file} is fine")


@app.command()
@local
def show(config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """Show every key with its value and where it came from: default, file and line, or environment."""
    from fairwater.settings import load_settings

    _write(load_settings(config), as_json)


@app.command()
@connected
def running(client: Client, as_json: JsonOption = False) -> None:
    """Show the configuration that the server is running with (administrators)."""
    answer: Any = client.get("/config")
    entries = answer.get("items", answer) if isinstance(answer, dict) else answer
    if as_json:
        write_json(entries)
    elif isinstance(entries, dict):
        write_table(("key", "value"), list(entries.items()), "nothing is configured")
    else:
        rows = [(entry["key"], entry["value"], entry.get("origin")) for entry in entries]
        write_table(("key", "value", "from"), rows, "nothing is configured")


@app.command()
@local
def explain(
    repository: Annotated[str, typer.Argument(metavar="REPO", help="A folder of this machine, or a git URL.")],
    as_json: JsonOption = False,
) -> None:
    """Say what a workspace of REPO would get, and why, with everything that is not followed: FILE:LINE:COLUMN."""
    from fairwater.cli.config_explain import explain as show_repository

    if not show_repository(repository, as_json=as_json):
        raise typer.Exit(ExitCode.FAILURE)


def _write(settings: Settings, as_json: bool, *, changed_only: bool = False) -> None:
    entries = [entry for entry in settings.explain() if not changed_only or entry.origin != "default"]
    if as_json:
        write_json([
            {"key": entry.key, "value": entry.value, "origin": entry.origin, "about": entry.about} for entry in entries
        ])  # fmt: skip
        return
    columns = ("key", "value", "from", "what it is")
    write_table(columns, [(e.key, e.value, e.origin, e.about) for e in entries], "everything is at its default")
