"""Where settings are written: the file's keys with their lines, and the environment's variables.

Decides what a known name is, and which one an unknown name is nearest to; refuses to know what a value means.
"""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Collection, Iterator, Mapping
from difflib import get_close_matches
from pathlib import Path

from fairwater.domain.failure import Permanent

Written = tuple[str, tuple[object, str]]
"""A key's name, and its value as written with where that is."""

OTHER_VARIABLES = frozenset({
    "FAIRWATER_URL", "FAIRWATER_TOKEN", "FAIRWATER_CONFIG", "FAIRWATER_DATA_DIR", "FAIRWATER_CONTEXT_URL",
    "FAIRWATER_REPO_ROOT",
})  # fmt: skip
"""Variables that are no settings: how the command line finds its server, and what a workspace is told."""


def from_file(path: Path, names: Collection[str], wrong: list[str]) -> Iterator[Written]:
    """The keys of the file, each with `FILE:LINE`; what is unknown goes to `wrong`.

    Raises:
        Permanent: `bad_config`: the file cannot be read, or is not TOML.
    """
    try:
        text = path.read_text(encoding="utf-8")
        tree = tomllib.loads(text)
    except OSError as error:
        raise Permanent(f"{path}: {error.strerror}; name another file with --config", code="bad_config") from None
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise Permanent(f"{path}: this is not TOML: {error}", code="bad_config") from None
    tables = {".".join(name.split(".")[:depth]) for name in names for depth in range(1, name.count(".") + 1)}
    for name, value in _leaves(tree, "", names):
        line = _line_of(text, name)
        if name in names:
            yield name, (value, f"{path}:{line}")
        elif name in tables:
            wrong.append(f"{path}:{line}: {name} is a table: write [{name}], and its keys below it")
        else:
            wrong.append(f"{path}:{line}: unknown key {name!r}{_nearest(name, [*names, *sorted(tables)])}")


def from_environment(environment: Mapping[str, str], names: Collection[str], wrong: list[str]) -> Iterator[Written]:
    """The keys set by variables `FAIRWATER_SECTION_KEY`; unknown variables of that kind go to `wrong`."""
    variables = {variable_of(name): name for name in names}
    for variable, text in sorted(environment.items()):
        if variable in variables:
            yield variables[variable], (text, f"environment {variable}")
        elif (
            variable.startswith("FAIRWATER_")
            and variable not in OTHER_VARIABLES
            and not variable.startswith("FAIRWATER_WORKSPACE_")
        ):
            near = _nearest(variable, [*variables, *sorted(OTHER_VARIABLES)])
            wrong.append(f"environment: unknown variable {variable}{near}")


def variable_of(name: str) -> str:
    """The environment variable of the key `name`."""
    return "FAIRWATER_" + name.upper().replace(".", "_")


def as_text(value: object) -> str:
    """A value as it would be written in the environment."""
    if isinstance(value, (list, tuple)):
        return json.dumps([str(item) for item in value])
    return str(value)


def mask_secret(text: str) -> str:
    """Stars; of an address, only its password and every value of its query are."""
    if "://" not in text:
        return "***"
    masked = re.sub(r"(://[^/@:]*):.*@", r"\1:***@", text)
    return re.sub(r"([?&][^=&]+)=[^&]*", r"\1=***", masked)


def _leaves(tree: Mapping[str, object], prefix: str, names: Collection[str]) -> Iterator[tuple[str, object]]:
    for name, value in tree.items():
        full = f"{prefix}{name}"
        if isinstance(value, dict) and full not in names:
            yield from _leaves(value, f"{full}.", names)
            if not value and not any(known.startswith(f"{full}.") for known in names):
                yield full, value
        else:
            yield full, value


def _line_of(text: str, name: str) -> int:
    """The line, from 1, on which `name` stands, or the table nearest to it: TOML's reader does not say."""
    table, best, best_length = "", 1, 0
    for number, line in enumerate(text.splitlines(), start=1):
        header = re.match(r"\s*\[+\s*([^\]]+?)\s*\]", line)
        entry = re.match(r"\s*([A-Za-z0-9_.\"' -]+?)\s*=", line)
        if header:
            found = table = _plain(header[1])
        elif entry:
            found = f"{table}.{_plain(entry[1])}" if table else _plain(entry[1])
        else:
            continue
        if (found == name or name.startswith(f"{found}.")) and len(found) > best_length:
            best, best_length = number, len(found)
    return best


def _plain(name: str) -> str:
    return ".".join(part.strip().strip("\"'") for part in name.split("."))


def _nearest(name: str, known: list[str]) -> str:
    matches = get_close_matches(name, known, n=1, cutoff=0.6)
    if not matches:  # the right key in the wrong table, or in none
        last = name.rpartition(".")[2]
        matches = get_close_matches(last, [other.rpartition(".")[2] for other in known], n=1, cutoff=0.6)
        matches = [other for other in known if matches and other.rpartition(".")[2] == matches[0]][:1]
    return f"; did you mean {matches[0]!r}?" if matches else "; `fairwater config show` lists those there are"
