"""A run's secrets as files in memory: one for each workspace, for the agent's user alone.

The folder is a tmpfs', so that nothing is on a disk, and what is kept outlives the agent but not the machine. Refuses
to know what the secrets are for. What is found broken counts as nothing kept, and is told without its content.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import structlog

from fairwater.domain.ids import WorkspaceId, parse_workspace_id
from fairwater.domain.workspaces.secrets import Credential, CredentialKind, RunSecrets


class FileSecrets:
    """Implements `ports.secrets.SecretKeeper`. `folder` is made, for its owner alone. Calls block for a moment."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        folder.chmod(0o700)
        self._folder = folder
        self._log = structlog.get_logger().bind(part="secrets")

    def put(self, workspace: WorkspaceId, secrets: RunSecrets) -> None:
        """Replaces what is kept, as a whole."""
        path = self._path(workspace)
        aside = path.with_suffix(".new")
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
        with open(os.open(aside, flags, 0o600), "w") as file:
            json.dump(_to_json(secrets), file)
        aside.replace(path)

    def get(self, workspace: WorkspaceId) -> RunSecrets:
        try:
            return _from_json(json.loads(self._path(workspace).read_bytes()))
        except FileNotFoundError:
            return RunSecrets()
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            # Not the error's text: it may quote what it could not read.
            self._log.warning("secrets_unreadable", workspace=workspace, kind=type(error).__name__)
            return RunSecrets()

    def forget(self, workspace: WorkspaceId) -> None:
        path = self._path(workspace)
        path.with_suffix(".new").unlink(missing_ok=True)
        path.unlink(missing_ok=True)

    def _path(self, workspace: WorkspaceId) -> Path:
        """Raises Permanent (`bad_id`): what is no id could name another folder."""
        return self._folder / f"{parse_workspace_id(workspace)}.json"


def _to_json(secrets: RunSecrets) -> dict[str, Any]:
    return {
        "credentials": [
            {
                "kind": one.kind.value,
                "host": one.host,
                "username": one.username,
                "secret": one.secret,
                "plain_http": one.plain_http,
            }
            for one in secrets.credentials
        ],
        "environment": [list(pair) for pair in secrets.environment],
    }


def _from_json(kept: Any) -> RunSecrets:
    """Raises ValueError, TypeError or KeyError for what `_to_json` has not written."""
    return RunSecrets(
        tuple(
            Credential(
                CredentialKind(one["kind"]),
                _text(one["host"]),
                _text(one["username"]),
                _text(one["secret"]),
                one["plain_http"] is True,
            )
            for one in kept["credentials"]
        ),
        tuple((_text(name), _text(value)) for name, value in kept["environment"]),
    )


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError("not a string")
    return value
