"""`fairwater workspace tasks` and `logs`: what a workspace's processes do, and what they have printed."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fairwater.cli import completion
from fairwater.cli.command import JsonOption, connected
from fairwater.cli.output import ExitCode, age, say, write_json, write_table
from fairwater.cli.problem import NotFound, workspace_path
from fairwater.cli.wait import RUNNING, display, wait_for
from fairwater.domain.failure import Permanent, Temporary
from fairwater.domain.units import parse_seconds

if TYPE_CHECKING:
    from fairwater.cli.client import Client

WorkspaceArgument = Annotated[
    str, typer.Argument(metavar="ID", help="Id, unique prefix or name.", autocompletion=completion.workspaces)
]
_BEFORE = frozenset({"waiting", "initializing"})
_BADLY = frozenset({"failed", "stopped"})
_PAUSE_S = (0.1, 2.0)


def add_to(app: typer.Typer) -> None:
    """Adds these commands to those of the noun."""
    app.command()(tasks)
    app.command()(logs)


@connected
def tasks(
    client: Client,
    workspace: WorkspaceArgument,
    wait: Annotated[
        bool, typer.Option("--wait", "-w", help="Wait until each has gone through what it does but once.")
    ] = False,
    timeout: Annotated[str, typer.Option(help="How long to wait at most; then the exit code is 3.")] = "15min",
    as_json: JsonOption = False,
) -> None:
    """Show the tasks of a workspace: what its configuration has run in terminals. Exit code 1 where one failed."""
    item = client.get(workspace_path(workspace))
    path = workspace_path(str(item["id"]), "tasks")
    name = str(item["name"] or item["id"])
    if wait:
        ends = time.monotonic() + parse_seconds(timeout)
        if item["phase"] != "running":
            with display() as shown:
                wait_for(client, item, RUNNING, parse_seconds(timeout), shown)
        found = _initialized(client, path, name, ends)
    else:
        found = client.get(path)["items"]
    if as_json:
        write_json(found)
    else:
        rows = [
            (
                task["number"],
                task["name"] or "-",
                task["state"],
                "-" if task["exit_status"] is None else task["exit_status"],
                age(task["started_at"]),
            )
            for task in found
        ]
        write_table(("number", "name", "state", "exit status", "started"), rows, f"{name} has no tasks")
    bad = [task for task in found if wait and task["state"] in _BADLY]
    for task in bad:
        say(f"error: {title(task)} {task['state']}: fairwater ws logs {name} --task {task['number']} shows its output")
    if bad:
        raise typer.Exit(ExitCode.FAILURE)


@connected
def logs(
    client: Client,
    workspace: WorkspaceArgument,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until the run, or the task, ends.")] = False,
    task: Annotated[
        str | None, typer.Option("--task", metavar="NAME|NUMBER", help="The output of a task.", show_default=False)
    ] = None,
) -> None:
    """Print what bringing in the content and the first process have printed, or a task."""
    path = workspace_path(workspace, "logs")
    if task is not None:
        path = workspace_path(workspace, "tasks", str(_number(client, workspace, task)), "log")
    with client.stream(path, follow=str(follow).lower()) as response:
        for chunk in response.iter_raw() if "content-encoding" not in response.headers else response.iter_bytes():
            sys.stdout.buffer.write(chunk)
            sys.stdout.buffer.flush()


def title(task: dict[str, Any]) -> str:
    """How a person knows a task."""
    return f"task {task['name']}" if task.get("name") else f"task {task['number']}"


def _number(client: Client, workspace: str, task: str) -> int:
    found = client.get(workspace_path(workspace, "tasks"))["items"]
    named = [one for one in found if one["name"] == task]
    if len(named) == 1:
        return int(named[0]["number"])
    if len(named) > 1:
        numbers = ", ".join(str(one["number"]) for one in named)
        raise Permanent(f"{len(named)} tasks are called {task!r}: name one by its number: {numbers}", code="ambiguous")
    if any(str(one["number"]) == task for one in found):
        return int(task)
    known = ", ".join(f"{one['number']} {one['name']}".strip() for one in found) or "none"
    raise NotFound(f"there is no task {task!r}; there are: {known}", code="no_such_task")


def _initialized(client: Client, path: str, name: str, ends: float) -> list[dict[str, Any]]:
    """The tasks once none is before its end of what runs once, or one has failed.

    Raises:
        Temporary: `still_waiting`, when the time is over.
    """
    said: dict[int, str] = {}
    pause_s, why = _PAUSE_S[0], ""
    while True:
        try:
            found: list[dict[str, Any]] = client.get(path)["items"]
            for task in found:
                if said.get(task["number"]) != task["state"]:
                    said[task["number"]] = task["state"]
                    say(f"{name}: {title(task)}: {task['state']}")
                    pause_s = _PAUSE_S[0]
            waiting = [task for task in found if task["state"] in _BEFORE]
            if not waiting or any(task["state"] in _BADLY for task in found):
                return found
            why = ", ".join(f"{title(task)} is {task['state']}" for task in waiting)
        except Temporary as failure:
            why = failure.message
        left_s = ends - time.monotonic()
        if left_s <= 0:
            raise Temporary(
                f"{why}. It goes on: fairwater ws logs {name} --task NAME --follow shows what it does",
                code="still_waiting",
            )
        time.sleep(min(pause_s, left_s))
        pause_s = min(pause_s * 1.5, _PAUSE_S[1])
