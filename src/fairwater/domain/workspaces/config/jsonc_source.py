"""JSON with comments (`//` and `/* */`) and trailing commas, as devcontainer.json is written, into a tree with places.

Decides what is well-formed. Beyond RFC 8259: the comments, one comma before a closing bracket, and raw tabs in strings.
"""

from __future__ import annotations

import re

from fairwater.domain.workspaces.config.node import (
    CHARACTERS_MAX,
    DEPTH_MAX,
    JSON_LINE_END,
    NODES_MAX,
    Broken,
    Document,
    Entry,
    Lines,
    ListNode,
    Node,
    Place,
    Repeated,
    ScalarNode,
    TableNode,
)

_SPACE = re.compile(r"(?:[ \t\r\n]+|//[^\r\n]*|/\*(?s:.*?)\*/)+")
_NUMBER = re.compile(r"-?(?:0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]+)?")
_WORD = re.compile(r"[A-Za-z0-9_$.+-]+")
_PLAIN = re.compile(r'[^"\\\x00-\x08\x0a-\x1f]+')
_WORDS: dict[str, bool | None] = {"true": True, "false": False, "null": None}
_ESCAPES = {'"': '"', "\\": "\\", "/": "/", "b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t"}
_HEX = re.compile(r"[0-9A-Fa-f]{4}")
_DIGITS_MAX = 100
"""A number with more digits is read as a floating-point one: it is no port and no size anyway."""


def read_jsonc(text: str) -> Document:
    """The tree of `text`.

    Raises:
        Broken: what is wrong, and where.
    """
    scanner = _Scanner(text)
    root = scanner.value(1)
    scanner.skip()
    if not scanner.at_end():
        raise scanner.broken("something follows after the end of the configuration: remove it, or a bracket before it")
    return Document(root, tuple(scanner.repeated))


class _Scanner:
    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0
        self._lines = Lines(text, JSON_LINE_END)
        self._nodes = 0
        self._characters = 0
        self.repeated: list[Repeated] = []

    def at_end(self) -> bool:
        return self._at >= len(self._text)

    def place(self) -> Place:
        return self._lines.place(self._at)

    def broken(self, message: str, at: int | None = None) -> Broken:
        return Broken(message, self._lines.place(self._at if at is None else at))

    def skip(self) -> None:
        """Goes past white space and comments."""
        space = _SPACE.match(self._text, self._at)
        if space:
            self._at = space.end()
        if self._text.startswith("/*", self._at):
            raise self.broken("a comment begins here and does not end: close it with */")

    def value(self, depth: int) -> Node:
        self.skip()
        self._nodes += 1
        if depth > DEPTH_MAX:
            raise self.broken(f"brackets are nested deeper than {DEPTH_MAX} levels: nothing here needs that")
        if self._nodes > NODES_MAX:
            raise self.broken(f"there are more than {NODES_MAX} values: shorten the file")
        sign = self._text[self._at : self._at + 1]
        if sign == "{":
            return self._table(depth)
        if sign == "[":
            return self._list(depth)
        place = self.place()
        if sign == '"':
            text = self._string()
            return ScalarNode(text, text, place)
        return self._number_or_word(place)

    def _number_or_word(self, place: Place) -> ScalarNode:
        word = _WORD.match(self._text, self._at)
        written = word[0] if word else self._text[self._at : self._at + 1]
        if written in _WORDS:
            self._at += len(written)
            return ScalarNode(_WORDS[written], written, place)
        number = _NUMBER.fullmatch(written)
        if number is None:
            raise self.broken(_unexpected(written))
        self._at += len(written)
        whole = number[1] is None and number[2] is None and len(written) <= _DIGITS_MAX
        return ScalarNode(int(written) if whole else float(written), written, place)

    def _table(self, depth: int) -> TableNode:
        place = self.place()
        entries: dict[str, Entry] = {}
        self._at += 1
        first = True
        while self._next("}", first=first):
            first = False
            if self._text[self._at : self._at + 1] != '"':
                raise self.broken('a key is expected here, in double quotes, such as "image"')
            key_place = self.place()
            key = self._string()
            self.skip()
            if self._text[self._at : self._at + 1] != ":":
                raise self.broken(f"a colon is expected after the key {key[:40]!r}")
            self._at += 1
            value = self.value(depth + 1)
            before = entries.pop(key, None)
            if before is not None:
                self.repeated.append(Repeated(key, key_place, before.place))
            entries[key] = Entry(key, key_place, value)
        return TableNode(tuple(entries.values()), place)

    def _list(self, depth: int) -> ListNode:
        place = self.place()
        items: list[Node] = []
        self._at += 1
        while self._next("]", first=not items):
            items.append(self.value(depth + 1))
        return ListNode(tuple(items), place)

    def _next(self, close: str, *, first: bool) -> bool:
        """Goes to the next part of a table or list; whether there is one. A comma may stand before `close`."""
        self.skip()
        sign = self._text[self._at : self._at + 1]
        if not first and sign == ",":
            self._at += 1
            self.skip()
            sign = self._text[self._at : self._at + 1]
        elif not first and sign != close:
            found = f"not {sign!r}" if sign else "and the file ends"
            raise self.broken(f"a comma or '{close}' is expected here, {found}")
        if sign == close:
            self._at += 1
            return False
        if not sign:
            raise self.broken(f"the file ends before a closing '{close}'")
        return True

    def _string(self) -> str:
        start = self._at
        self._at += 1
        parts: list[str] = []
        while True:
            plain = _PLAIN.match(self._text, self._at)
            if plain:
                parts.append(plain[0])
                self._at = plain.end()
            sign = self._text[self._at : self._at + 1]
            if sign == '"':
                self._at += 1
                break
            if sign == "\\":
                parts.append(self._escape())
            elif sign in {"", "\n", "\r"}:
                raise self.broken("this text is not closed: end it with a double quote on the same line", start)
            else:
                raise self.broken(
                    f"a text holds the control character U+{ord(sign):04X}: write it as \\u{ord(sign):04x}"
                )
        text = "".join(parts)
        self._characters += len(text)
        if self._characters > CHARACTERS_MAX:
            raise self.broken(f"there are more than {CHARACTERS_MAX} characters in texts: shorten the file", start)
        return text

    def _escape(self) -> str:
        letter = self._text[self._at + 1 : self._at + 2]
        if letter in _ESCAPES:
            self._at += 2
            return _ESCAPES[letter]
        code = self._unicode(self._at)
        if code is None:
            raise self.broken(f"'\\{letter}' is no escape: write a backslash as \\\\")
        if 0xD800 <= code < 0xDC00:
            low = self._unicode(self._at + 6)
            if low is not None and 0xDC00 <= low < 0xE000:
                self._at += 12
                return chr(0x10000 + ((code - 0xD800) << 10) + (low - 0xDC00))
        if 0xD800 <= code < 0xE000:
            raise self.broken("this is one half of a surrogate pair, and no character: write both, or the character")
        self._at += 6
        return chr(code)

    def _unicode(self, at: int) -> int | None:
        r"""The code of `\uXXXX` at `at`."""
        digits = _HEX.match(self._text, at + 2) if self._text.startswith("\\u", at) else None
        return int(digits[0], 16) if digits else None


def _unexpected(written: str) -> str:
    if not written:
        return "the file ends before a value"
    if written == "'":
        return "a text is written in double quotes"
    return f"{written[:40]!r} is no value; a text is written in double quotes"
