"""The domain reads no clock: `now` is an argument. (Imports of clocks and chance are for the import contracts.)"""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import fairwater.domain

CLOCKS = {"now", "utcnow", "today"}
DOMAIN = Path(fairwater.domain.__file__).parent


def clock_reads(source: str) -> list[int]:
    """The lines on which `datetime.now()`, `date.today()` and the like stand, called or handed on."""
    return [
        node.lineno
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Attribute)
        and node.attr in CLOCKS
        and "date" in ast.unparse(node.value).rpartition(".")[2].lower()
    ]


@pytest.mark.parametrize("module", sorted(DOMAIN.rglob("*.py")), ids=lambda path: str(path.relative_to(DOMAIN)))
def test_a_decision_reads_no_clock(module: Path) -> None:
    assert clock_reads(module.read_text()) == [], f"{module}: `now` must be an argument"


@pytest.mark.parametrize(
    "source",
    [
        "datetime.now(UTC)",
        "datetime.datetime.utcnow()",
        "date.today()",
        "def f(clock=datetime.now): ...",
        "field(default_factory=datetime.today)",
    ],
)
def test_a_hidden_clock_is_found(source: str) -> None:
    assert clock_reads(source) == [1]
