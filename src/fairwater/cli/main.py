"""The entry point: which commands there are, each loaded when it is used.

`fairwater --help` must stay quick, so nothing but Typer is imported here: a noun's module is imported when the noun is
named, and what is heavy (HTTP, Rich, the settings) inside the commands that need it.
"""

from __future__ import annotations

import sys
from importlib import import_module
from typing import Any

import typer
from typer.core import TyperGroup

NOUNS: dict[str, tuple[str, str]] = {
    "up": ("up:app", "Start Fairwater on this machine: server and node, and a first workspace."),
    "workspace": ("workspace:app", "Create, start, stop, enter and delete workspaces."),
    "ws": ("workspace:app", "The same as workspace."),
    "status": ("status:status_app", "What runs, and whether all is well."),
    "doctor": ("doctor:app", "What this machine offers: isolation, limits, devices."),
    "login": ("login:app", "Log in to a server."),
    "user": ("user:app", "Accounts and their tokens."),
    "credential": ("credential:app", "Credentials for private repositories and registries."),
    "variable": ("variable:app", "Environment variables of workspaces."),
    "admin": ("administration:app", "Save the server's database, and put it back."),
    "config": ("config:app", "Check and show the configuration."),
    "node": ("node:app", "Run the node agent, or ask about it."),
    "server": ("server:app", "Run the server alone."),
    "version": ("status:version_app", "The version of the command line and of the server."),
}
"""Name → where its Typer application is (`MODULE:NAME` below this package), and its line in the help."""


class Nouns(TyperGroup):
    """The commands by name, imported on first use."""

    def list_commands(self, ctx: Any) -> list[str]:
        return list(NOUNS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        if cmd_name not in NOUNS:
            return None
        if cmd_name not in self.commands:
            module, _, attribute = NOUNS[cmd_name][0].partition(":")
            noun = getattr(import_module(f"fairwater.cli.{module}"), attribute)
            self.commands[cmd_name] = typer.main.get_command(noun)
        return self.commands[cmd_name]

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, line) for name, (_, line) in NOUNS.items()])

    def shell_complete(self, ctx: Any, incomplete: str) -> Any:
        from typer._click.shell_completion import CompletionItem

        return [CompletionItem(name, help=NOUNS[name][1]) for name in NOUNS if name.startswith(incomplete)]

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        if args and args[0] not in NOUNS:
            from difflib import get_close_matches

            near = get_close_matches(args[0], NOUNS, n=1)
            if near and not args[0].startswith("-"):
                ctx.fail(f"There is no command {args[0]!r}. Did you mean {near[0]!r}?")
        return super().resolve_command(ctx, args)


app = typer.Typer(
    cls=Nouns,
    name="fairwater",
    rich_markup_mode=None,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(value: bool) -> None:
    if value:
        from fairwater import __version__

        typer.echo(f"fairwater {__version__}")
        raise typer.Exit


@app.callback()
def fairwater(
    version: bool = typer.Option(False, "--version", callback=_print_version, is_eager=True, help="Print the version."),
) -> None:
    """Developer workspaces that feel like your own machine.

    Exit codes: 0 done, 1 failed, 2 wrong use, 3 not now, and what it waits for.
    """


def run() -> None:
    """Runs the command line of this process."""
    try:
        app(prog_name="fairwater")
    except BrokenPipeError:
        sys.stderr.close()  # whoever read our output has gone; Python must not complain when it flushes
        sys.exit(141)


if __name__ == "__main__":
    run()
