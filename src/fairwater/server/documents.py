"""The objects that the API answers with. Field names are part of the agreement with scripts: they stay."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import Any, TypeVar

from fairwater.domain.workspaces.notice import Notice
from fairwater.domain.workspaces.run import Progress, TaskFacts
from fairwater.domain.workspaces.setup import Setup
from fairwater.ports.accounts import Account, Organisation, Page, Token
from fairwater.ports.agent import Fact, FileEntry
from fairwater.ports.catalogue import Entry, HistoryLine
from fairwater.ports.vault import StoredCredential, StoredVariable
from fairwater.server.options import ServerOptions

T = TypeVar("T")


def moment(at: datetime) -> str:
    """RFC 3339 in UTC, with milliseconds: `2022-04-11T08:00:00.000Z`."""
    return at.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def progress_document(progress: Progress | None) -> dict[str, Any] | None:
    if progress is None:
        return None
    return {"step": progress.step, "done": progress.done, "total": progress.total, "unit": progress.unit}


def workspace_document(entry: Entry, options: ServerOptions) -> dict[str, Any]:
    workspace, deadline = entry.workspace, entry.deadline
    return {
        "id": workspace.id,
        "name": entry.name,
        "phase": workspace.phase.value,
        "reason": workspace.reason,
        "since": moment(workspace.since),
        "created_at": moment(entry.created_at),
        "url": options.workspace_url(workspace.id),
        "context_url": entry.context_url,
        "class": entry.workspace_class,
        "image": entry.image,
        "image_asked": entry.image_asked,
        "setup": setup_document(entry.setup),
        "cluster": options.cluster,
        "owner": entry.owner_name,
        "organisation": entry.organisation,
        "run": workspace.run,
        "progress": progress_document(entry.progress),
        "failure": workspace.failure,
        "deadline": {"kind": deadline.kind.value, "at": moment(deadline.at)} if deadline else None,
        "command": list(entry.command) if entry.command is not None else None,
        "snapshot_age_s": None,
    }


def setup_document(setup: Setup | None) -> dict[str, Any] | None:
    """Never what is in the environment: it may be secret."""
    if setup is None:
        return None
    return {
        "image": setup.image,
        "image_why": setup.image_why,
        "digest": setup.digest,
        "file": setup.file,
        "user": setup.user,
        "home": setup.home,
        "folder": setup.folder,
        "repository": setup.repository,
        "tasks": [{"number": task.number, "name": task.name} for task in setup.tasks],
        "ports": [
            {
                "first": rule.first,
                "last": rule.last,
                "name": rule.name,
                "description": rule.description,
                "visibility": rule.visibility.value,
                "on_open": rule.on_open,
                "protocol": rule.protocol,
            }
            for rule in setup.ports
        ],
        "notices": [notice_document(notice) for notice in setup.notices],
    }


def notice_document(notice: Notice) -> dict[str, Any]:
    return {
        "level": notice.level.value,
        "code": notice.code,
        "message": notice.message,
        "file": notice.file,
        "line": notice.line,
        "column": notice.column,
    }


def task_document(task: TaskFacts) -> dict[str, Any]:
    return {
        "number": task.number,
        "name": task.name,
        "state": task.state.value,
        "exit_status": task.exit_status,
        "started_at": moment(task.started_at) if task.started_at else None,
        "ended_at": moment(task.ended_at) if task.ended_at else None,
    }


def history_document(line: HistoryLine) -> dict[str, Any]:
    return {
        "sequence": line.sequence,
        "workspace": line.workspace,
        "event": line.event.value,
        "phase": line.phase.value,
        "reason": line.reason,
        "run": line.run,
        "at": moment(line.at),
    }


def organisation_document(organisation: Organisation) -> dict[str, Any]:
    return {"id": organisation.id, "name": organisation.name, "created_at": moment(organisation.created_at)}


def account_document(account: Account) -> dict[str, Any]:
    return {
        "id": account.id,
        "name": account.name,
        "role": account.role.value,
        "blocked": account.blocked,
        "created_at": moment(account.created_at),
        "organisations": [organisation.name for organisation in account.organisations],
        "dotfiles_url": account.dotfiles_url,
    }


def token_document(token: Token) -> dict[str, Any]:
    return {
        "id": token.id,
        "name": token.name,
        "user": token.user,
        "created_at": moment(token.created_at),
        "expires_at": moment(token.expires_at) if token.expires_at else None,
    }


def credential_document(credential: StoredCredential) -> dict[str, Any]:
    return {
        "id": credential.id,
        "kind": credential.kind.value,
        "host": credential.host,
        "username": credential.username,
        "plain_http": credential.plain_http,
        "fingerprint": credential.fingerprint,
        "created_at": moment(credential.created_at),
    }


def variable_document(variable: StoredVariable) -> dict[str, Any]:
    """`value` is null where it is secret."""
    return {
        "id": variable.id,
        "name": variable.name,
        "value": variable.value,
        "repository": variable.repository,
        "secret": variable.secret,
        "created_at": moment(variable.created_at),
    }


def file_document(entry: FileEntry) -> dict[str, Any]:
    return {
        "name": entry.name,
        "kind": entry.kind,
        "size": entry.size,
        "mode": entry.mode,
        "modified_at": entry.modified_at,
    }


def fact_document(fact: Fact) -> dict[str, Any]:
    return {"name": fact.name, "level": fact.level, "value": fact.value, "cost": fact.cost, "remedy": fact.remedy}


def page_document(page: Page[T], document: Callable[[T], dict[str, Any]]) -> dict[str, Any]:
    return {"items": [document(item) for item in page.items], "next": page.next}
