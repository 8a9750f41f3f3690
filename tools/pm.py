"""Prints the rows of the post-mortem with the checks and sabotages that exist for each.

    pm.py            a table for people
    pm.py --json     an array of {row, part, title, state, checks, sabotages}

A row is `done` with at least one check and one sabotage, `half` with only one of the two, else `open`. What exists is
asked of pytest, which collects the tests and writes down their `pm` marks (`tests/conftest.py`).
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import tomllib
from dataclasses import asdict, dataclass, field
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parent.parent
ROWS = Path(__file__).with_name("pm_rows.toml")


@dataclass(slots=True)
class Row:
    row: int
    part: str
    title: str
    state: str = "open"
    checks: list[str] = field(default_factory=list)
    sabotages: list[str] = field(default_factory=list)


def read_rows() -> dict[int, Row]:
    parts = tomllib.loads(ROWS.read_text())
    rows = [Row(int(number), part, title) for part, titles in parts.items() for number, title in titles.items()]
    return {row.row: row for row in sorted(rows, key=lambda row: row.row)}


def collect_marks() -> list[dict[str, object]]:
    """What the tests are marked with: objects of {row, sabotage, test}."""
    with tempfile.TemporaryDirectory(prefix="fw-pm-") as folder:
        target = Path(folder) / "marks.json"
        run = subprocess.run(
            [sys.executable, "-P", "-m", "pytest", "--collect-only", "--quiet", f"--pm-marks={target}", "tests"],
            cwd=CHECKOUT,
            capture_output=True,
            text=True,
            check=False,
        )
        if run.returncode != 0 or not target.exists():
            sys.exit(f"error: pytest could not collect the tests:\n{run.stdout}{run.stderr}")
        marks: list[dict[str, object]] = json.loads(target.read_text())
        return marks


def fill(rows: dict[int, Row], marks: list[dict[str, object]]) -> None:
    """Puts each marked test with its row, once however many parameters it has."""
    for mark in marks:
        row = rows[int(str(mark["row"]))]
        tests = row.sabotages if mark["sabotage"] else row.checks
        name = str(mark["test"]).partition("[")[0]
        if name not in tests:
            tests.append(name)
    for row in rows.values():
        kinds = bool(row.checks) + bool(row.sabotages)
        row.state = ("open", "half", "done")[kinds]


def table(rows: dict[int, Row]) -> str:
    lines = []
    for row in rows.values():
        lines.append(f"PM-{row.row:<3} {row.state:<5} {row.title}")
        lines += [f"       check     {test}" for test in row.checks]
        lines += [f"       sabotage  {test}" for test in row.sabotages]
    counts = [sum(row.state == state for row in rows.values()) for state in ("done", "half", "open")]
    lines.append("")
    lines.append("{} rows: {} done, {} half, {} open".format(len(rows), *counts))
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print an array of objects")
    as_json = parser.parse_args().json
    rows = read_rows()
    fill(rows, collect_marks())
    print(json.dumps([asdict(row) for row in rows.values()], indent=2) if as_json else table(rows))


if __name__ == "__main__":
    main()
