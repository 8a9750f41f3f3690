"""Which file counts, and what is said of those that cannot be read."""

from __future__ import annotations

import pytest
from tests.domain.config.reading import DEVCONTAINER, GITPOD, messages, noticed

from fairwater.domain.workspaces.config import CANDIDATES, FILE_BYTES_MAX, read_configuration

_DEVCONTAINERS = (
    DEVCONTAINER,
    ".devcontainer.json",
    ".devcontainer/a/devcontainer.json",
    ".devcontainer/b/devcontainer.json",
)


def test_no_file_asks_for_nothing_and_says_nothing() -> None:
    wanted = read_configuration({"README.md": b"x", ".devcontainer/a/b/devcontainer.json": b"{}"}, "shop")
    assert (wanted.file, wanted.notices) == (None, ())


@pytest.mark.parametrize("first", range(5))
def test_the_first_in_the_order_counts_and_the_others_are_told(first: int) -> None:
    order = (GITPOD, *_DEVCONTAINERS)
    files = {path: b"image: x" if path == GITPOD else b'{"image": "x"}' for path in reversed(order[first:])}
    wanted = read_configuration(files, "shop")
    assert (wanted.file, wanted.image) == (order[first], "x")
    assert [(str(one.level), one.code, one.file) for one in wanted.notices] == [
        ("info", "passed_over", other) for other in order[first + 1 :]
    ]


def test_a_misnamed_file_is_not_read_and_is_told() -> None:
    wanted = read_configuration({".gitpod.yaml": b"image: x"}, "shop")
    assert wanted.image is None
    assert messages(wanted) == ".gitpod.yaml:1:1: .gitpod.yaml is not read: rename it to .gitpod.yml"
    assert ".gitpod.yaml" in CANDIDATES


def test_a_broken_file_does_not_let_another_count_in_its_place() -> None:
    wanted = read_configuration({GITPOD: b"image: [", DEVCONTAINER: b'{"image": "x"}'}, "shop")
    assert (wanted.file, wanted.image) == (GITPOD, None)
    assert [notice.code for notice in wanted.notices] == ["broken_yaml", "passed_over"]


@pytest.mark.parametrize("path", [GITPOD, DEVCONTAINER])
def test_a_file_that_is_too_large_is_not_read(path: str) -> None:
    wanted = read_configuration({path: b" " * (FILE_BYTES_MAX + 1)}, "shop")
    assert [one[0] for one in noticed(wanted)] == ["error"]
    assert "256 KiB" in messages(wanted)


@pytest.mark.parametrize(
    ("content", "line", "column"),
    [(b"\xff", 1, 1), (b"a: \xc3\xa9\xff", 1, 5), (b"a\r\nb\r\n\xe4x", 3, 1), (b"\xef\xbb\xbfab\xc3", 1, 3),
     ("image: é".encode("utf-16"), 1, 1), (b"\xef\xbb\xbf\xc3\xa9\xc3", 1, 2)],
)  # fmt: skip
def test_what_is_not_utf_8_is_told_with_its_place(content: bytes, line: int, column: int) -> None:
    (notice,) = read_configuration({GITPOD: content}, "shop").notices
    assert (notice.line, notice.column) == (line, column)
    assert "UTF-8" in notice.message


@pytest.mark.parametrize("path", [GITPOD, DEVCONTAINER])
def test_a_byte_order_mark_and_windows_lines_change_nothing(path: str) -> None:
    text = (
        "image: x\r\ntasks:\r\n  - command: |\r\n      a\r\n      b\r\n"
        if path == GITPOD
        else '{\r\n"image": "x",\r\n"k": 1}'
    )
    wanted = read_configuration({path: b"\xef\xbb\xbf" + text.encode()}, "shop")
    assert (wanted.image, wanted.image_line) == ("x", 1 if path == GITPOD else 2)
    if path == GITPOD:
        assert "\r" not in wanted.tasks[0].script
    else:
        assert noticed(wanted) == [("warning", "unknown_key", 3, 1)]


@pytest.mark.parametrize("content", [b"", b"# nothing\n", b"---\n", b"\xef\xbb\xbf"])
def test_an_empty_yaml_file_is_told(content: bytes) -> None:
    assert [one[:2] for one in noticed(read_configuration({GITPOD: content}, "shop"))] == [("info", "empty")]


@pytest.mark.parametrize("path", [GITPOD, DEVCONTAINER])
def test_a_root_that_is_no_table_is_an_error(path: str) -> None:
    wanted = read_configuration({path: b'["a"]'}, "shop")
    assert noticed(wanted) == [("error", "wrong_type", 1, 1)]


def test_a_key_written_twice_is_told_with_both_places_and_the_last_counts() -> None:
    wanted = read_configuration({GITPOD: b"image: a\nports: []\nimage: b\n"}, "shop")
    assert wanted.image == "b"
    assert noticed(wanted) == [("warning", "duplicate_key", 3, 1)]
    assert "line 1, column 1" in messages(wanted)
    wanted = read_configuration({DEVCONTAINER: b'{"image": "a",\n "image": "b"}'}, "shop")
    assert (wanted.image, noticed(wanted)) == ("b", [("warning", "duplicate_key", 2, 2)])


def test_a_hostile_path_keeps_its_notice_on_one_line_of_its_own() -> None:
    wanted = read_configuration({GITPOD: b"image: x", ".devcontainer/a\nb/devcontainer.json": b"{}"}, "shop")
    assert "\n" not in wanted.notices[0].message
