from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fairwater.domain.failure import Permanent
from fairwater.domain.ids import ID_ALPHABET, parse_name, parse_workspace_id, workspace_id

HOSTILE = ["", "a" * 64, "-rf", ".hidden", "_x", "a b", "a/b", "../x", "a\n", "a\x00b", "ä", "a;b", "$(id)", "名前"]


@given(st.binary(min_size=12, max_size=12))
def test_every_id_is_a_dns_label_that_begins_with_a_letter_and_parses(random: bytes) -> None:
    made = workspace_id(random)
    assert re.fullmatch(r"[a-z][a-z0-9]{11}", made)
    assert not set(made) & set("lo01")
    assert parse_workspace_id(made) == made


@pytest.mark.parametrize("size", [0, 11, 13])
def test_an_id_from_the_wrong_number_of_bytes_is_a_bug(size: int) -> None:
    with pytest.raises(ValueError, match="12 random bytes"):
        workspace_id(bytes(size))


def test_the_alphabet_has_32_different_signs_and_its_first_24_are_letters() -> None:
    assert len(set(ID_ALPHABET)) == len(ID_ALPHABET) == 32
    assert ID_ALPHABET[:24].isalpha()


@given(st.lists(st.binary(min_size=12, max_size=12), min_size=2, max_size=2, unique=True))
def test_ids_keep_5_bits_of_each_byte_but_the_first(pair: list[bytes]) -> None:
    first, second = (workspace_id(random) for random in pair)
    same_tail = all(a % 32 == b % 32 for a, b in zip(pair[0][1:], pair[1][1:], strict=True))
    assert (first[1:] == second[1:]) == same_tail


@pytest.mark.parametrize(
    "text", [*HOSTILE, "1bcdefghijkm", "abcdefghijk", "ABCDEFGHIJKM", "abcdefghijkm\n", "abcdefghijkmn"]
)
def test_what_is_no_id_is_refused_by_name(text: str) -> None:
    with pytest.raises(Permanent) as refusal:
        parse_workspace_id(text)
    assert refusal.value.code == "bad_id"


@pytest.mark.parametrize("text", ["a", "9", "My-Work.space_1", "x" * 63])
def test_a_name_of_plain_signs_is_taken_as_it_is(text: str) -> None:
    assert parse_name(text) == text


@pytest.mark.parametrize("text", HOSTILE)
def test_a_hostile_name_is_refused_with_what_a_name_may_hold(text: str) -> None:
    with pytest.raises(Permanent, match="letters, digits") as refusal:
        parse_name(text)
    assert refusal.value.code == "bad_name"
    assert len(refusal.value.message) < 400


@given(st.text(max_size=80))
def test_whatever_passes_as_a_name_is_safe_in_a_path_and_a_command_line(text: str) -> None:
    try:
        name = parse_name(text)
    except Permanent:
        return
    assert re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name)
    assert name.isascii()
