"""`fairwater node`: the node agent, and what is known of the node."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fairwater.cli.command import ConfigOption, DataDirOption, JsonOption, application, connected, local
from fairwater.cli.output import write_fields, write_json, write_table
from fairwater.cli.parts import SupervisedOption, prepare

if TYPE_CHECKING:
    from fairwater.cli.client import Client

app = application("Run the node agent, or ask about it.")


@app.command()
@local
def run(data_dir: DataDirOption = None, config: ConfigOption = None, supervised: SupervisedOption = None) -> None:
    """Run the node agent until SIGTERM; workspaces go on without it. `fairwater up` runs it beside the server."""
    from fairwater.bootstrap.node import run_node

    run_node(*prepare(data_dir, config, supervised))


@app.command()
@connected
def show(client: Client, as_json: JsonOption = False) -> None:
    """Show the node that the server uses."""
    node = _node(client)
    if as_json:
        write_json({name: value for name, value in node.items() if name != "facts"})
        return
    write_fields([(name, value) for name, value in node.items() if name != "facts"])


@app.command()
@connected
def facts(client: Client, as_json: JsonOption = False) -> None:
    """Show what the node offers, as `fairwater doctor` does for this machine."""
    found = _node(client).get("facts") or []
    if as_json:
        write_json(found)
        return
    write_table(
        ("what", "level", "value", "what it costs"),
        [(fact["name"], fact["level"], fact["value"], fact.get("cost") or "-") for fact in found],
        "the node reports no facts",
    )


def _node(client: Client) -> dict[str, Any]:
    answer: dict[str, Any] = client.get("/node")
    hello = answer.pop("hello", {})
    return {**(hello if isinstance(hello, dict) else {}), **answer}
