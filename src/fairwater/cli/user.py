"""`fairwater user`: accounts, their roles and their tokens."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any
from urllib.parse import quote

import typer

from fairwater.cli import completion
from fairwater.cli.command import JsonOption, application, connected
from fairwater.cli.output import say, write_json, write_line, write_table
from fairwater.cli.problem import NotFound
from fairwater.domain.failure import Permanent
from fairwater.domain.units import parse_seconds

if TYPE_CHECKING:
    from fairwater.cli.client import Client

app = application("Accounts and their tokens.")
UserArgument = Annotated[str, typer.Argument(metavar="USER", help="Name or id.", autocompletion=completion.users)]


@app.command("list")
@connected
def list_users(client: Client, as_json: JsonOption = False) -> None:
    """List accounts."""
    users = client.items("/users")
    if as_json:
        write_json(users)
        return
    rows = [
        (user["name"], user["id"], user["role"], _organisations(user), "blocked" if user.get("blocked") else "-")
        for user in users
    ]
    write_table(("name", "id", "role", "organisation", "state"), rows, "no accounts")


@app.command()
@connected
def create(
    client: Client,
    name: Annotated[str, typer.Argument(help="Name of the account.")],
    role: Annotated[str, typer.Option(help="member, operator or admin.")] = "member",
    organisation: Annotated[str | None, typer.Option(help="Organisation; your own if not said.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Create an account."""
    body = {"name": name, "role": role} | ({"organisation": organisation} if organisation else {})
    user = client.post("/users", body)
    if as_json:
        write_json(user)
        return
    write_line(f"{user['name']}  {user['id']}  {user['role']}")
    say(f"let them in with: fairwater user token {name}, or fairwater user code {name}")


@app.command()
@connected
def block(
    client: Client,
    user: UserArgument,
    undo: Annotated[bool, typer.Option("--undo", help="Let the account in again.")] = False,
) -> None:
    """Block an account: it can do nothing more. Its workspaces and their content stay."""
    found = _find(client, user)
    client.patch(f"/users/{quote(str(found['id']), safe='')}", {"blocked": not undo})
    write_line(f"{found['name']}  {'let in again' if undo else 'blocked'}")


@app.command()
@connected
def token(
    client: Client,
    user: UserArgument,
    name: Annotated[str, typer.Option(help="What the token is for.")] = "cli",
    expires: Annotated[
        str | None, typer.Option(help="How long it is good for, such as 90d; for ever if not said.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Make an API token. It is shown this once."""
    found = _find(client, user)
    body: dict[str, Any] = {"name": name}
    if expires is not None:
        body["expires_in_s"] = parse_seconds(expires)
    made = client.post(f"/users/{quote(str(found['id']), safe='')}/tokens", body)
    if as_json:
        write_json(made)
        return
    write_line(str(made["token"]))
    say("it is shown this once; use it with fairwater login, or as FAIRWATER_TOKEN")


@app.command()
@connected
def code(client: Client, user: UserArgument, as_json: JsonOption = False) -> None:
    """Make a one-time code for `fairwater login`: good for 10 minutes, and once."""
    found = _find(client, user)
    made = client.post("/login/codes", {"user": found["id"]})
    if as_json:
        write_json(made)
        return
    write_line(str(made["code"]))
    url = client.target.url if client.target.socket is None else client.get("/config").get("server.public_url")
    say(f"log in with: fairwater login --server {url} {made['code']}")


@app.command()
@connected
def dotfiles(
    client: Client,
    url: Annotated[str | None, typer.Argument(metavar="[URL]", help="Repository with your dotfiles.")] = None,
    none: Annotated[bool, typer.Option("--none", help="Bring in none.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Show or choose the repository that is brought into the home directory of your new workspaces."""
    if none and url is not None:
        raise typer.BadParameter("give either a URL or --none, not both")
    changed = none or url is not None
    me = client.patch("/users/me", {"dotfiles_url": url}) if changed else client.get("/me")
    if as_json:
        write_json({"dotfiles_url": me.get("dotfiles_url")})
        return
    write_line(str(me.get("dotfiles_url") or "none"))


def _find(client: Client, user: str) -> dict[str, Any]:
    found = [one for one in client.items("/users") if user in {one["name"], one["id"]}]
    if not found:
        raise NotFound(f"there is no account {user!r}; fairwater user list shows those there are", code="no_such_user")
    if len(found) > 1:
        ids = ", ".join(str(one["id"]) for one in found)
        raise Permanent(f"{len(found)} accounts are called {user!r}: name one by its id: {ids}", code="ambiguous")
    return found[0]


def _organisations(user: dict[str, Any]) -> str:
    several = user.get("organisations")
    if several is None:
        return str(user.get("organisation") or "-")
    return ", ".join(str(one["name"] if isinstance(one, dict) else one) for one in several) or "-"
