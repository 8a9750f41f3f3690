"""What `fairwater config explain` shows: what a workspace of a repository would get, and why."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import typer

from fairwater.cli.output import ExitCode, clean, say, write_fields, write_json, write_line, write_table
from fairwater.cli.repository_files import RepositoryFiles, fetch_repository, read_folder
from fairwater.domain.failure import Permanent
from fairwater.domain.units import format_bytes
from fairwater.domain.workspaces.config import Explanation, explain_configuration
from fairwater.domain.workspaces.context import parse_context
from fairwater.domain.workspaces.notice import Level, Notice
from fairwater.domain.workspaces.setup import PortRule, Requirements

_STYLES = {Level.ERROR: "bold red", Level.WARNING: "yellow", Level.INFO: "dim"}


def explain(repository: str, *, as_json: bool) -> bool:
    """Shows it; whether nothing of what the repository asks for is refused or broken."""
    found = _find(repository)
    for link in found.links:
        say(f"{link} is no regular file, and is not read: put the configuration itself there")
    explanation = explain_configuration(found.files, found.name)
    if as_json:
        write_json(_as_json(found, explanation))
    else:
        _write(found, explanation)
    return not any(notice.level is Level.ERROR for notice in explanation.wanted.notices)


def _find(repository: str) -> RepositoryFiles:
    folder = Path(repository)
    if folder.is_dir():
        return read_folder(folder)
    if "://" not in repository and not ("@" in repository and ":" in repository):
        say(f"error: {repository!r} is neither a folder here nor a git URL such as https://github.com/org/repo")
        raise typer.Exit(ExitCode.WRONG_USE)
    try:
        context = parse_context(repository)
    except Permanent as failure:
        say(f"error: {failure.message}")
        raise typer.Exit(ExitCode.WRONG_USE) from None
    return fetch_repository(context)


def _write(found: RepositoryFiles, explanation: Explanation) -> None:
    wanted = explanation.wanted
    why = f"{wanted.file}:{wanted.image_line}" if wanted.image else _why_default(explanation)
    folder = wanted.folder or f"/workspace/{wanted.checkout or found.name}"
    write_fields([
        ("repository", f"{found.name}, in /workspace/{wanted.checkout or found.name}"),
        ("read", wanted.file or "nothing: there is no .gitpod.yml and no devcontainer.json"),
        ("image", f"{wanted.image or 'the default image'} ({why})"),
        ("user", wanted.user or "the image's own"),
        ("folder", folder if folder.startswith("/") else f"/workspace/{folder}"),
        ("variables", _names(wanted.container_environment)),
        ("in commands", _names(wanted.remote_environment)),
        ("first process", "the image's own" if wanted.entrypoint else None),
        ("needs", _requirements(wanted.requirements)),
    ])  # fmt: skip
    _section(("task", "runs", "variables"), [
        (task.name, " → ".join(stage.title + (" (once)" if stage.once else "") for stage in stages),
         _names(task.environment) or "")
        for task, stages in zip(wanted.tasks, explanation.stages, strict=True)
    ])  # fmt: skip
    _section(("port", "name", "who", "when it opens", "protocol"), [
        (_span(rule), rule.name or rule.description, rule.visibility, rule.on_open, rule.protocol)
        for rule in wanted.ports
    ])  # fmt: skip
    _section(("additional repository", "in"), [
        (one.url, f"/workspace/{one.location or parse_context(one.url).name}") for one in wanted.repositories
    ])  # fmt: skip
    _write_notices(wanted.notices)


def _why_default(explanation: Explanation) -> str:
    if any(notice.level is Level.ERROR for notice in explanation.wanted.notices):
        return "what the repository asks for cannot be followed: see below"
    return "the repository asks for none"


def _section(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    if rows:
        if not sys.stdout.isatty():  # a drawn table has room around it
            write_line()
        write_table(columns, rows, "")


def _write_notices(notices: Sequence[Notice]) -> None:
    if not notices:
        return
    write_line()
    lines = [(notice.level, f"{notice.level:<8}{' '.join(clean(notice).split())}") for notice in notices]
    if not sys.stdout.isatty():
        for _, line in lines:
            write_line(line)
        return
    from rich.console import Console
    from rich.text import Text

    console = Console(highlight=False, soft_wrap=True)
    for level, line in lines:
        console.print(Text.assemble((line[:8], _STYLES[level]), line[8:]))


def _names(variables: Sequence[tuple[str, str]]) -> str | None:
    """The names alone: a value may be a secret."""
    return ", ".join(name for name, _ in variables) or None


def _span(rule: PortRule) -> str:
    return str(rule.first) if rule.first == rule.last else f"{rule.first}-{rule.last}"


def _requirements(requirements: Requirements) -> str | None:
    parts = [
        f"{requirements.cpu_cores} cores" if requirements.cpu_cores else "",
        f"{format_bytes(requirements.memory)} of memory" if requirements.memory else "",
        f"{format_bytes(requirements.storage)} of disk" if requirements.storage else "",
    ]
    return ", ".join(part for part in parts if part) or None


def _as_json(found: RepositoryFiles, explanation: Explanation) -> dict[str, Any]:
    wanted = explanation.wanted
    return {
        "repository": found.name,
        "file": wanted.file,
        "passed_over": list(explanation.passed_over),
        "image": wanted.image,
        "image_line": wanted.image_line,
        "user": wanted.user,
        "checkout": wanted.checkout or found.name,
        "folder": wanted.folder or None,
        "container_environment": [name for name, _ in wanted.container_environment],
        "remote_environment": [name for name, _ in wanted.remote_environment],
        "entrypoint": wanted.entrypoint,
        "tasks": [
            {
                "number": task.number,
                "name": task.name,
                "environment": [name for name, _ in task.environment],
                "marker": task.marker,
                "stages": [
                    {"name": stage.heading, "once": stage.once, "commands": [one.text for one in stage.commands]}
                    for stage in stages
                ],
            }
            for task, stages in zip(wanted.tasks, explanation.stages, strict=True)
        ],
        "ports": [
            {
                "first": rule.first, "last": rule.last, "name": rule.name, "description": rule.description,
                "visibility": rule.visibility, "on_open": rule.on_open, "protocol": rule.protocol,
            }
            for rule in wanted.ports
        ],
        "repositories": [{"url": one.url, "location": one.location or None} for one in wanted.repositories],
        "requirements": {
            "cpu_cores": wanted.requirements.cpu_cores,
            "memory": wanted.requirements.memory,
            "storage": wanted.requirements.storage,
        },
        "notices": [
            {
                "level": notice.level, "code": notice.code, "message": notice.message,
                "file": notice.file, "line": notice.line, "column": notice.column,
            }
            for notice in wanted.notices
        ],
    }  # fmt: skip
