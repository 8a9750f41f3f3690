"""What the shell is offered while a person types: names of workspaces and users, asked of the server in a hurry.

Anything that goes wrong offers nothing: a shell must not hang, and nothing may be printed into a command line.
"""

from __future__ import annotations

from typing import Any

_HURRY_S = 0.8


def workspaces(ctx: Any, args: list[str], incomplete: str) -> list[tuple[str, str]]:
    """Names, and ids where a workspace has none that is its own, with their phase."""
    items = _items("/workspaces", ctx)
    return [
        (str(item.get("name") or item["id"]), f"{item.get('phase', '')} {item['id']}")
        for item in items
        if str(item.get("name") or item["id"]).startswith(incomplete)
    ] or [(str(item["id"]), str(item.get("name"))) for item in items if str(item["id"]).startswith(incomplete)]


def users(ctx: Any, args: list[str], incomplete: str) -> list[tuple[str, str]]:
    return [
        (str(item["name"]), str(item.get("role", "")))
        for item in _items("/users", ctx)
        if str(item["name"]).startswith(incomplete)
    ]


def credentials(ctx: Any, args: list[str], incomplete: str) -> list[tuple[str, str]]:
    return [
        (str(item["host"]), str(item.get("kind", "")))
        for item in _items("/users/me/credentials", ctx)
        if str(item["host"]).startswith(incomplete)
    ]


def variables(ctx: Any, args: list[str], incomplete: str) -> list[tuple[str, str]]:
    return [
        (str(item["name"]), str(item.get("repository", "")))
        for item in _items("/users/me/variables", ctx)
        if str(item["name"]).startswith(incomplete)
    ]


def _items(path: str, ctx: Any) -> list[dict[str, Any]]:
    from fairwater.cli.client import Client
    from fairwater.cli.connection import find_target
    from fairwater.domain.failure import Permanent, Temporary

    given = ctx.params if ctx is not None else {}
    try:
        target = find_target(given.get("server"), given.get("token"), given.get("data_dir"))
        with Client(target, timeout_s=_HURRY_S) as client:
            page = client.get(path, limit=100)
            return [item for item in page["items"] if isinstance(item, dict)]
    except (Permanent, Temporary, KeyError, TypeError):
        return []
