"""Configuration files: whatever their bytes are, reading them ends well, and what is said of them can be found."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
from collections.abc import Mapping
from typing import Any

import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st

from fairwater.domain.workspaces.config import expand, read_configuration
from fairwater.domain.workspaces.config.jsonc_source import read_jsonc
from fairwater.domain.workspaces.config.node import Broken, ListNode, Node, ScalarNode, TableNode
from fairwater.domain.workspaces.config.paths import BadFolder, below_workspace
from fairwater.domain.workspaces.config.variables import quote, shell_word
from fairwater.domain.workspaces.config.yaml_source import read_yaml

GITPOD, DEVCONTAINER = ".gitpod.yml", ".devcontainer.json"
_WORDS = (
    "image tasks ports additionalRepositories checkoutLocation workspaceLocation vscode init before command env name "
    "port visibility onOpen url protocol containerEnv remoteEnv remoteUser containerUser workspaceFolder "
    "workspaceMount onCreateCommand postStartCommand forwardPorts appPort portsAttributes hostRequirements "
    "cpus memory gpu features file overrideCommand 3000 3000-3010 << userEnvProbe label onAutoForward "
    "initializeCommand unknwon"
)
_KEYS = _WORDS.split()
_PIECES = [
    *_KEYS, "{", "}", "[", "]", ",", ": ", "- ", "\n", "\r\n", "  ", "\t", '"', "'", "|", ">", "&a ", "*a", "<<: ",
    "!x ", "#", "//", "/*", "*/", "\\", "\0", "\ufeff", "é", "😀", "\u2028", "---\n", "...", "? ", "%YAML", "..", "/",
    "\ud7ff", "~", "true", "null", "3000", "1e9", "-", "\x85", "${containerEnv:A}",
]  # fmt: skip
_TELLING = ["3000-4000", "public", "/workspace/x", "../x", "a:b", "8gb", "https://x.org/a/b", "${localEnv:A:b}", "x'y"]
_SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(-(10**30), 10**30), st.floats(allow_nan=False, allow_infinity=False),
    st.text(), st.sampled_from(_TELLING),
)  # fmt: skip
_VALUES: st.SearchStrategy[Any] = st.recursive(
    _SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(_KEYS) | st.text(), inner, max_size=6),
    max_leaves=30,
)
_TABLES = st.dictionaries(st.sampled_from(_KEYS) | st.text(max_size=8), _VALUES, max_size=10)


def _lines(path: str, content: bytes) -> list[str]:
    """The lines as the format has them: YAML knows more signs that end one."""
    ends = "\r\n|[\n\r\x85\u2028\u2029]" if path == GITPOD else "\r\n|[\n\r]"
    return re.split(ends, content.removeprefix(b"\xef\xbb\xbf").decode(errors="replace"))


def check(path: str, content: bytes) -> None:
    """What holds of every reading."""
    wanted = read_configuration({path: content}, "shop")
    assert wanted.file == path
    lines = _lines(path, content)
    for notice in wanted.notices:
        assert notice.file == path
        assert notice.code
        if notice.code == "too_many_problems":
            continue
        assert notice.line is not None
        assert notice.column is not None
        assert 1 <= notice.line <= len(lines)
        assert 1 <= notice.column <= len(lines[notice.line - 1]) + 1
        notice.message.encode()
    assert ".." not in wanted.checkout.split("/")
    assert ".." not in wanted.folder.split("/")
    assert not wanted.folder.startswith("/") or wanted.folder.startswith("/workspace")
    for rule in wanted.ports:
        assert 1 <= rule.first <= rule.last <= 65535
    for task in wanted.tasks:
        assert "\0" not in task.script
        assert len(task.script.encode()) <= 64 * 1024
        assert task.marker is None or re.fullmatch("/workspace/.fairwater/tasks/[0-9a-f]{16}", task.marker)
    for name, value in (*wanted.container_environment, *wanted.remote_environment):
        assert re.fullmatch("[A-Za-z_][A-Za-z0-9_]*", name)
        assert "\0" not in value


@pytest.mark.parametrize("path", [GITPOD, DEVCONTAINER])
class TestAnything:
    @given(content=st.binary(max_size=400))
    @example(content=b"\xef\xbb\xbf\xc3\xa9\xff")
    @example(content=b"a: \xc2\x85- b: [")
    def test_bytes(self, path: str, content: bytes) -> None:
        check(path, content)

    @given(pieces=st.lists(st.sampled_from(_PIECES), max_size=40))
    @settings(max_examples=400)
    def test_text_that_looks_like_a_configuration(self, path: str, pieces: list[str]) -> None:
        check(path, "".join(pieces).encode())

    @given(table=_TABLES)
    @settings(max_examples=300)
    def test_tables_with_known_keys_and_any_values(self, path: str, table: dict[str, Any]) -> None:
        check(path, json.dumps(table, ensure_ascii=False).encode(errors="replace"))


@given(files=st.dictionaries(st.text() | st.sampled_from([GITPOD, DEVCONTAINER, ".devcontainer/a/devcontainer.json"]),
                             st.binary(max_size=50), max_size=5), repository=st.text(max_size=20))  # fmt: skip
def test_no_set_of_files_raises(files: Mapping[str, bytes], repository: str) -> None:
    read_configuration(files, repository)


def plain(node: Node | None) -> object:
    if isinstance(node, TableNode):
        return {entry.key: plain(entry.value) for entry in node.entries}
    if isinstance(node, ListNode):
        return [plain(item) for item in node.items]
    return node.value if node else None


@given(value=_VALUES, indent=st.none() | st.integers(0, 3), ascii_only=st.booleans())
@settings(max_examples=300)
def test_of_valid_json_the_same_is_read_as_by_json(value: object, indent: int | None, ascii_only: bool) -> None:
    text = json.dumps(value, indent=indent, ensure_ascii=ascii_only)
    assert plain(read_jsonc(text).root) == json.loads(text)


@given(text=st.text(alphabet='{}[]",:0123456789.eE+-truefalsn \n\\u', max_size=30))
@settings(max_examples=500)
def test_what_json_reads_is_read_the_same_and_what_is_refused_json_refuses(text: str) -> None:
    try:
        mine = plain(read_jsonc(text).root)
    except Broken:
        with pytest.raises(ValueError):
            json.loads(text)
        return
    try:
        assert mine == json.loads(text)
    except json.JSONDecodeError:
        assert "," in text or "/" in text  # a trailing comma or a comment


@given(value=_VALUES)
@settings(max_examples=200)
def test_of_written_yaml_the_texts_and_the_shape_are_kept(value: object) -> None:
    text = yaml.safe_dump(value)
    root = read_yaml(text).root
    assert root is not None
    assert _shape(root) == _shape_of(value)


def _shape(node: Node) -> object:
    if isinstance(node, TableNode):
        return {entry.key: _shape(entry.value) for entry in node.entries}
    if isinstance(node, ListNode):
        return [_shape(item) for item in node.items]
    return node.value if isinstance(node.value, str | bool | None) else "number"


def _shape_of(value: object) -> object:
    if isinstance(value, dict):
        return {key: _shape_of(one) for key, one in value.items()}
    if isinstance(value, list):
        return [_shape_of(one) for one in value]
    return value if isinstance(value, str | bool | None) else "number"


@given(text=st.text(alphabet="abc./-~ workspace\\\n", max_size=30) | st.text())
def test_a_folder_that_is_let_through_is_below_workspace(text: str) -> None:
    try:
        folder = below_workspace(text)
    except BadFolder:
        return
    assert all(part not in {"", ".", "..", ".git"} for part in folder.split("/")) or folder == ""
    assert below_workspace(folder) == folder


@given(words=st.lists(st.text(alphabet=st.characters(exclude_characters="\0", exclude_categories=["Cs"])), max_size=5))
def test_quoted_words_are_one_word_each(words: list[str]) -> None:
    assert shlex.split(" ".join(quote(word) for word in words)) == words


@given(
    words=st.lists(
        st.text(alphabet="ab'\"$`\\ {}:\n*", max_size=12) | st.just("x${containerEnv:V}'$V"), min_size=1, max_size=4
    )
)
@settings(max_examples=60, deadline=None)
def test_a_shell_sees_the_words_of_a_list_as_written(words: list[str]) -> None:
    line = "printf '%s\\0' " + " ".join(shell_word(word) for word in words)
    seen = subprocess.run(["sh", "-c", line], env={"V": "a 'b"}, capture_output=True, check=True).stdout
    assert seen.decode().split("\0")[:-1] == [word.replace("${containerEnv:V}", "a 'b") for word in words]


@given(
    value=st.text(alphabet="${}containerEnv:AB x") | st.text(),
    environment=st.dictionaries(st.sampled_from("AB"), st.text()),
)
def test_expand_leaves_what_names_no_variable(value: str, environment: dict[str, str]) -> None:
    result = expand(value, environment)
    if "${containerEnv:" not in value:
        assert result == value


def test_a_number_of_any_length_is_read() -> None:
    assert isinstance(read_jsonc("9" * 5000).root, ScalarNode)
    assert isinstance(read_yaml("9" * 5000).root, ScalarNode)
