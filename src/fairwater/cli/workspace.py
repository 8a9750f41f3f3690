"""`fairwater workspace`: from a git URL to a running workspace, and its end."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fairwater.cli import completion, workspace_access, workspace_tasks
from fairwater.cli.command import JsonOption, YesOption, application, confirm, connected
from fairwater.cli.output import age, say, write_fields, write_json, write_line, write_table
from fairwater.cli.problem import workspace_path
from fairwater.cli.setup_view import image_line, notices, setup_fields
from fairwater.cli.wait import DELETED, RUNNING, STOPPED, Goal, display, wait_for
from fairwater.domain.units import parse_seconds

if TYPE_CHECKING:
    from fairwater.cli.client import Client

app = application("Create, start, stop, enter and delete workspaces. ID is an id, a unique beginning of it, or a name.")
workspace_access.add_to(app)
workspace_tasks.add_to(app)

WorkspaceArgument = Annotated[
    str, typer.Argument(metavar="ID", help="Id, unique prefix or name.", autocompletion=completion.workspaces)
]
WaitOption = Annotated[bool, typer.Option("--wait", "-w", help="Wait until it is there, and show how far it is.")]
TimeoutOption = Annotated[str, typer.Option("--timeout", help="How long to wait at most; then the exit code is 3.")]


@app.command()
@connected
def create(
    client: Client,
    git_url: Annotated[str, typer.Argument(metavar="GIT_URL", help="Repository, a page of it, or a local folder.")],
    workspace_class: Annotated[str, typer.Option("--class", help="standard or xl.")] = "standard",
    image: Annotated[
        str | None,
        typer.Option(
            metavar="IMAGE",
            help="Such as debian:12, or host: the machine's own /usr. By default, what the repository asks for.",
            show_default=False,
        ),
    ] = None,
    name: Annotated[str | None, typer.Option(help="A name of your choice.", show_default=False)] = None,
    env: Annotated[list[str] | None, typer.Option("--env", "-e", help="NAME=VALUE; may be repeated.")] = None,
    command: Annotated[
        str | None, typer.Option(help="First command of the workspace, as in a shell.", show_default=False)
    ] = None,
    start: Annotated[bool, typer.Option("--start/--no-start", help="Start it at once.")] = True,
    wait: WaitOption = False,
    timeout: TimeoutOption = "15min",
    as_json: JsonOption = False,
) -> None:
    """Create a workspace from a git URL, and start it."""
    body: dict[str, Any] = {
        "context_url": context_url(git_url),
        "class": workspace_class,
        "environment": environment(env or []),
    }
    if image is not None:
        body["image"] = image
    if name is not None:
        body["name"] = name
    if command is not None:
        body["command"] = words(command)
    if not start:
        body["start"] = False
    created = client.post("/workspaces", body)
    _finish(client, created, "created", RUNNING if wait and start else None, timeout, as_json)


@app.command("list")
@connected
def list_workspaces(
    client: Client,
    everyone: Annotated[bool, typer.Option("--all", "-a", help="Those of everyone (operators).")] = False,
    phase: Annotated[str | None, typer.Option(help="Only those in this phase.", show_default=False)] = None,
    as_json: JsonOption = False,
) -> None:
    """List workspaces."""
    items = client.items("/workspaces", owner="all" if everyone else "me", phase=phase)
    if as_json:
        write_json(items)
        return
    columns = ["name", "id", "phase", "since", "class", "repository"] + (["owner"] if everyone else [])
    rows = [
        [item["name"], item["id"], item["phase"], age(item["since"]), item["class"], item["context_url"]]
        + ([item["owner"]] if everyone else [])
        for item in items
    ]
    write_table(columns, rows, "no workspaces; create one with: fairwater ws create GIT_URL")


@app.command()
@connected
def show(client: Client, workspace: WorkspaceArgument, as_json: JsonOption = False) -> None:
    """Show one workspace."""
    item = find(client, workspace)
    if as_json:
        write_json(item)
        return
    deadline, progress = item.get("deadline") or {}, item.get("progress") or {}
    total = progress.get("total")
    how_far = f" {progress.get('done', 0) * 100 // total} %" if total else ""
    write_fields([
        ("name", item["name"]),
        ("id", item["id"]),
        ("phase", f"{item['phase']} ({item['reason']}), {age(item['since'])}"),
        ("progress", f"{progress['step']}{how_far}" if progress.get("step") else None),
        ("failure", item.get("failure")),
        ("deadline", f"{deadline['kind']}: {deadline['at']}" if deadline else None),
        ("address", item["url"]),
        ("repository", item["context_url"]),
        ("class", item["class"]),
        ("image", image_line(item)),
        *setup_fields(item),
        ("command", shlex.join(item["command"]) if item.get("command") else None),
        ("cluster", item["cluster"]),
        ("owner", item["owner"]),
        ("created", item["created_at"]),
    ])  # fmt: skip
    for line, style in notices(item):
        write_line(line, style)


@app.command()
@connected
def start(
    client: Client,
    workspace: WorkspaceArgument,
    wait: WaitOption = False,
    timeout: TimeoutOption = "15min",
    as_json: JsonOption = False,
) -> None:
    """Start a stopped workspace; everything is as it was."""
    started = _act(client, workspace, "start")
    _finish(client, started, "starting", RUNNING if wait else None, timeout, as_json)


@app.command()
@connected
def stop(
    client: Client,
    workspace: WorkspaceArgument,
    force: Annotated[bool, typer.Option("--force", help="Kill at once, without the grace.")] = False,
    wait: WaitOption = False,
    timeout: TimeoutOption = "5min",
    as_json: JsonOption = False,
) -> None:
    """Stop a workspace; its content stays."""
    stopped = _act(client, workspace, "stop", {"force": force})
    _finish(client, stopped, "stopping", STOPPED if wait else None, timeout, as_json)


@app.command()
@connected
def delete(
    client: Client,
    workspace: WorkspaceArgument,
    yes: YesOption = False,
    wait: WaitOption = False,
    timeout: TimeoutOption = "5min",
    as_json: JsonOption = False,
) -> None:
    """Delete a workspace and its content, for good."""
    item = find(client, workspace)
    confirm(f"Delete workspace {item['name'] or item['id']} with all its content?", yes)
    gone = client.delete(workspace_path(item["id"])) or {**item, "phase": "deleted"}
    _finish(client, gone, "deleting", DELETED if wait else None, timeout, as_json)


@app.command("open")
@connected
def open_workspace(client: Client, workspace: WorkspaceArgument) -> None:
    """Print the address of a workspace, and open it where there is a browser."""
    import os
    import webbrowser

    url = str(find(client, workspace)["url"])
    write_line(url)
    if sys.stdout.isatty() and (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
        webbrowser.open(url)


def find(client: Client, workspace: str) -> dict[str, Any]:
    found: dict[str, Any] = client.get(workspace_path(workspace))
    return found


def _act(client: Client, workspace: str, what: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
    answer = client.post(workspace_path(workspace, what), body)
    return answer if isinstance(answer, dict) and "phase" in answer else find(client, workspace)


def _finish(client: Client, item: dict[str, Any], done: str, goal: Goal | None, timeout: str, as_json: bool) -> None:
    """Waits where it is asked for, and says where the workspace stands."""
    if goal is not None:
        with display() as shown:
            item = wait_for(client, item, goal, parse_seconds(timeout), shown)
    if as_json:
        write_json(item)
        return
    name = item["name"] or item["id"]
    write_line(f"{name}  {item['id']}  {item['phase'] if goal else done}")
    if item["phase"] == "running":
        _tell_setup(item)
        say(f"address: {item['url']}\nenter it: fairwater ws exec {name} -- bash -l")


def _tell_setup(item: dict[str, Any]) -> None:
    """What a workspace that runs was set up with, and what became of its tasks so far."""
    if not item.get("setup"):
        return
    say(f"image: {image_line(item)}")
    for line, style in notices(item):
        say(line, style)
    tasks = item["setup"].get("tasks") or ()
    if tasks:
        names = ", ".join(task["name"] or f"#{task['number']}" for task in tasks)
        say(f"tasks started: {names}; fairwater ws tasks {item['name'] or item['id']} --wait waits for them")


def context_url(text: str) -> str:
    """The git URL a person means: a folder of this machine becomes a file:// URL."""
    if "://" in text or not Path(text).is_dir():
        return text
    return Path(text).resolve().as_uri()


def environment(assignments: list[str]) -> dict[str, str]:
    pairs = [assignment.partition("=") for assignment in assignments]
    for (name, sign, _), assignment in zip(pairs, assignments, strict=True):
        if not sign or not name:
            raise typer.BadParameter(f"--env {assignment!r}: write NAME=VALUE")
    return {name: value for name, _, value in pairs}


def words(command: str) -> list[str]:
    try:
        return shlex.split(command)
    except ValueError as error:
        raise typer.BadParameter(f"--command {command!r}: {error}") from None
