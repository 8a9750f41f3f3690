"""`fairwater status` and `fairwater version`: what runs, and whether all is well."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

import typer

from fairwater import __version__
from fairwater.cli.command import JsonOption, application, connected
from fairwater.cli.output import ExitCode, write_fields, write_json
from fairwater.domain.failure import Permanent, Temporary

if TYPE_CHECKING:
    from fairwater.cli.client import Client

status_app = application("What runs, and whether all is well.")
version_app = application("The version of the command line and of the server.")


@status_app.command("status")
@connected
def status(client: Client, as_json: JsonOption = False) -> None:
    """What runs, and whether all is well: exit code 0 when it is, 3 when something is awaited."""
    ready = client.readiness()
    state: dict[str, Any] = {
        "server": str(client.target),
        "version": client.get("/version")["version"],
        "ready": bool(ready.pop("ready", False)),
        "reasons": ready,
        "workspaces": dict(Counter(item["phase"] for item in client.items("/workspaces", owner="me"))),
    }
    if as_json:
        write_json(state)
    else:
        phases = ", ".join(f"{count} {phase}" for phase, count in sorted(state["workspaces"].items()))
        write_fields([
            ("server", f"{state['server']}, version {state['version']}"),
            ("ready", "yes" if state["ready"] else "no"),
            *((name, _reason(reason)) for name, reason in ready.items() if name != "status"),
            ("workspaces", phases or "none"),
        ])  # fmt: skip
    if not state["ready"]:
        raise typer.Exit(ExitCode.NOT_NOW)


def _reason(reason: object) -> str:
    if isinstance(reason, dict):
        return ", ".join(f"{name}: {value}" for name, value in reason.items())
    return "ok" if reason is True else str(reason)


@version_app.command("version")
@connected
def version(client: Client, as_json: JsonOption = False) -> None:
    """The version of the command line, and of the server where one answers."""
    versions: dict[str, Any] = {"cli": __version__, "server": None, "api": None}
    try:
        answer = client.get("/version")
        versions["server"], versions["api"] = answer["version"], answer["api"]
    except (Permanent, Temporary, KeyError):
        pass  # no server is an answer too
    if as_json:
        write_json(versions)
        return
    server = f"{versions['server']} (API {versions['api']})" if versions["server"] else "none answers"
    write_fields([("fairwater", versions["cli"]), ("server", server)])
