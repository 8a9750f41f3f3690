"""YAML and JSON with comments: the tree, its places, and what is refused."""

from __future__ import annotations

import time
from contextlib import suppress

import pytest

from fairwater.domain.workspaces.config.jsonc_source import read_jsonc
from fairwater.domain.workspaces.config.node import Broken, ListNode, Node, Place, TableNode
from fairwater.domain.workspaces.config.yaml_source import read_yaml


def plain(node: Node | None) -> object:
    if isinstance(node, TableNode):
        return {entry.key: plain(entry.value) for entry in node.entries}
    if isinstance(node, ListNode):
        return [plain(item) for item in node.items]
    return node.value if node else None


@pytest.mark.parametrize(
    ("text", "value"),
    [("[yes, no, on, off, y]", ["yes", "no", "on", "off", "y"]),
     ("[true, False, ~, null, '']", [True, False, None, None, ""]),
     ("[1, 0x10, 0o10, 010, -3, +4]", [1, 16, 8, 10, -3, 4]),
     ("[1.5, .5, 1e3, '1', 1_000]", [1.5, 0.5, 1e3, "1", "1_000"]),
     ("[12:30, 2020-01-01, 1.2.3]", ["12:30", "2020-01-01", "1.2.3"]), ("!!str 1", "1"), ("! 1", "1"), ("!!int 1", 1),
     ("{a: &x {b: 1}, c: {<<: *x, d: 2}}", {"a": {"b": 1}, "c": {"d": 2, "b": 1}}),
     ("{a: {<<: [{x: 1}, {x: 2, y: 3}], y: 4}}", {"a": {"y": 4, "x": 1}}), ("%YAML 1.2\n---\na: 1\n...\n", {"a": 1}),
     ("a: |\n  x\n   y\n", {"a": "x\n y\n"}), ("{3: a, true: b}", {"3": "a", "true": "b"})],
)  # fmt: skip
def test_yaml_is_read_as_its_core_schema_has_it(text: str, value: object) -> None:
    assert plain(read_yaml(text).root) == value


@pytest.mark.parametrize(
    ("text", "line", "column", "said"),
    [("a: [1\nb: 2", 2, 2, "closed"), ("a:\n\t- b", 2, 1, "a tab"), ("a: 1\n b: 2", 2, 3, "not allowed"),
     ("a: 'x\n\n\n", 1, 4, "close what begins here"), ("a: @b", 1, 4, "in quotes"), ("a: *b", 1, 4, "names no anchor"),
     ("a: &b [*b]", 1, 8, "names no anchor"), ("a: !ruby/object x", 1, 4, "tag"),
     ("a: !!python/object:os.system x", 1, 4, "tag"),
     ("a: 1\n---\nb: 1", 2, 1, "second document"), ("é: x\u0001", 1, 5, "U+0001"), ("[a]: 1", 1, 1, "a key"),
     ("<<: 3", 1, 5, "merges a table"), ("a: b: c", 1, 5, "not allowed"), ("{", 1, 2, "closed")],
)  # fmt: skip
def test_broken_yaml_says_where_and_what_to_do(text: str, line: int, column: int, said: str) -> None:
    with pytest.raises(Broken) as raised:
        read_yaml(text)
    assert raised.value.place == Place(line, column)
    assert said in raised.value.message


@pytest.mark.parametrize(
    ("text", "value"),
    [('{"a": 1, /* c */ "b": [1, 2,], // d\n}', {"a": 1, "b": [1, 2]}), ('"\\u00e9\\ud83d\\ude00\\/\\t"', "é😀/\t"),
     ('// only\n"x // no /* comment */"', "x // no /* comment */"), ('"a\tb"', "a\tb"), ("[]", []), ("{}", {}),
     ("-0.5e+2", -50.0), ("[1//\n]", [1]), ("/**/1/***/", 1), ('{"a":null}', {"a": None})],
)  # fmt: skip
def test_json_with_comments_is_read(text: str, value: object) -> None:
    assert plain(read_jsonc(text).root) == value


@pytest.mark.parametrize(
    ("text", "line", "column"),
    [("", 1, 1), ("{", 1, 2), ("[1 2]", 1, 4), ("[1[2]]", 1, 3), ("{'a': 1}", 1, 2), ('{"a" 1}', 1, 6), ("[,]", 1, 2),
     ("[1,,2]", 1, 4), ("[01]", 1, 2), ("[+1]", 1, 2), ("[1.]", 1, 2), ("[NaN]", 1, 2), ('["a\nb"]', 1, 2),
     ('"\\x"', 1, 2),
     ('"\\ud800"', 1, 2), ('"\\udc00"', 1, 2), ('"\\u12"', 1, 2), ("1 2", 1, 3), ("{}\n}", 2, 1), ("/* x", 1, 1),
     ('{"a": tru}', 1, 7), ('{,}', 1, 2), ('"a\u0001"', 1, 3), ("[1}", 1, 3), ("\ufeff1", 1, 1), ("{}[", 1, 3)],
)  # fmt: skip
def test_broken_json_says_where(text: str, line: int, column: int) -> None:
    with pytest.raises(Broken) as raised:
        read_jsonc(text)
    assert raised.value.place == Place(line, column)


def test_an_alias_bomb_is_refused_at_once() -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 40)]
    before = time.process_time()
    with pytest.raises(Broken, match="alias"):
        read_yaml("\n".join(lines))
    assert time.process_time() - before < 1


def test_an_alias_of_a_long_text_counts_as_often_as_it_is_used() -> None:
    with pytest.raises(Broken, match="alias"):
        read_yaml(f"a: &a {'x' * 10_000}\nb: [{', '.join(['*a'] * 200)}]")


def test_merging_again_and_again_is_bounded() -> None:
    table = ", ".join(f"k{n}: 1" for n in range(500))
    lines = [f"m0: &m0 {{{table}}}"] + [f"m{n}: &m{n} {{<<: *m{n - 1}, x{n}: 1}}" for n in range(1, 200)]
    with pytest.raises(Broken, match="alias"):
        read_yaml("\n".join(lines))


@pytest.mark.parametrize("text", ["[" * 100_000, "{a: " * 60_000, "- " * 100_000, "? " * 100_000, '{"a":' * 50_000])
def test_deep_nesting_is_refused_at_its_place_and_quickly(text: str) -> None:
    before = time.process_time()
    for read in (read_yaml, read_jsonc):
        with pytest.raises(Broken):
            read(text)
    assert time.process_time() - before < 2


@pytest.mark.parametrize(
    "text",
    ["a:\n" * 80_000, "{}" * 100_000, "'" * 200_000, '"' * 200_000, "&a " * 80_000, "|\n" * 100_000, "[a: b, " * 30_000,
     "\n" * 250_000, "// x\n" * 50_000, "/* " * 80_000, "[" + "1," * 120_000, "9" * 250_000, "%TAG ! a\n" * 20_000],
)  # fmt: skip
def test_hostile_text_costs_little(text: str) -> None:
    before = time.process_time()
    for read in (read_yaml, read_jsonc):
        with suppress(Broken):
            read(text)
    assert time.process_time() - before < 2


def test_a_missing_comma_is_told_as_what_is_missing() -> None:
    with pytest.raises(Broken) as broken:
        read_jsonc('{ "image": "a"\n  "remoteUser": "b" }')
    assert "a comma or '}' is expected here, not '\"'" in str(broken.value)
