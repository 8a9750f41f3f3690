"""The variables of devcontainer.json: `${containerWorkspaceFolder}`, `${localEnv:NAME:default}` and the others.

Decides what each stands for in a workspace, where there is no local machine. What depends on the container's
environment (`${containerEnv:NAME}`) stays as it is for `expand`, or becomes the shell's `${NAME}` in a command.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from fairwater.domain.workspaces.config.findings import Findings
from fairwater.domain.workspaces.config.node import Place

_VARIABLE = re.compile(r"\$\{([A-Za-z]+)(?::([^}]*))?\}")
_CONTAINER = re.compile(r"\$\{containerEnv:([^}:]+)(?::([^}]*))?\}")
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_PLAIN_DEFAULT = re.compile(r"[A-Za-z0-9_./:@%+=, -]*")
_EXPANDED_MAX = 128 * 1024
_TABLE_BYTES_MAX = 64 * 1024
"""Of all expanded variables together: as they are written they have less, see `values`."""
_ID_DIGITS = "0123456789abcdefghijklmnopqrstuv"


def expand(value: str, container_environment: Mapping[str, str]) -> str:
    """`value` with every `${containerEnv:NAME}` and `${containerEnv:NAME:default}` replaced, once.

    A variable that is not there is its default, else "". What is put in is not looked at again. What would make the
    whole longer than a variable can be (128 KiB) is left as written.
    """
    room = _EXPANDED_MAX - len(value)

    def replaced(match: re.Match[str]) -> str:
        nonlocal room
        found = container_environment.get(match[1])
        text = (match[2] or "") if found is None else found
        room -= len(text) - len(match[0])
        return text if room >= 0 else match[0]

    return _replace(_CONTAINER, replaced, value)


def expand_all(
    variables: Iterable[tuple[str, str]], container_environment: Mapping[str, str]
) -> tuple[tuple[str, str], ...]:
    """`variables`, each expanded: what would make them too long together for any process is left as written."""
    room, found = _TABLE_BYTES_MAX, []
    for name, value in variables:
        expanded = expand(value, container_environment)
        if len(expanded) > len(value) and len(expanded.encode(errors="surrogateescape")) > room:
            expanded = value
        room -= len(expanded.encode(errors="surrogateescape"))
        found.append((name, expanded))
    return tuple(found)


def _replace(pattern: re.Pattern[str], replaced: Callable[[re.Match[str]], str], text: str) -> str:
    """`pattern.sub`, which behind the last `}` would look for one again and again, to the end each time."""
    end = text.rfind("}") + 1
    return pattern.sub(replaced, text[:end]) + text[end:]


def shell_form(text: str) -> str:
    """`text`, a line for a shell, with `${containerEnv:NAME:default}` as the shell's own `${NAME-default}`."""

    def replaced(match: re.Match[str]) -> str:
        default = match[2] or ""
        if not _NAME.fullmatch(match[1]) or not _PLAIN_DEFAULT.fullmatch(default):
            return match[0]
        return f"${{{match[1]}-{default}}}"

    return _replace(_CONTAINER, replaced, text)


def quote(text: str) -> str:
    """`text` as one word for a POSIX shell, whatever it holds."""
    return "'" + text.replace("'", "'\\''") + "'"


def shell_word(text: str) -> str:
    """`text` as one word for a shell, in which nothing but `${containerEnv:NAME}` is replaced."""
    parts: list[str] = []
    at = 0
    for match in _CONTAINER.finditer(text, 0, text.rfind("}") + 1):
        form = shell_form(match[0])
        if form != match[0]:
            parts += [quote(text[at : match.start()]), f'"{form}"']
            at = match.end()
    return "".join([*parts, quote(text[at:])])


def container_id(repository: str) -> str:
    """What `${devcontainerId}` stands for: the same for every workspace of the repository's name, 52 letters."""
    number = int.from_bytes(hashlib.sha256(repository.encode()).digest(), "big")
    return "".join(_ID_DIGITS[number >> shift & 31] for shift in range(255, -1, -5))


@dataclass(slots=True)
class Variables:
    """`folder` is `${containerWorkspaceFolder}`, `repository_folder` the checkout; both are absolute."""

    findings: Findings
    repository_folder: str
    folder: str
    _told: set[str] = field(default_factory=set)

    def substitute(self, text: str, place: Place) -> str:
        """`text` with what is known when the file is read; other variables, such as a shell's, stay."""

        def replaced(match: re.Match[str]) -> str:
            return self._value(match, place)

        return _replace(_VARIABLE, replaced, text)

    def _value(self, match: re.Match[str], place: Place) -> str:
        name, arguments = match[1], match[2]
        if name in {"localEnv", "env"} and arguments is not None:
            variable, _, default = arguments.partition(":")
            if variable not in self._told:
                self._told.add(variable)
                stands = f"its default {default[:40]!r}" if default else "empty"
                self.findings.info(
                    place,
                    "no_local_machine",
                    f"{match[0][:60]} is a variable of your own machine, which a workspace does not have: it is "
                    f"{stands}; set it as a variable of yours instead",
                )
            return default
        if arguments is not None:
            return match[0]
        known = {
            "containerWorkspaceFolder": self.folder,
            "containerWorkspaceFolderBasename": self.folder.rsplit("/", 1)[-1],
            "localWorkspaceFolder": self.repository_folder,
            "localWorkspaceFolderBasename": self.repository_folder.rsplit("/", 1)[-1],
            "devcontainerId": container_id(self.repository_folder),
        }
        return known.get(name, match[0])
