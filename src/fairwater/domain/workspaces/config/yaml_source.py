"""YAML into a tree with places.

Decides what of YAML is understood: one document, plain scalars as YAML 1.2's core schema has them (so that `on`, `yes`
and `12:30` are texts), anchors, aliases and merge keys. Built from the parser's events, so that nothing is constructed
and no nesting or alias can cost more than the tree's bounds.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

import yaml

from fairwater.domain.workspaces.config.node import (
    CHARACTERS_MAX,
    DEPTH_MAX,
    NODES_MAX,
    YAML_LINE_END,
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
from fairwater.domain.workspaces.config.yaml_errors import Marks, explain_yaml

_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_UNPRINTABLE = re.compile("[^\t\n\r\x20-\x7e\x85\xa0-\ud7ff\ue000-\ufefe\uff00-\ufffd\U00010000-\U0010ffff]")
_NULL = {"", "~", "null", "Null", "NULL"}
_TRUE = {"true", "True", "TRUE"}
_FALSE = {"false", "False", "FALSE"}
_INTEGER = re.compile(r"[-+]?[0-9]{1,100}|0o[0-7]{1,100}|0x[0-9a-fA-F]{1,100}")
_FLOAT = re.compile(r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?")
_PREFIX = "tag:yaml.org,2002:"
_PLAIN_TAGS = {_PREFIX + name for name in ("null", "bool", "int", "float", "seq", "map")}


@dataclass(frozen=True, slots=True)
class _Built:
    """A finished node, and what it counts with all that is below it: an alias to it counts the same once more.

    `merges`: as a key, it is the merge key.
    """

    node: Node
    nodes: int
    height: int
    characters: int
    merges: bool = False


@dataclass(slots=True)
class _Open:
    """A list or table whose end has not been read."""

    place: Place
    table: bool
    anchor: str | None
    built: list[_Built] = field(default_factory=list)


def read_yaml(text: str) -> Document:
    """The tree of `text`.

    Raises:
        Broken: what is wrong, and where.
    """
    bad = _UNPRINTABLE.search(text)
    if bad:
        place = Lines(text, YAML_LINE_END).place(bad.start())
        raise Broken(f"the control character U+{ord(bad[0]):04X} cannot stand in YAML: remove it", place)
    marks = Marks(text)
    builder = _Builder(marks)
    try:
        for event in _events(text):
            builder.take(event)
    except yaml.MarkedYAMLError as error:
        # What is not closed shows only at the end of the file: what is of use is where it begins.
        open_ended = "end of stream" in (error.problem or "") and error.context_mark
        place = marks.place(open_ended or error.problem_mark or error.context_mark)
        raise Broken(explain_yaml(error, marks.sign(place)), place) from None
    except yaml.YAMLError as error:
        raise Broken(f"this is not YAML: {' '.join(str(error).split())[:200]}", Place(1, 1)) from None
    return Document(builder.root, tuple(builder.repeated))


def _events(text: str) -> Iterator[yaml.Event]:
    yield from yaml.parse(text, Loader=_LOADER)


class _Builder:
    def __init__(self, marks: Marks) -> None:
        self._marks = marks
        self.root: Node | None = None
        self.repeated: list[Repeated] = []
        self._open: list[_Open] = []
        self._anchors: dict[str, _Built] = {}
        self._documents = 0
        self._nodes = 0
        self._characters = 0

    def take(self, event: yaml.Event) -> None:
        place = self._marks.place(event.start_mark)
        match event:
            case yaml.DocumentStartEvent():
                self._documents += 1
                if self._documents > 1:
                    raise Broken("a second document begins here: a configuration is one; remove the line '---'", place)
            case yaml.AliasEvent():
                self._alias(event.anchor or "", place)
            case yaml.ScalarEvent():
                _check_tag(event.tag, place)
                scalar = _scalar(event, place)
                merges = event.implicit[0] and scalar.text == "<<"
                self._add(_Built(scalar, 1, 1, len(scalar.text), merges), event.anchor)
            case yaml.SequenceStartEvent() | yaml.MappingStartEvent():
                _check_tag(event.tag, place)
                if len(self._open) >= DEPTH_MAX:
                    raise Broken(f"this is nested deeper than {DEPTH_MAX} levels: nothing here needs that", place)
                self._open.append(_Open(place, isinstance(event, yaml.MappingStartEvent), event.anchor))
            case yaml.SequenceEndEvent() | yaml.MappingEndEvent():
                self._close()

    def _alias(self, anchor: str, place: Place) -> None:
        built = self._anchors.get(anchor)
        if built is None:
            raise Broken(f"'*{anchor[:40]}' names no anchor that ends before it: write '&{anchor[:40]}' there", place)
        if len(self._open) + built.height > DEPTH_MAX:
            raise Broken(f"this is nested deeper than {DEPTH_MAX} levels: nothing here needs that", place)
        self._add(built, None, place)

    def _add(self, built: _Built, anchor: str | None, place: Place | None = None) -> None:
        at = place or built.node.place
        if place is not None or isinstance(built.node, ScalarNode):
            self._nodes += built.nodes
            self._characters += built.characters
        else:
            self._nodes += 1
        if self._nodes > NODES_MAX or self._characters > CHARACTERS_MAX:
            raise Broken(
                f"up to here there are more than {NODES_MAX} values or {CHARACTERS_MAX} characters, with every alias "
                "counted as what it stands for: shorten the file",
                at,
            )
        if anchor is not None:
            self._anchors[anchor] = built
        if self._open:
            self._open[-1].built.append(built)
        else:
            self.root = built.node

    def _close(self) -> None:
        opened = self._open.pop()
        nodes = 1 + sum(built.nodes for built in opened.built)
        characters = sum(built.characters for built in opened.built)
        height = 1 + max((built.height for built in opened.built), default=0)
        node = self._table(opened) if opened.table else ListNode(tuple(b.node for b in opened.built), opened.place)
        self._add(_Built(node, nodes, height, characters), opened.anchor)

    def _table(self, opened: _Open) -> TableNode:
        own: dict[str, Entry] = {}
        merged: dict[str, Entry] = {}
        for key, value in zip(opened.built[::2], opened.built[1::2], strict=True):
            if not isinstance(key.node, ScalarNode):
                raise Broken("a key is a word here, not a list or a table", key.node.place)
            if key.merges:
                for entry in _merge(value.node):
                    merged.setdefault(entry.key, entry)
                continue
            before = own.pop(key.node.text, None)
            if before is not None:
                self.repeated.append(Repeated(before.key, key.node.place, before.place))
            own[key.node.text] = Entry(key.node.text, key.node.place, value.node)
        # What is written in the table itself wins over what is merged into it.
        entries = (*own.values(), *(entry for name, entry in merged.items() if name not in own))
        self._nodes += len(entries) - len(own)
        return TableNode(entries, opened.place)


def _merge(node: Node) -> Iterator[Entry]:
    if isinstance(node, TableNode):
        yield from node.entries
    elif isinstance(node, ListNode) and all(isinstance(item, TableNode) for item in node.items):
        for item in node.items:
            yield from _merge(item)
    else:
        raise Broken("'<<' merges a table, or a list of tables, such as <<: *name", node.place)


def _check_tag(tag: str | None, place: Place) -> None:
    if tag is not None and tag != "!" and tag != _PREFIX + "str" and tag not in _PLAIN_TAGS:
        shown = tag.removeprefix(_PREFIX)[:40]
        raise Broken(f"the tag {shown!r} asks for more than plain values: leave it out", place)


def _scalar(event: yaml.ScalarEvent, place: Place) -> ScalarNode:
    text: str = event.value
    plain = event.tag in _PLAIN_TAGS if event.tag else event.implicit[0]
    return ScalarNode(_plain_value(text) if plain else text, text, place)


def _plain_value(text: str) -> str | int | float | bool | None:
    if text in _NULL:
        return None
    if text in _TRUE or text in _FALSE:
        return text in _TRUE
    if _INTEGER.fullmatch(text):
        return int(text, {"0o": 8, "0x": 16}.get(text[:2], 10))
    if len(text) <= 100 and _FLOAT.fullmatch(text):
        return float(text)
    return text
