"""What every command shares: how it finds its server, and how a failure becomes an exit code.

`connected` gives a command the flags --server, --token and --data-dir and hands it the client they lead to; `guarded`
is the one place where failures are turned into words on standard error and a status.
"""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

import typer

from fairwater.cli.output import ExitCode, say
from fairwater.domain.failure import Permanent, Temporary

if TYPE_CHECKING:
    from fairwater.cli.client import Client

DataDirOption = Annotated[
    Path | None,
    typer.Option("--data-dir", envvar="FAIRWATER_DATA_DIR", help="Where Fairwater keeps its data.", show_default=False),
]
ConfigOption = Annotated[
    Path | None,
    typer.Option("--config", envvar="FAIRWATER_CONFIG", help="The file fairwater.toml to use.", show_default=False),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON, and nothing else.")]
YesOption = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]
_SERVER = typer.Option("--server", help="Address of the server (FAIRWATER_URL).", show_default=False)
_TOKEN = typer.Option("--token", help="API token; FAIRWATER_TOKEN keeps it out of process lists.", show_default=False)
_DATA_DIR = typer.Option("--data-dir", help="Data directory whose local server to use.", show_default=False)


def application(help_text: str) -> typer.Typer:
    """A noun's commands."""
    return typer.Typer(help=help_text, no_args_is_help=True, rich_markup_mode=None, add_completion=False)


@contextmanager
def guarded() -> Iterator[None]:
    """Turns failures into plain words and exit codes."""
    try:
        yield
    except Permanent as failure:
        say(f"error: {failure.message}")
        raise typer.Exit(ExitCode.FAILURE) from None
    except Temporary as failure:
        say(f"not now: {failure.message}")
        raise typer.Exit(ExitCode.NOT_NOW) from None


def local(command: Callable[..., None]) -> Callable[..., None]:
    """A command that needs no server."""

    @functools.wraps(command)
    def wrapper(**given: Any) -> None:
        with guarded():
            command(**given)

    return wrapper


def connected(command: Callable[..., None]) -> Callable[..., None]:
    """A command whose first parameter is a `Client`, found by the flags this adds."""
    hints = get_type_hints(command, {**command.__globals__, "Client": object}, include_extras=True)
    own = [
        parameter.replace(annotation=hints[parameter.name], kind=inspect.Parameter.KEYWORD_ONLY)
        for parameter in list(inspect.signature(command).parameters.values())[1:]
    ]
    added = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[kind, option])
        for name, kind, option in (
            ("server", str | None, _SERVER),
            ("token", str | None, _TOKEN),
            ("data_dir", Path | None, _DATA_DIR),
        )
    ]

    @functools.wraps(command)
    def wrapper(
        *, server: str | None = None, token: str | None = None, data_dir: Path | None = None, **given: Any
    ) -> None:
        with guarded(), open_client(server, token, data_dir) as client:
            command(client, **given)

    wrapper.__signature__ = inspect.Signature([*own, *added])  # type: ignore[attr-defined]
    wrapper.__annotations__ = {parameter.name: parameter.annotation for parameter in [*own, *added]}
    del wrapper.__wrapped__
    return wrapper


def open_client(server: str | None = None, token: str | None = None, data_dir: Path | None = None) -> Client:
    from fairwater.cli.client import Client
    from fairwater.cli.connection import find_target

    return Client(find_target(server, token, data_dir))


def confirm(question: str, yes: bool) -> None:
    """Asks before something is destroyed. Where nobody can be asked, --yes is needed."""
    if yes:
        return
    if not sys.stdin.isatty():
        say(f"error: {question} Nobody can be asked here: say --yes.")
        raise typer.Exit(ExitCode.WRONG_USE)
    if not typer.confirm(question, err=True):
        say("nothing was done")
        raise typer.Exit(ExitCode.FAILURE)
