"""From a workspace's row to what a node is asked to start. Knows which variables every workspace is given."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fairwater.domain.failure import Permanent
from fairwater.domain.ids import RunNumber
from fairwater.domain.workspaces.classes import WorkspaceClass
from fairwater.domain.workspaces.context import Context, Scheme, parse_context
from fairwater.domain.workspaces.run import RunSpec, Source
from fairwater.ports.agent import StartRequest


def start_request(row: Any, classes: Mapping[str, WorkspaceClass], url: str) -> StartRequest:
    """The request for the current run of the workspace in `row`, with its owner's `dotfiles_url`; without secrets.

    Raises:
        Permanent: `no_such_class`, when the configuration no longer has the workspace's class; `bad_context_url`.
    """
    limits = classes.get(row.workspace_class)
    if limits is None:
        raise Permanent(
            f"workspace {row.id} is of class '{row.workspace_class}', which is no longer configured "
            f"(there are: {', '.join(sorted(classes))}): configure it again, or create the workspace anew",
            code="no_such_class",
        )
    context = parse_context(row.context_url)
    given = dict(row.environment)
    environment = given | platform_environment(row.id, url, row.context_url, context.name)
    return StartRequest(
        run=RunNumber(row.run),
        spec=RunSpec(
            image=row.image,
            limits=limits,
            source=_source(context),
            environment=tuple(sorted(environment.items())),
            command=tuple(row.command) if row.command is not None else None,
            image_asked=row.image_asked is not None,
            dotfiles=_dotfiles(row.dotfiles_url),
        ),
        local_allowed=row.local_allowed,
    )


def _source(context: Context) -> Source:
    local = context.scheme is Scheme.FILE
    return Source(context.clone_url, context.name, context.ref, local=local, ref_path=context.ref_path)


def _dotfiles(url: str | None) -> Source | None:
    """None for an address that is none: a workspace starts without dotfiles rather than not at all."""
    if url is None:
        return None
    try:
        context = parse_context(url)
    except Permanent:
        return None
    return None if context.scheme is Scheme.FILE else _source(context)


def platform_environment(workspace: str, url: str, context_url: str, name: str) -> dict[str, str]:
    """The variables that scripts in a workspace read, those of Gitpod's among them."""
    root = f"/workspace/{name}"
    return {
        "FAIRWATER_WORKSPACE_ID": workspace,
        "FAIRWATER_WORKSPACE_URL": url,
        "FAIRWATER_CONTEXT_URL": context_url,
        "FAIRWATER_REPO_ROOT": root,
        "GITPOD_WORKSPACE_ID": workspace,
        "GITPOD_WORKSPACE_URL": url,
        "GITPOD_REPO_ROOT": root,
    }
