"""`fairwater doctor`: what this machine offers, what is missing, and what that costs."""

from __future__ import annotations

from dataclasses import asdict

import typer

from fairwater.cli.command import JsonOption, application, local
from fairwater.cli.output import ExitCode, write_json, write_line, write_table

app = application("What this machine offers: isolation, limits, devices.")


@app.command("doctor")
@local
def doctor(as_json: JsonOption = False) -> None:
    """Say what this machine offers. Exit code 0 when workspaces can run isolated on it, 1 when they cannot."""
    from fairwater.node.facts import node_facts, why_not_isolated

    facts = node_facts()
    lacking = why_not_isolated(facts)
    if as_json:
        write_json({"isolated": not lacking, "lacking": list(lacking), "facts": [asdict(fact) for fact in facts]})
    else:
        write_table(("what", "level", "value"), [(fact.name, fact.level, fact.value) for fact in facts], "no facts")
        for fact in facts:
            if fact.level != "ok":
                remedy = f" Remedy: {fact.remedy}." if fact.remedy else ""
                write_line(f"{fact.name}: {fact.cost}.{remedy}")
        write_line()
        if lacking:
            write_line(f"Verdict: workspaces cannot run isolated here; lacking: {', '.join(lacking)}.")
        else:
            write_line("Verdict: workspaces run isolated on this machine.")
    if lacking:
        raise typer.Exit(ExitCode.FAILURE)
