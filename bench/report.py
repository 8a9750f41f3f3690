"""How a benchmark's results are told: a table for people, one line of JSON for programs."""

from __future__ import annotations

import json
import operator
import os
import platform
import re
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

_COMPARE = {"<=": operator.le, ">=": operator.ge, "==": operator.eq}


@dataclass(frozen=True, slots=True)
class Result:
    """One figure; `goal` such as `<= 1.0`, None where the figure is only published."""

    name: str
    value: float
    unit: str
    goal: str | None = None

    @property
    def holds(self) -> bool | None:
        if self.goal is None:
            return None
        sign, bound = self.goal.split()
        return bool(_COMPARE[sign](self.value, float(bound)))


@dataclass
class Report:
    bench: str
    results: list[Result] = field(default_factory=list)
    rows: list[tuple[str, str]] = field(default_factory=list)

    def add(self, name: str, value: float, unit: str, goal: str | None = None) -> None:
        self.results.append(Result(name, round(value, 4), unit, goal))

    def sample(self, what: str, seconds: Sequence[float]) -> None:
        """A row of the table: how a series of times in seconds is spread."""
        spread = f"p50 {median(seconds) * 1e3:8.1f} ms   p95 {p95(seconds) * 1e3:8.1f} ms   n {len(seconds)}"
        self.rows.append((what, spread))
        print(f"  {what:<58} {spread}", flush=True)

    def close(self) -> bool:
        """Prints the goals and the line of JSON; whether every goal was reached."""
        print()
        for result in self.results:
            verdict = {True: "holds", False: "FALLS SHORT", None: ""}[result.holds]
            print(f"  {result.name:<44} {result.value:>10.3f} {result.unit:<6} {result.goal or '':<10} {verdict}")
        document = {
            "bench": self.bench,
            "machine": machine(),
            "results": [
                {"name": r.name, "value": r.value, "unit": r.unit, "goal": r.goal, "holds": r.holds}
                for r in self.results
            ],
        }
        print(json.dumps(document), flush=True)
        return all(result.holds is not False for result in self.results)


def machine() -> dict[str, object]:
    memory = re.search(r"MemTotal:\s+(\d+)", Path("/proc/meminfo").read_text())
    return {
        "kernel": platform.release(),
        "cores": os.cpu_count(),
        "memory_gib": round(int(memory[1]) / 2**20, 1) if memory else None,
        "python": platform.python_version(),
    }


def median(values: Sequence[float]) -> float:
    return statistics.median(values)


def p95(values: Sequence[float]) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, round(0.95 * (len(ordered) - 1)))]
