from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fairwater.domain.failure import Permanent
from fairwater.domain.units import GIB, KIB, MIB, TIB, format_bytes, parse_bytes, parse_seconds


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("0", 0),
        (512, 512),
        ("512B", 512),
        ("10GiB", 10 * GIB),
        (" 512 MiB ", 512 * MIB),
        ("1.5G", GIB + GIB // 2),
        ("10GB", 10 * 10**9),
        ("2kB", 2000),
        ("2K", 2 * KIB),
        ("1TiB", TIB),
    ],
)
def test_a_size_is_read_as_people_write_it(text: str | int, size: int) -> None:
    assert parse_bytes(text) == size


@pytest.mark.parametrize(
    "text", ["", "GiB", "-1", "1e3", "10 gib", "1,5G", "10GiB10", "0x10", "nan", "inf", "1.", ".5G"]
)
def test_what_is_no_size_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(Permanent, match="512MiB") as refusal:
        parse_bytes(text)
    assert refusal.value.code == "bad_size"


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("90", 90),
        (90, 90),
        (1.5, 1.5),
        ("90s", 90),
        ("15min", 900),
        ("15m", 900),
        ("2h", 7200),
        ("1d", 86400),
        ("250ms", 0.25),
    ],
)
def test_a_duration_is_read_as_people_write_it(text: str | float, seconds: float) -> None:
    assert parse_seconds(text) == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["", "s", "-1s", "1 hour", "1h30m", "nan", "inf", "1e3"])
def test_what_is_no_duration_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(Permanent, match="15min") as refusal:
        parse_seconds(text)
    assert refusal.value.code == "bad_duration"


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (KIB, "1 KiB"),
        (512 * MIB, "512 MiB"),
        (GIB * 3 // 2, "1.5 GiB"),
        (2 * TIB, "2 TiB"),
    ],
)
def test_a_size_is_written_for_people(size: int, text: str) -> None:
    assert format_bytes(size) == text


@given(st.integers(0, 2**50))
def test_a_written_size_reads_back_within_its_rounding(size: int) -> None:
    assert parse_bytes(format_bytes(size)) == pytest.approx(size, rel=0.06, abs=1)
