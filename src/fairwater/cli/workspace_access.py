"""`fairwater workspace exec | events | files`: what people and coding agents do with a running workspace."""

from __future__ import annotations

import json
import sys
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any
from urllib.parse import quote

import typer

from fairwater.cli import completion
from fairwater.cli.command import JsonOption, application, connected
from fairwater.cli.output import say, write_json, write_line, write_table
from fairwater.cli.problem import workspace_path
from fairwater.domain.failure import Permanent, Temporary
from fairwater.domain.units import format_bytes

if TYPE_CHECKING:
    from fairwater.cli.client import Client

WorkspaceArgument = Annotated[
    str, typer.Argument(metavar="ID", help="Id, unique prefix or name.", autocompletion=completion.workspaces)
]


def add_to(app: typer.Typer) -> None:
    """Adds these commands to those of the noun."""
    app.command("exec")(execute)
    app.command()(events)
    app.add_typer(files, name="files")


@connected
def execute(
    client: Client,
    workspace: WorkspaceArgument,
    command: Annotated[list[str], typer.Argument(metavar="-- COMMAND...", help="The command and its arguments.")],
    stdin: Annotated[
        bool, typer.Option("--stdin/--no-stdin", "-i/-n", help="Hand standard input on to the command.")
    ] = True,
    tty: Annotated[
        bool | None,
        typer.Option(
            "--tty/--no-tty", "-t/-T", help="Use a terminal; by default when this is one.", show_default=False
        ),
    ] = None,
    cwd: Annotated[str | None, typer.Option(help="Folder to start in; the repository if not said.")] = None,
    env: Annotated[list[str] | None, typer.Option("--env", "-e", help="NAME=VALUE; may be repeated.")] = None,
    root: Annotated[bool, typer.Option("--root", help="As root inside the workspace.")] = False,
) -> None:
    """Run a command in a workspace: its streams, its exit status. What follows -- is the command."""
    from fairwater.cli import terminal
    from fairwater.cli.workspace import environment

    if tty and not sys.stdin.isatty():
        raise typer.BadParameter("--tty needs a terminal as standard input; leave it out here")
    use_terminal = tty if tty is not None else stdin and sys.stdin.isatty() and sys.stdout.isatty()
    request = {
        "command": command,
        "cwd": cwd,
        "environment": environment(env or []),
        "user": "root" if root else "workspace",
    }
    path = workspace_path(workspace, "exec")
    raise typer.Exit(terminal.run(client.target, path, request, stdin=stdin, use_terminal=use_terminal))


@connected
def events(
    client: Client,
    workspace: Annotated[
        str | None,
        typer.Argument(metavar="[ID]", help="All workspaces if left out.", autocompletion=completion.workspaces),
    ] = None,
    after: Annotated[int, typer.Option(help="Begin after this sequence number; 0 begins with the first kept.")] = 0,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on as they happen.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="JSON; with --follow, an object a line.")] = False,
) -> None:
    """Print what happened to a workspace, or to all."""
    path = workspace_path(workspace, "events") if workspace else "/events"
    seen: list[dict[str, Any]] = []
    for event in _events(client, path, after, follow):
        if as_json and follow:
            write_line(json.dumps(event, ensure_ascii=False))
            sys.stdout.flush()
        elif as_json:
            seen.append(event)
        else:
            write_line(_event_line(event))
            sys.stdout.flush()
    if as_json and not follow:
        write_json(seen)


def _events(client: Client, path: str, after: int, follow: bool) -> Any:
    """Events; without `follow`, those that are there: the stream is left once it falls silent."""
    while True:
        try:
            for event in client.events(path, after=after, silence_s=40.0 if follow else 0.5):
                if event.kind == "workspace":
                    after = int(event.data.get("sequence", after))
                    yield event.data
                elif event.kind == "progress" and follow:
                    yield event.data
        except Temporary as failure:
            if not follow and failure.code == "timeout":
                return
            if not follow or failure.code not in {"timeout", "connection_lost"}:
                raise
        if not follow:
            return


def _event_line(event: dict[str, Any]) -> str:
    progress = event.get("progress") or {}
    if "event" not in event:
        total = progress.get("total")
        far = f"{progress.get('done', 0) * 100 // total} %" if total else str(progress.get("done", ""))
        return f"          {event.get('workspace')}  {progress.get('step')} {far}"
    parts = (_clock(event.get("at")), event.get("workspace"), event.get("phase"), event.get("reason") or "")
    return "  ".join(str(part) for part in parts).rstrip()


def _clock(at: Any) -> str:
    try:
        return datetime.fromisoformat(str(at)).astimezone().strftime("%H:%M:%S")
    except ValueError:
        return str(at)


files = application("Files of a workspace, in and out. A path that does not begin with / is below /workspace.")
RemotePath = Annotated[str, typer.Argument(metavar="PATH", help="Path in the workspace.")]


@files.command("ls")
@connected
def list_files(
    client: Client, workspace: WorkspaceArgument, path: RemotePath = "/workspace", as_json: JsonOption = False
) -> None:
    """List a folder."""
    listing = client.get(_file_path(workspace, path.rstrip("/") or "/"))
    if not isinstance(listing, dict) or "items" not in listing:
        raise Permanent(f"{path} is a file: get it with fairwater ws files get {workspace} {path}", code="not_a_folder")
    if as_json:
        write_json(listing["items"])
        return
    rows = [
        (f"{item['mode'] & 0o7777:04o}", item["kind"], format_bytes(item["size"]), item["name"])
        for item in listing["items"]
    ]
    write_table(("mode", "kind", "size", "name"), rows, f"{path} is empty")


@files.command("get")
@connected
def get_file(
    client: Client,
    workspace: WorkspaceArgument,
    path: RemotePath,
    to: Annotated[str, typer.Argument(metavar="[FILE]", help="Where to; - is standard output.")] = ".",
) -> None:
    """Copy a file out of a workspace."""
    with client.stream(_file_path(workspace, path), silence_s=60.0) as response:
        if response.headers.get("content-type", "").startswith("application/json") and "items" in _peek(response):
            raise Permanent(f"{path} is a folder: name a file in it", code="is_folder")
        chunks = response.iter_bytes() if not response.is_stream_consumed else iter([response.content])
        if to == "-":
            for chunk in chunks:
                sys.stdout.buffer.write(chunk)
            sys.stdout.buffer.flush()
            return
        target = Path(to) / Path(path).name if Path(to).is_dir() else Path(to)
        draft = target.with_name(f".{target.name}.part")
        try:
            with draft.open("wb") as file:
                for chunk in chunks:
                    file.write(chunk)
            draft.replace(target)
        except OSError as error:
            raise Permanent(f"{target}: {error.strerror}", code="cannot_write") from None
        finally:
            draft.unlink(missing_ok=True)


@files.command("put")
@connected
def put_file(
    client: Client,
    workspace: WorkspaceArgument,
    source: Annotated[str, typer.Argument(metavar="FILE", help="File of this machine; - is standard input.")],
    path: RemotePath,
) -> None:
    """Copy a file into a workspace, replacing the one that is there as a whole."""
    if path.endswith("/") and source != "-":
        path += Path(source).name
    if source == "-":
        answer = client.put_file(_file_path(workspace, path), sys.stdin.buffer)
    else:
        try:
            with Path(source).open("rb") as file:
                answer = client.put_file(_file_path(workspace, path), file)
        except OSError as error:
            raise Permanent(f"{source}: {error.strerror}", code="cannot_read") from None
    say(f"{path}: {format_bytes(int((answer or {}).get('size', 0)))}")


def _file_path(workspace: str, path: str) -> str:
    absolute = path if path.startswith("/") else f"/workspace/{path}"
    return workspace_path(workspace, "files", quote(absolute.lstrip("/")))


def _peek(response: Any) -> Any:
    """The JSON of an answer that may be a folder's listing. A JSON *file* comes as octets."""
    response.read()
    try:
        found = response.json()
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}
