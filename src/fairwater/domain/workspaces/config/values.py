"""Values that both configuration files have: images, variables, ports.

Decides what may stand in them. Whether an image is there, or a port is open, is for others to find out.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable

from fairwater.domain.workspaces.config.findings import Findings, show
from fairwater.domain.workspaces.config.node import Entry, Node, Place, ScalarNode

PORTS_MAX = 256
VARIABLES_MAX = 256
_VALUE_BYTES_MAX = 32 * 1024
_TABLE_BYTES_MAX = 48 * 1024
"""Of a table of variables: with those of the image and the person it must fit before a command (128 KiB)."""
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,127}")
_IMAGE = re.compile(r"[A-Za-z0-9\[][A-Za-z0-9._:/@+\[\]-]{0,499}")
_ON_THE_NODE = ("oci:", "oci-archive:", "docker-archive:", "docker-daemon:", "containers-storage:", "dir:", "file:")
_RANGE = re.compile(r"([0-9]{1,5})[-:]([0-9]{1,5})")


def read_image(findings: Findings, node: Node, value: str) -> str | None:
    """`value`, the text of `node`, where it can be the reference of an image in a registry."""
    text = value.strip()
    if not text:
        findings.error(node.place, "bad_value", "image is empty: name an image, or remove the key; the default is used")
        return None
    if "://" in text or text.startswith(_ON_THE_NODE):
        message = f"image {show(text)} is no image of a registry: a repository names one as registry.example/name:tag"
    elif not _IMAGE.fullmatch(text):
        message = f"image {show(text)} is not an image's reference: write it as name:tag, without spaces"
    else:
        return text
    findings.error(node.place, "bad_image", f"{message}; the default is used")
    return None


def read_variables(
    findings: Findings, name: str, node: Node, substitute: Callable[[str, Place], str] = lambda text, place: text
) -> tuple[tuple[str, str], ...]:
    """A table of environment variables. Numbers and truth values are taken as they are written."""
    found: list[tuple[str, str]] = []
    room = _TABLE_BYTES_MAX
    for entry in findings.entries(name, node, VARIABLES_MAX):
        if not _VARIABLE.fullmatch(entry.key):
            message = (
                f"{show(entry.key)} cannot be a variable's name: letters, digits and '_', not beginning with a digit"
            )
            findings.error(entry.place, "bad_value", f"{message}; it is left out")
            continue
        if isinstance(entry.value, ScalarNode) and entry.value.value is None:
            message = f"{name}.{entry.key} is null: a variable cannot be taken away yet; it stays as the image has it"
            findings.warning(entry.place, "not_supported", message)
            continue
        text = findings.text(f"{name}.{entry.key}", entry.value, numbers=True)
        if text is None:
            continue
        value = substitute(text, entry.value.place)
        if len(value.encode()) > _VALUE_BYTES_MAX:
            message = f"{name}.{entry.key} has more than {_VALUE_BYTES_MAX} bytes; it is left out: put it into a file"
            findings.error(entry.value.place, "too_long", message)
            continue
        room -= bytes_sent(entry.key) + bytes_sent(value)
        if room < 0:
            message = f"{name} has more than {_TABLE_BYTES_MAX} bytes of variables"
            findings.error(
                entry.value.place, "too_long", f"{message}: {entry.key} and those after it are left out: use a file"
            )
            break
        found.append((entry.key, value))
    return tuple(found)


def bytes_sent(text: str) -> int:
    """How long `text` is in a message between programs, where a control character takes six bytes."""
    return len(json.dumps(text, ensure_ascii=False).encode(errors="surrogatepass"))


def read_port_range(findings: Findings, name: str, node: Node) -> tuple[int, int] | None:
    """`3000`, `"3000"` or `3000-3999`, as the first and the last port."""
    if not isinstance(node, ScalarNode) or isinstance(node.value, bool | float):
        findings.wrong_type(name, node, "a port such as 3000, or ports such as 3000-3999")
        return None
    found = port_range(node.text)
    if found is None:
        message = f"{name} {show(node.text)} is no port: write 3000 or 3000-3999, from 1 to 65535; it is left out"
        findings.error(node.place, "bad_value", message)
    return found


def port_range(text: str) -> tuple[int, int] | None:
    """The first and the last port of `3000` or `3000-3999`; None where it is neither."""
    match = _RANGE.fullmatch(text)
    if match:
        first, last = int(match[1]), int(match[2])
    elif text.isascii() and text.isdigit() and len(text) <= 5:
        first = last = int(text)
    else:
        return None
    return (first, last) if 1 <= first <= last <= 65535 else None


def entry_text(findings: Findings, entry: Entry | None, within: str = "") -> str | None:
    """The text of a key that may not be there."""
    if entry is None:
        return None
    return findings.text(f"{within}.{entry.key}" if within else entry.key, entry.value)
