"""A configuration file as a tree that knows where each part of it is written.

Refuses to know the file's format: YAML and JSON lead to the same tree. The sources keep it within `DEPTH_MAX`,
`NODES_MAX` and `CHARACTERS_MAX`, aliases counted as often as they are used, so that whoever walks it needs no bound.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from dataclasses import dataclass

DEPTH_MAX = 64
NODES_MAX = 20_000
CHARACTERS_MAX = 1 << 20


@dataclass(frozen=True, slots=True, order=True)
class Place:
    """`line` and `column` count from 1; a column is a character."""

    line: int
    column: int


@dataclass(frozen=True, slots=True)
class ScalarNode:
    """`text` is the value as written, without its quotes."""

    value: str | int | float | bool | None
    text: str
    place: Place


@dataclass(frozen=True, slots=True)
class ListNode:
    items: tuple[Node, ...]
    place: Place


@dataclass(frozen=True, slots=True)
class Entry:
    """`place` is the key's."""

    key: str
    place: Place
    value: Node


@dataclass(frozen=True, slots=True)
class TableNode:
    """Every key once: of several entries with one key, the last."""

    entries: tuple[Entry, ...]
    place: Place

    def entry(self, key: str) -> Entry | None:
        return next((entry for entry in self.entries if entry.key == key), None)


Node = ScalarNode | ListNode | TableNode


@dataclass(frozen=True, slots=True)
class Repeated:
    """A key that was written before in the same table."""

    key: str
    place: Place
    first: Place


@dataclass(frozen=True, slots=True)
class Document:
    """`root` is None where the file says nothing."""

    root: Node | None
    repeated: tuple[Repeated, ...] = ()


class Broken(Exception):
    """The file cannot be read: `message` says why, and what to do about it."""

    def __init__(self, message: str, place: Place) -> None:
        super().__init__(message)
        self.message = message
        self.place = place


JSON_LINE_END = re.compile("\r\n|[\n\r]")
YAML_LINE_END = re.compile("\r\n|[\n\r\x85\u2028\u2029]")


class Lines:
    """Where a character of `text` is, with lines as the format has them."""

    def __init__(self, text: str, line_end: re.Pattern[str]) -> None:
        self._starts = [0, *(match.end() for match in line_end.finditer(text))]

    def place(self, offset: int) -> Place:
        line = bisect_right(self._starts, offset)
        return Place(line, offset - self._starts[line - 1] + 1)


def describe(node: Node) -> str:
    """What `node` is, for a sentence."""
    if isinstance(node, ListNode):
        return "a list"
    if isinstance(node, TableNode):
        return "a table of keys"
    if node.value is None:
        return "nothing"
    if isinstance(node.value, bool):
        return f"{node.text[:20]} (true or false)"
    if isinstance(node.value, str):
        return "a text"
    return "a number"


def asks_nothing(node: Node) -> bool:
    """Whether `node` is empty, false or null, so that leaving it out changes nothing."""
    if isinstance(node, ListNode):
        return not node.items
    if isinstance(node, TableNode):
        return not node.entries
    return node.value is None or node.value is False or node.value == ""
