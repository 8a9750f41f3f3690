"""Units as types, and how a person writes them."""

from __future__ import annotations

import re
from decimal import Decimal
from typing import NewType

from fairwater.domain.failure import Permanent

Bytes = NewType("Bytes", int)
Seconds = NewType("Seconds", float)

KIB = 1024
MIB = 1024 * KIB
GIB = 1024 * MIB
TIB = 1024 * GIB

_SIZE = re.compile(r"\s*(\d+(?:\.\d+)?)\s*(B|KiB|MiB|GiB|TiB|kB|KB|MB|GB|TB|K|M|G|T)?\s*")
_SIZE_FACTORS = {
    "B": 1, "KiB": KIB, "MiB": MIB, "GiB": GIB, "TiB": TIB, "K": KIB, "M": MIB, "G": GIB, "T": TIB,
    "kB": 10**3, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12,
}  # fmt: skip
_SIZE_END = 1 << 63
_SECONDS_MAX = 10 * 366 * 86400
_TIME = re.compile(r"\s*(\d+(?:\.\d+)?)\s*(ms|s|min|m|h|d)?\s*")
_TIME_FACTORS = {"ms": 0.001, "s": 1, "min": 60, "m": 60, "h": 3600, "d": 86400}


def parse_bytes(text: str | int) -> Bytes:
    """A size as written by a person: `10GiB`, `512 MiB`, `1.5G` (binary), `10GB` (decimal), or bytes as a number.

    Raises:
        Permanent: `bad_size`.
    """
    match = _SIZE.fullmatch(str(text))
    if not match:
        raise Permanent(f"{str(text)[:40]!r} is not a size: write it as 512MiB or 10GiB", code="bad_size")
    size = int(Decimal(match[1]) * _SIZE_FACTORS[match[2] or "B"])
    if size >= _SIZE_END:
        raise Permanent(f"{str(text)[:40]!r} is more than any disk: at most {_SIZE_END - 1} bytes", code="bad_size")
    return Bytes(size)


def parse_seconds(text: str | float) -> Seconds:
    """A duration as written by a person: `90`, `90s`, `15min`, `2h`.

    Raises:
        Permanent: `bad_duration`.
    """
    match = _TIME.fullmatch(str(text))
    if not match:
        raise Permanent(f"{str(text)[:40]!r} is not a duration: write it as 90s, 15min or 2h", code="bad_duration")
    seconds = float(match[1]) * _TIME_FACTORS[match[2] or "s"]
    if seconds > _SECONDS_MAX:
        raise Permanent(f"{str(text)[:40]!r} is longer than ten years", code="bad_duration")
    return Seconds(seconds)


def format_bytes(size: int) -> str:
    """`size` for a person: `512 MiB`, `1.5 GiB`."""
    for factor, unit in ((TIB, "TiB"), (GIB, "GiB"), (MIB, "MiB"), (KIB, "KiB")):
        if size >= factor:
            return f"{size / factor:.1f}".removesuffix(".0") + f" {unit}"
    return f"{size} B"
