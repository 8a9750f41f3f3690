"""From a workspace's row to what a node is asked to start. Knows which variables every workspace is given."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fairwater.domain.failure import Permanent
from fairwater.domain.ids import RunNumber
from fairwater.domain.workspaces.classes import WorkspaceClass
from fairwater.domain.workspaces.context import Scheme, parse_context
from fairwater.domain.workspaces.run import RunSpec, Source
from fairwater.ports.agent import StartRequest


def start_request(row: Any, classes: Mapping[str, WorkspaceClass], url: str) -> StartRequest:
    """The request for the current run of the workspace in `row`.

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
    source = Source(context.clone_url, context.name, context.ref, local=context.scheme is Scheme.FILE)
    given = dict(row.environment)
    environment = given | platform_environment(row.id, url, row.context_url, context.name)
    return StartRequest(
        run=RunNumber(row.run),
        spec=RunSpec(
            image=row.image,
            limits=limits,
            source=source,
            environment=tuple(sorted(environment.items())),
            command=tuple(row.command) if row.command is not None else None,
        ),
        local_allowed=row.local_allowed,
    )


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
