"""Runs the checks and tests, and ends with a plain summary: what was skipped and why, what failed, and the counts.

    checks.py lint    ruff, formatting, mypy, import contracts
    checks.py unit    those, and every test that needs no privilege and no long time
    checks.py all     those, and every test that this machine can run

Each tool counts as one check beside the tests. The exit status is 0 only when nothing failed and something passed.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
from dataclasses import dataclass, field
from pathlib import Path

TOOLS = Path(sys.executable).parent
CHECKOUT = Path(__file__).resolve().parent.parent

SOURCES = ("src", "tests", "bench", "tools")
LINT: dict[str, tuple[str, ...]] = {
    "ruff check": ("ruff", "check", "--quiet", *SOURCES),
    "ruff format": ("ruff", "format", "--check", "--quiet", *SOURCES),
    "import contracts": ("lint-imports", "--no-logo"),
    "mypy": ("mypy",),
}


@dataclass(slots=True)
class Outcome:
    """What came of it. `failed` holds names, `skipped` pairs of a name and a reason."""

    passed: int = 0
    failed: list[str] = field(default_factory=list)
    skipped: list[tuple[str, str]] = field(default_factory=list)


class Check:
    """One tool under way; its output is shown when it has ended."""

    def __init__(self, name: str, command: tuple[str, ...]) -> None:
        self.name = name
        self._output = tempfile.TemporaryFile()  # noqa: SIM115 - closed in `finish`
        # The tool reads this checkout's package, not a copy of it that may be installed beside the tool.
        self._process = subprocess.Popen(
            [str(TOOLS / command[0]), *command[1:]],
            cwd=CHECKOUT,
            stdout=self._output,
            stderr=subprocess.STDOUT,
            env={**os.environ, "PYTHONPATH": str(CHECKOUT / "src")},
        )

    def finish(self, outcome: Outcome) -> None:
        status = self._process.wait()
        with self._output as output:
            output.seek(0)
            text = output.read().decode(errors="replace").strip()
        print(f"==> {self.name}: {'passed' if status == 0 else 'FAILED'}", flush=True)
        if status == 0:
            outcome.passed += 1
        else:
            print(text, flush=True)
            outcome.failed.append(self.name)


def run_tests(outcome: Outcome, *options: str) -> None:
    """Runs pytest over the tests; a run that breaks off without a report counts as one failure."""
    with tempfile.TemporaryDirectory(prefix="fw-report-") as folder:
        report = Path(folder) / "report.xml"
        status = subprocess.run(
            [sys.executable, "-P", "-m", "pytest", f"--junitxml={report}", *options], cwd=CHECKOUT, check=False
        ).returncode
        before = len(outcome.failed)
        if report.exists():
            read_report(ElementTree.parse(report).getroot(), outcome)
        if status != 0 and len(outcome.failed) == before:
            outcome.failed.append(f"pytest ended with status {status}")


def read_report(root: ElementTree.Element, outcome: Outcome) -> None:
    """Adds pytest's report. A test that fails and then fails to clean up is one failure."""
    verdicts: dict[str, tuple[str, str]] = {}
    for case in root.iter("testcase"):
        name = f"{case.get('classname', '')}::{case.get('name', '')}".removeprefix("::")
        skipped = case.find("skipped")
        if case.find("failure") is not None or case.find("error") is not None:
            verdicts[name] = ("failed", "")
        elif skipped is not None:
            verdicts.setdefault(name, ("skipped", (skipped.get("message") or "no reason given").strip()))
        else:
            verdicts.setdefault(name, ("passed", ""))
    for name, (verdict, reason) in verdicts.items():
        if verdict == "failed":
            outcome.failed.append(name)
        elif verdict == "skipped":
            outcome.skipped.append((name, reason))
        else:
            outcome.passed += 1


def summarise(outcome: Outcome) -> str:
    lines = [""]
    if outcome.skipped:
        lines.append("Skipped:")
        lines += [f"  {name}: {reason}" for name, reason in outcome.skipped]
    if outcome.failed:
        lines.append("Failed:")
        lines += [f"  {name}" for name in outcome.failed]
    lines.append("")
    lines.append(f"{outcome.passed} passed, {len(outcome.failed)} failed, {len(outcome.skipped)} skipped")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("lint", "unit", "all"))
    what = parser.parse_args().what
    outcome = Outcome()
    checks = {name: command for name, command in LINT.items() if name != "mypy"}
    # mypy takes longest: it runs beside the others, and beside the unit tests, which measure no time.
    mypy = Check("mypy", LINT["mypy"])
    for name, command in checks.items():
        Check(name, command).finish(outcome)
    if what == "unit":
        run_tests(outcome, "-m", "not root and not long")
        mypy.finish(outcome)
    else:
        mypy.finish(outcome)
        if what == "all":
            run_tests(outcome)
    print(summarise(outcome), flush=True)
    return 0 if outcome.passed and not outcome.failed else 1


if __name__ == "__main__":
    sys.exit(main())
