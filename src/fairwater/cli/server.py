"""`fairwater server run`: the control plane alone."""

from __future__ import annotations

from fairwater.cli.command import ConfigOption, DataDirOption, application, local
from fairwater.cli.parts import SupervisedOption, prepare

app = application("Run the server alone.")


@app.callback()
def server() -> None:
    """Run the server alone."""


@app.command()
@local
def run(data_dir: DataDirOption = None, config: ConfigOption = None, supervised: SupervisedOption = None) -> None:
    """Run the server until SIGTERM. It needs no privilege; `fairwater up` runs it beside the node agent."""
    from fairwater.bootstrap.server import run_server

    run_server(*prepare(data_dir, config, supervised))
