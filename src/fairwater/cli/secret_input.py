"""A secret from a person or a pipe: never from an argument, where every process of the machine could read it."""

from __future__ import annotations

import sys

import typer

from fairwater.cli.output import ExitCode, say

_BYTES_MAX = 64 * 1024


def read_secret(what: str) -> str:
    """Asked for without showing it where there is a terminal, else all of standard input less its last line end."""
    if sys.stdin.isatty():
        given = str(typer.prompt(what, hide_input=True, err=True))
    else:
        try:
            given = sys.stdin.buffer.read(_BYTES_MAX + 1).decode().removesuffix("\n").removesuffix("\r")
        except UnicodeDecodeError:
            say(f"error: {what[:1].lower() + what[1:]}: this is not text in UTF-8")
            raise typer.Exit(ExitCode.WRONG_USE) from None
    if not given or len(given) > _BYTES_MAX:
        say(
            f"error: {what[:1].lower() + what[1:]}: "
            + ("nothing was given on standard input" if not given else "more than 64 KiB")
        )
        raise typer.Exit(ExitCode.WRONG_USE)
    return given
