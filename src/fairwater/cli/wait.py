"""Waiting for a workspace to get somewhere, with what happens shown as it happens.

Follows the server's events and looks at the workspace again after each break of the stream, so that nothing is missed.
A wait that runs out is `Temporary`: the workspace goes on, and the message says where it stands.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from fairwater.cli.output import clean, say
from fairwater.cli.problem import NotFound, workspace_path
from fairwater.domain.failure import Permanent, Temporary
from fairwater.domain.units import format_bytes

if TYPE_CHECKING:
    from fairwater.cli.client import Client


@dataclass(frozen=True, slots=True)
class Goal:
    """The phases that end a wait: well, or not."""

    reached: frozenset[str]
    missed: frozenset[str]


RUNNING = Goal(frozenset({"running"}), frozenset({"stopped", "failed", "lost", "deleted"}))
STOPPED = Goal(frozenset({"stopped", "failed", "deleted"}), frozenset({"lost"}))
DELETED = Goal(frozenset({"deleted"}), frozenset())
_ENDS = RUNNING.reached | RUNNING.missed


class Display(Protocol):
    """Shows a person how far it is."""

    def phase(self, name: str, phase: str, reason: str) -> None: ...

    def progress(self, name: str, progress: dict[str, Any]) -> None: ...


class PlainDisplay:
    """One line for each change, and for each tenth of a long step."""

    def __init__(self) -> None:
        self._said: dict[str, str] = {}
        self._reasons: dict[str, str] = {}

    def phase(self, name: str, phase: str, reason: str) -> None:
        known = self._reasons.get(name) == reason  # a failure's is that of its end, too
        self._reasons[name] = reason
        self._once(name, f"{name}: {phase}" + (f" ({reason})" if reason and not known else ""), f"{phase} {reason}")

    def progress(self, name: str, progress: dict[str, Any]) -> None:
        done, total = progress.get("done") or 0, progress.get("total")
        key = line = f"{name}: {progress.get('step')}"
        if total:
            key += f" {done * 10 // total * 10} %"
            line = key + (f", {_amount(progress)}" if _amount(progress) else "")
        self._once(name, line, key)

    def _once(self, name: str, line: str, key: str | None = None) -> None:
        if self._said.get(name) != (key or line):
            self._said[name] = key or line
            say(line)


class TerminalDisplay:
    """A moving line per workspace, with a bar where the end is known."""

    def __init__(self, bars: Any) -> None:
        self._bars = bars
        self._tasks: dict[str, Any] = {}

    def phase(self, name: str, phase: str, reason: str) -> None:
        self._show(name, f"{name}: {phase}" + (f", {reason}" if reason else ""), 0, None)

    def progress(self, name: str, progress: dict[str, Any]) -> None:
        done, total = int(progress.get("done") or 0), progress.get("total")
        text = f"{name}: {progress.get('step')}"
        if done and _amount(progress):
            text += f", {_amount(progress)}"
        self._show(name, text, done, total)

    def _show(self, name: str, text: str, done: int, total: int | None) -> None:
        from rich.markup import escape

        if name not in self._tasks:
            self._tasks[name] = self._bars.add_task("", total=None)
        self._bars.update(self._tasks[name], description=escape(clean(text)), completed=done, total=total)


def _amount(progress: dict[str, Any]) -> str:
    """`12 MiB of 1.5 GiB`, where bytes are counted."""
    if progress.get("unit") not in {"B", "bytes"}:
        return ""
    done, total = int(progress.get("done") or 0), progress.get("total")
    return format_bytes(done) + (f" of {format_bytes(int(total))}" if total else "")


@contextmanager
def display() -> Iterator[Display]:
    """The display that fits: on standard error, so that standard output keeps to the answer."""
    if not sys.stderr.isatty():
        yield PlainDisplay()
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(bar_width=24), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bars:
        yield TerminalDisplay(bars)


def wait_for(client: Client, workspace: dict[str, Any], goal: Goal, timeout_s: float, shown: Display) -> dict[str, Any]:
    """The workspace once it is in one of the goal's phases.

    Raises:
        Permanent: `missed`: it ended elsewhere; the message says why.
        Temporary: `still_waiting`: the time is over; the message says what it waits for.
    """
    name, path = str(workspace["name"] or workspace["id"]), workspace_path(str(workspace["id"]))
    ends = time.monotonic() + timeout_s
    pause_s = 0.1
    shown.phase(name, str(workspace["phase"]), str(workspace.get("reason") or ""))
    while True:
        try:
            for current in _follow(client, path, name, ends, shown):
                workspace = current
                if workspace["phase"] in goal.reached:
                    return workspace
                if workspace["phase"] in goal.missed:
                    why = workspace.get("failure") or workspace.get("reason") or "no reason is known"
                    raise Permanent(f"{name} is {workspace['phase']}: {why}", code="missed")
        except NotFound:
            if "deleted" in goal.reached:
                return {**workspace, "phase": "deleted"}
            raise
        except Temporary:
            pass  # the stream broke, or was silent: look again, below
        except Permanent as failure:
            if failure.code != "server_unreachable":
                raise
        left_s = ends - time.monotonic()
        if left_s <= 0:
            raise still_waiting(name, workspace)
        time.sleep(min(pause_s, left_s))
        pause_s = min(pause_s * 2, 2.0)


def _is_history(event: dict[str, Any], seen: dict[str, Any]) -> bool:
    """Whether an event is older than the workspace as it was `seen`: the server begins with those it has kept.

    Of the same instant is not older: two changes may share a millisecond.
    """
    older_run = int(event.get("run") or 0) < int(seen.get("run") or 0)
    return older_run or str(event.get("at") or "~") < str(seen.get("since") or "")


def still_waiting(name: str, workspace: dict[str, Any]) -> Temporary:
    progress = workspace.get("progress") or {}
    known = [str(word) for word in (workspace.get("reason"), progress.get("step")) if word]
    why = f" ({'; '.join(known)})" if known else ""
    return Temporary(
        f"{name} is still {workspace['phase']}{why}. It goes on: follow it with fairwater ws events {name} --follow",
        code="still_waiting",
    )


def _follow(client: Client, path: str, name: str, ends: float, shown: Display) -> Iterator[dict[str, Any]]:
    """The workspace as it is now, and again at each change of phase, until the stream or the time is over."""
    silence_s = min(40.0, max(0.05, ends - time.monotonic()))
    last: dict[str, Any] = {}
    for event in client.events(f"{path}/events", silence_s=silence_s):
        if event.kind == "open":
            last = client.get(path)
            shown.phase(name, str(last["phase"]), str(last.get("reason") or ""))
            yield last
        elif event.kind == "progress":
            progress = event.data.get("progress")
            if isinstance(progress, dict):
                last["progress"] = progress
                shown.progress(name, progress)
        elif event.kind == "workspace" and not _is_history(event.data, last):
            phase, reason = str(event.data.get("phase")), str(event.data.get("reason") or "")
            shown.phase(name, phase, reason)
            # Where the way ends, what an event lacks (why a start failed) is read anew.
            last = client.get(path) if phase in _ENDS else {**last, "phase": phase, "reason": reason, "progress": None}
            yield last
        if time.monotonic() >= ends:
            return
