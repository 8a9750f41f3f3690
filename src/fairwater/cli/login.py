"""`fairwater login`: keeps the address of a server and a token for it."""

from __future__ import annotations

import os
import sys
from typing import Annotated
from urllib.parse import urlsplit

import typer

from fairwater.cli.command import application, local
from fairwater.cli.connection import Login, Target, forget_login, keep_login, kept_login, parse_server
from fairwater.cli.output import ExitCode, say, write_line

app = application("Log in to a server.")
_DEFAULT_SERVER = "http://localhost:7080"


@app.command("login")
@local
def login(
    code: Annotated[str | None, typer.Argument(help="A one-time code from an administrator.")] = None,
    server: Annotated[
        str | None, typer.Option("--server", envvar="FAIRWATER_URL", help="Address of the server.")
    ] = None,
    token: Annotated[
        str | None, typer.Option("--token", envvar="FAIRWATER_TOKEN", help="A token; - reads it from standard input.")
    ] = None,
    forget: Annotated[bool, typer.Option("--forget", help="Remove the kept login.")] = False,
) -> None:
    """Log in, with a one-time code or a token; both are asked for where neither is given."""
    from fairwater.cli.client import Client

    if forget:
        say("the kept login is removed" if forget_login() else "no login was kept")
        return
    if code is not None and token is not None:
        raise typer.BadParameter("give either a code or a token, not both")
    before = kept_login()
    target = parse_server(server or (before.server if before else _DEFAULT_SERVER))
    _warn_if_readable(target)
    if code is not None:
        with Client(target) as client:
            token = str(client.post("/login/exchange", {"code": code})["token"])
    token = token if token not in {None, "-"} else _ask()
    if not token or any(sign.isspace() or not sign.isprintable() for sign in token):
        raise typer.BadParameter("that is no token: it is one word, as `fairwater user token` prints it")
    with Client(Target(target.url, target.socket, token)) as client:
        me = client.get("/me")
    path = keep_login(Login(target.url, token, str(me["name"])))
    write_line(f"logged in to {target} as {me['name']} ({me['role']})")
    say(f"kept in {path}")


def _ask() -> str:
    if sys.stdin.isatty():
        return str(typer.prompt("Token", hide_input=True, err=True)).strip()
    given = sys.stdin.readline(4096).strip()
    if not given:
        say("error: give a one-time code, or a token: fairwater login --server URL CODE")
        raise typer.Exit(ExitCode.WRONG_USE)
    return given


def _warn_if_readable(target: Target) -> None:
    parts = urlsplit(target.url)
    nearby = parts.hostname in {"localhost", "127.0.0.1", "::1"} or target.socket is not None
    if parts.scheme == "http" and not nearby and not os.environ.get("CI"):
        say(f"warning: {target} is not https: whoever is on the way can read the token")
