"""The tools behind the Makefile: what they count, and what they tell."""

from __future__ import annotations

import os
import runpy
import subprocess
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

TOOLS = Path(__file__).parent.parent.parent / "tools"
CHECKS: dict[str, Any] = runpy.run_path(str(TOOLS / "checks.py"))
PM: dict[str, Any] = runpy.run_path(str(TOOLS / "pm.py"))

REPORT = """<testsuites><testsuite>
  <testcase classname="tests.a" name="test_fine"/>
  <testcase classname="tests.a" name="test_broken"><failure message="assert 0">…</failure></testcase>
  <testcase classname="tests.a" name="test_leaks"/>
  <testcase classname="tests.a" name="test_leaks"><error message="left behind">…</error></testcase>
  <testcase classname="" name="tests.b"><error message="collection failure">…</error></testcase>
  <testcase classname="tests.c" name="test_away"><skipped type="pytest.skip" message="needs root">…</skipped></testcase>
</testsuite></testsuites>"""


def test_the_summary_lists_what_was_skipped_and_ends_with_the_counts_alone_on_a_line() -> None:
    outcome = CHECKS["Outcome"]()
    CHECKS["read_report"](ElementTree.fromstring(REPORT), outcome)
    lines = CHECKS["summarise"](outcome).splitlines()
    assert lines[-1] == "1 passed, 3 failed, 1 skipped"
    assert "  tests.c::test_away: needs root" in lines
    assert lines.index("Skipped:") < lines.index("Failed:") < len(lines) - 1


def test_a_row_is_done_only_with_both_a_check_and_a_sabotage() -> None:
    rows = PM["read_rows"]()
    PM["fill"](
        rows,
        [
            {"row": 15, "sabotage": False, "test": "tests/x.py::test_holds[a]"},
            {"row": 15, "sabotage": False, "test": "tests/x.py::test_holds[b]"},
            {"row": 15, "sabotage": True, "test": "tests/x.py::test_blind"},
            {"row": 16, "sabotage": True, "test": "tests/x.py::test_blind"},
        ],
    )
    assert (rows[14].state, rows[15].state, rows[16].state) == ("open", "done", "half")
    assert rows[15].checks == ["tests/x.py::test_holds"]


def test_every_row_of_the_post_mortem_has_a_title() -> None:
    rows = PM["read_rows"]()
    assert sorted(rows) == list(range(1, 54))
    assert all(0 < len(row.title) <= 80 for row in rows.values())


@pytest.mark.parametrize("script", [*sorted(TOOLS.glob("*.sh")), TOOLS.parent / ".ci/run"], ids=lambda path: path.name)
def test_every_script_is_understood_by_bash(script: Path) -> None:
    run = subprocess.run(["bash", "-n", script], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert script.name == "say.sh" or os.access(script, os.X_OK)


def test_an_unknown_benchmark_is_refused_with_the_names_there_are() -> None:
    run = subprocess.run(["bash", TOOLS / "bench.sh", "nonsense"], capture_output=True, text=True, check=False)
    assert run.returncode != 0
    assert "there is no benchmark 'nonsense'; there are:" in run.stderr
