"""Where a YAML parser's marks are in the file, and what its errors mean to a person."""

from __future__ import annotations

from typing import Protocol

import yaml

from fairwater.domain.workspaces.config.node import YAML_LINE_END, Place


class _Mark(Protocol):
    """A place as both of PyYAML's parsers have it, counted from 0."""

    @property
    def line(self) -> int: ...

    @property
    def column(self) -> int: ...


class Marks:
    """From the parser's marks to places that can be gone to: one behind the file's end becomes the file's last."""

    def __init__(self, text: str) -> None:
        self._lines = YAML_LINE_END.split(text)
        if len(self._lines) > 1 and not self._lines[-1]:
            self._lines.pop()  # what follows the last line's end is no line

    def place(self, mark: _Mark | None) -> Place:
        if mark is None:
            return Place(1, 1)
        if mark.line >= len(self._lines):
            return Place(len(self._lines), len(self._lines[-1]) + 1)
        return Place(mark.line + 1, min(mark.column, len(self._lines[mark.line])) + 1)

    def sign(self, place: Place) -> str:
        """What stands at `place`, "" at a line's end."""
        return self._lines[place.line - 1][place.column - 1 : place.column]


def explain_yaml(error: yaml.MarkedYAMLError, sign: str) -> str:
    """What the parser says, and what to do about it where the cause is a usual one. `sign` is what stands there."""
    problem, context = error.problem or "", error.context or ""
    if "cannot start any token" in problem:
        if sign == "\t":
            return "a tab stands where YAML wants spaces: indent with spaces"
        return f"a value cannot begin with {sign!r}: put it in quotes"
    said = f"{context}: {problem}" if context else problem
    if "end of stream" in problem:
        return f"{said}: close what begins here, or indent what belongs to it"
    if "mapping values are not allowed" in problem:
        return f"{said}: a value that holds ': ' is written in quotes, and the keys of one table begin in one column"
    if "did not find expected" in problem or "could not find expected" in problem:
        return f"{said}: check the indentation, and that every bracket and quote is closed"
    return f"this is not YAML: {said}"
