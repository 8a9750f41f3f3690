"""What a workspace was set up with, and what a person should know of it, as lines for a person."""

from __future__ import annotations

from typing import Any

_STYLES = {"error": "red", "warning": "yellow"}


def image_line(item: dict[str, Any]) -> str:
    """The image, with why it is that one once that is decided."""
    setup = item.get("setup") or {}
    if not setup:
        asked = item.get("image_asked")
        return str(item["image"]) if asked else f"{item['image']} (unless the repository asks for another)"
    digest = f", {setup['digest'][:19]}" if setup.get("digest") else ""
    return f"{setup['image']} ({setup['image_why']}{digest})"


def setup_fields(item: dict[str, Any]) -> list[tuple[str, object]]:
    """The fields of `setup` beside the image; none before it is decided."""
    setup = item.get("setup") or {}
    if not setup:
        return []
    ports = ", ".join(_port(rule) for rule in setup.get("ports") or ())
    tasks = ", ".join(task["name"] or f"#{task['number']}" for task in setup.get("tasks") or ())
    return [
        ("configuration", setup.get("file") or "none in the repository"),
        ("user", setup.get("user")),
        ("folder", setup.get("folder")),
        ("tasks", tasks or None),
        ("ports", ports or None),
    ]


def notices(item: dict[str, Any]) -> list[tuple[str, str]]:
    """Each notice as a line, `error: FILE:LINE:COLUMN: …`, and the style that shows it."""
    lines = []
    for notice in (item.get("setup") or {}).get("notices") or ():
        place = ":".join(str(notice[part]) for part in ("file", "line", "column") if notice.get(part) is not None)
        level = str(notice.get("level"))
        text = f"{place}: {notice.get('message')}" if place else str(notice.get("message"))
        lines.append((f"{level}: {text}", _STYLES.get(level, "")))
    return lines


def _port(rule: dict[str, Any]) -> str:
    span = str(rule["first"]) if rule["first"] == rule["last"] else f"{rule['first']}-{rule['last']}"
    words = [word for word in (rule.get("name"), rule.get("visibility")) if word and word != "private"]
    return span + (f" ({', '.join(words)})" if words else "")
