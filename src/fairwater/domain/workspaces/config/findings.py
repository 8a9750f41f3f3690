"""What is noticed while a configuration is read, and how its values are taken out of the tree.

A value of the wrong type is an error with its place, and is then as good as not there; null is not there, without a
word.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator

from fairwater.domain.workspaces.config.node import (
    Document,
    Entry,
    ListNode,
    Node,
    Place,
    ScalarNode,
    TableNode,
    describe,
)
from fairwater.domain.workspaces.notice import Level, Notice

NOTICES_MAX = 200
_MESSAGE_MAX = 1000


def show(text: str) -> str:
    """`text` for a message: quoted, short, without control characters."""
    return repr(text if len(text) <= 60 else text[:57] + "...")


class Findings:
    """The notices about `file`, at most `NOTICES_MAX` of them."""

    def __init__(self, file: str) -> None:
        self.file = file
        self._notices: list[Notice] = []
        self._left_out = 0

    @property
    def full(self) -> bool:
        return len(self._notices) >= NOTICES_MAX

    def notices(self) -> tuple[Notice, ...]:
        """In the order of the file."""
        ordered = sorted(self._notices, key=lambda notice: (notice.line or 0, notice.column or 0))
        if self._left_out:
            message = f"there are {self._left_out} more problems, which are not listed: mend these first"
            ordered.append(Notice(Level.ERROR, "too_many_problems", message, self.file))
        return tuple(ordered)

    def add(self, level: Level, place: Place, code: str, message: str) -> None:
        if self.full:
            self._left_out += 1
        else:
            self._notices.append(Notice(level, code, message[:_MESSAGE_MAX], self.file, place.line, place.column))

    def error(self, place: Place, code: str, message: str) -> None:
        self.add(Level.ERROR, place, code, message)

    def warning(self, place: Place, code: str, message: str) -> None:
        self.add(Level.WARNING, place, code, message)

    def info(self, place: Place, code: str, message: str) -> None:
        self.add(Level.INFO, place, code, message)

    def repeated(self, document: Document) -> None:
        for key in document.repeated:
            first = f"line {key.first.line}, column {key.first.column}"
            message = f"the key {show(key.key)} stands in {first} too; the last one counts: remove the other"
            self.warning(key.place, "duplicate_key", message)

    def wrong_type(self, entry: str, node: Node, wanted: str) -> None:
        self.error(node.place, "wrong_type", f"{entry} is to be {wanted}, and this is {describe(node)}; it is left out")

    def text(self, name: str, node: Node, *, numbers: bool = False) -> str | None:
        """The text of `node`; with `numbers`, numbers and truth values as they are written, too."""
        if isinstance(node, ScalarNode):
            if node.value is None:
                return None
            if isinstance(node.value, str) or numbers:
                return self._sound(name, node)
        self.wrong_type(name, node, "a text" if not _is_number(node) else "a text, so in quotes")
        return None

    def _sound(self, name: str, node: ScalarNode) -> str | None:
        if "\0" in node.text:
            self.error(node.place, "bad_value", f"{name} holds a NUL character, which no program can take: remove it")
            return None
        return node.text

    def choice(self, name: str, node: Node, choices: Collection[str]) -> str | None:
        """One of `choices`."""
        text = self.text(name, node)
        if text is None or text in choices:
            return text
        listed = ", ".join(choices)
        self.error(node.place, "bad_value", f"{name} is one of {listed}, and not {show(text)}; it is left out")
        return None

    def truth(self, name: str, node: Node) -> bool | None:
        if isinstance(node, ScalarNode) and (node.value is None or isinstance(node.value, bool)):
            return node.value
        self.wrong_type(name, node, "true or false")
        return None

    def whole(self, name: str, node: Node, least: int, most: int) -> int | None:
        """A whole number from `least` to `most`."""
        if isinstance(node, ScalarNode) and node.value is None:
            return None
        if not isinstance(node, ScalarNode) or isinstance(node.value, bool) or not isinstance(node.value, int):
            self.wrong_type(name, node, "a whole number")
            return None
        if not least <= node.value <= most:
            message = f"{name} is a number from {least} to {most}, and not {node.text[:40]}; it is left out"
            self.error(node.place, "bad_value", message)
            return None
        return node.value

    def items(self, name: str, node: Node, most: int) -> Iterator[Node]:
        """The items of a list, at most `most` of them."""
        if isinstance(node, ScalarNode) and node.value is None:
            return
        if not isinstance(node, ListNode):
            self.wrong_type(name, node, "a list")
            return
        if len(node.items) > most:
            message = f"{name} has {len(node.items)} items, and at most {most} are read: the others are left out"
            self.error(node.items[most].place, "too_many", message)
        yield from node.items[:most]

    def entries(self, name: str, node: Node, most: int = 1000) -> Iterator[Entry]:
        """The entries of a table, at most `most` of them."""
        if isinstance(node, ScalarNode) and node.value is None:
            return
        if not isinstance(node, TableNode):
            self.wrong_type(name, node, "a table of keys")
            return
        if len(node.entries) > most:
            message = f"{name} has {len(node.entries)} keys, and at most {most} are read: the others are left out"
            self.error(node.entries[most].place, "too_many", message)
        yield from node.entries[:most]


def _is_number(node: Node) -> bool:
    return isinstance(node, ScalarNode) and isinstance(node.value, int | float)
