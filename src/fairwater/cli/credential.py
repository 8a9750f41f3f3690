"""`fairwater credential`: what opens private repositories and registries in one's workspaces."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fairwater.cli import completion
from fairwater.cli.command import JsonOption, application, connected
from fairwater.cli.output import age, say, write_json, write_line, write_table
from fairwater.cli.problem import NotFound
from fairwater.cli.secret_input import read_secret
from fairwater.domain.failure import Permanent

if TYPE_CHECKING:
    from fairwater.cli.client import Client

app = application("Credentials for private repositories and image registries, used in your workspaces.")
_PATH = "/users/me/credentials"


@app.command()
@connected
def add(
    client: Client,
    host: Annotated[str, typer.Argument(metavar="HOST", help="Such as github.com or registry.example.org:5000.")],
    username: Annotated[
        str, typer.Option("--username", "-u", help="User name that goes with the token.", show_default=False)
    ] = "",
    ssh_key: Annotated[
        Path | None,
        typer.Option("--ssh-key", metavar="FILE", help="A private key without a passphrase; - reads it from a pipe."),
    ] = None,
    plain_http: Annotated[bool, typer.Option("--plain-http", help="The token may be sent without TLS.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Add a token (asked for, or from standard input), or an SSH key; it takes the place of the one before.

    It is sealed on the server and cannot be read again.
    """
    from fairwater.domain.workspaces.credential_host import parse_credential_host
    from fairwater.domain.workspaces.secrets import CredentialKind

    kind = CredentialKind.TOKEN if ssh_key is None else CredentialKind.SSH_KEY
    host = parse_credential_host(host, kind, plain_http=plain_http)  # before anybody types a secret for it
    body: dict[str, Any] = {"host": host, "username": username}
    if ssh_key is not None:
        if plain_http:
            raise typer.BadParameter("--plain-http is for tokens: an SSH key is never sent")
        body |= {"kind": "ssh-key", "secret": _read_key(ssh_key)}
    else:
        body |= {"kind": "token", "secret": read_secret(f"Token for {host}"), "plain_http": plain_http}
    if plain_http:
        say(f"warning: whoever is on the way to {host} can read the token")
    added = client.post(_PATH, body)
    if as_json:
        write_json(added)
        return
    write_line(f"{added['host']}  {added['kind']}  {added['fingerprint'] or added['username'] or '-'}")


@app.command("list")
@connected
def list_credentials(client: Client, as_json: JsonOption = False) -> None:
    """List credentials; what is secret of them is never shown."""
    items = client.get(_PATH)["items"]
    if as_json:
        write_json(items)
        return
    rows = [
        (
            item["host"],
            item["kind"],
            item["username"] or "-",
            item["fingerprint"] or "-",
            "yes" if item["plain_http"] else "-",
            age(item["created_at"]),
            item["id"],
        )
        for item in items
    ]
    columns = ("host", "kind", "user name", "fingerprint", "without tls", "age", "id")
    write_table(columns, rows, "no credentials; add one with: fairwater credential add HOST")


@app.command()
@connected
def remove(
    client: Client,
    credential: Annotated[
        str, typer.Argument(metavar="HOST|ID", help="Which one.", autocompletion=completion.credentials)
    ],
) -> None:
    """Remove a credential. Workspaces that run keep it until they stop."""
    items = client.get(_PATH)["items"]
    found = [one for one in items if credential == one["id"] or credential.lower() == one["host"]]
    if not found:
        raise NotFound(
            f"there is no credential for {credential!r}; fairwater credential list shows those there are",
            code="no_such_credential",
        )
    if len(found) > 1:
        ids = ", ".join(f"{one['id']} ({one['kind']})" for one in found)
        raise Permanent(f"there are several for {credential}: name one by its id: {ids}", code="ambiguous")
    client.delete(f"{_PATH}/{found[0]['id']}")
    write_line(f"{found[0]['host']}  {found[0]['kind']}  removed")


def _read_key(path: Path) -> str:
    """The key, checked here already: it is not sent anywhere when it cannot be used."""
    from fairwater.domain.workspaces.ssh_key import KEY_BYTES_MAX, parse_ssh_key

    try:
        if str(path) == "-":
            content = sys.stdin.buffer.read(KEY_BYTES_MAX + 1)
        else:
            with path.expanduser().open("rb") as file:
                content = file.read(KEY_BYTES_MAX + 1)
    except OSError as error:
        raise Permanent(f"{path}: {error.strerror}", code="cannot_read") from None
    try:
        return parse_ssh_key(content.decode("ascii", "replace"))[0]
    except Permanent as failure:
        raise Permanent(f"{path}: {failure.message}", code=failure.code) from None
