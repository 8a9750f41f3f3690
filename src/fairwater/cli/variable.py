"""`fairwater variable`: environment variables for workspaces, one's own or those of an organisation."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Annotated, Any
from urllib.parse import quote

import typer

from fairwater.cli import completion
from fairwater.cli.command import JsonOption, application, connected
from fairwater.cli.output import age, write_json, write_line, write_table
from fairwater.cli.problem import NotFound
from fairwater.cli.secret_input import read_secret
from fairwater.domain.failure import Permanent

if TYPE_CHECKING:
    from fairwater.cli.client import Client

app = application("Environment variables of your workspaces. They are in force from the next start of each on.")
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,127}")
ProjectOption = Annotated[
    str | None,
    typer.Option("--project", metavar="ORG", help="Those of an organisation (administrators).", show_default=False),
]
RepositoryOption = Annotated[
    str,
    typer.Option(
        "--repository", metavar="PATTERN", help="Only for these: org/repo, org/*, host/org/repo.", show_default=False
    ),
]


@app.command("set")
@connected
def set_variable(
    client: Client,
    assignment: Annotated[
        str, typer.Argument(metavar="NAME[=VALUE]", help="Without a value, it is asked for, or read from a pipe.")
    ],
    secret: Annotated[bool, typer.Option("--secret", help="Never show the value again.")] = False,
    repository: RepositoryOption = "",
    project: ProjectOption = None,
    as_json: JsonOption = False,
) -> None:
    """Set a variable, in place of the one of that name for the same repositories."""
    name, sign, value = assignment.partition("=")
    if not _NAME.fullmatch(name):
        raise typer.BadParameter(
            f"{name[:40]!r} is no name of a variable: write NAME or NAME=VALUE, the name in letters, digits and _, not "
            "beginning with a digit"
        )
    if secret and sign:
        raise typer.BadParameter(
            f"a secret must not stand in the command line, where others can read it: give {name} alone, and the value "
            "when asked or by standard input"
        )
    if not sign:
        value = read_secret(f"Value of {name}")
    body = {"name": name, "value": value, "repository": repository, "secret": secret}
    stored = client.put(_path(project), body)
    if as_json:
        write_json(stored)
        return
    write_line(f"{stored['name']}  {_where(stored)}")


@app.command("list")
@connected
def list_variables(client: Client, project: ProjectOption = None, as_json: JsonOption = False) -> None:
    """List variables; values that are secret are not shown."""
    items = client.get(_path(project))["items"]
    if as_json:
        write_json(items)
        return
    rows = [
        (item["name"], "(secret)" if item["secret"] else item["value"], _where(item), age(item["created_at"]))
        for item in items
    ]
    write_table(("name", "value", "repositories", "age"), rows, "no variables; set one with: fairwater variable set")


@app.command()
@connected
def remove(
    client: Client,
    name: Annotated[str, typer.Argument(metavar="NAME|ID", autocompletion=completion.variables, help="Which one.")],
    repository: Annotated[
        str | None, typer.Option("--repository", metavar="PATTERN", help="The one for these.", show_default=False)
    ] = None,
    project: ProjectOption = None,
) -> None:
    """Remove a variable. Workspaces that run keep it until they stop."""
    found = [
        one
        for one in client.get(_path(project))["items"]
        if name in {one["id"], one["name"]} and (repository is None or repository.lower() == one["repository"])
    ]
    if not found:
        raise NotFound(
            f"there is no variable {name!r}; fairwater variable list shows those there are", code="no_such_variable"
        )
    if len(found) > 1:
        several = ", ".join(_where(one) for one in found)
        raise Permanent(f"there are several of that name: say which with --repository: {several}", code="ambiguous")
    client.delete(f"{_path(project)}/{found[0]['id']}")
    write_line(f"{found[0]['name']}  {_where(found[0])}  removed")


def _path(project: str | None) -> str:
    return "/users/me/variables" if project is None else f"/organisations/{quote(project, safe='')}/variables"


def _where(variable: dict[str, Any]) -> str:
    return str(variable["repository"] or "every repository")
