"""From stages of commands to the scripts that tasks run.

Decides how a person's commands are run so that they do what they did elsewhere: one shell for all stages of a task
where exports carry over, one each where they do not; by bash where the image has it, since people write for it, and by
an interactive one in a terminal, so that `~/.bashrc` counts; else by any POSIX sh. The first failure ends the task.
What runs once leaves a marker. Nothing a person writes can break out of its stage: it is handed over as a word and
evaluated, never pasted into the script.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass

from fairwater.domain.workspaces.config.findings import Findings, show
from fairwater.domain.workspaces.config.node import Place
from fairwater.domain.workspaces.config.paths import WORKSPACE
from fairwater.domain.workspaces.config.values import bytes_sent
from fairwater.domain.workspaces.config.variables import quote
from fairwater.domain.workspaces.setup import Task

TASKS_MAX = 64
SCRIPT_BYTES_MAX = 64 * 1024
SCRIPTS_BYTES_MAX = 512 * 1024
"""Of all tasks together, their variables included: what a run is set up with travels in one message."""
MARKERS = f"{WORKSPACE}/.fairwater/tasks"


@dataclass(frozen=True, slots=True)
class Command:
    """`text` is for a shell; `name` tells commands apart that run side by side."""

    text: str
    name: str = ""


@dataclass(frozen=True, slots=True)
class Stage:
    """Commands that run side by side. `once`: only until they went through once in the workspace's life.

    `apart`: in a shell of their own, from which nothing carries over; several commands always are.
    """

    heading: str
    commands: tuple[Command, ...]
    once: bool = False
    apart: bool = False

    @property
    def title(self) -> str:
        names = ", ".join(command.name for command in self.commands if command.name)
        return f"{self.heading}: {names}" if names else self.heading


@dataclass(frozen=True, slots=True)
class Written:
    """A task as it is written, `name` "" where it has none. `folder` is where its commands begin, if that is there."""

    name: str
    stages: tuple[Stage, ...]
    folder: str
    place: Place
    environment: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class Composed:
    """A task, and the stages it was made from, for those who explain it."""

    task: Task
    stages: tuple[Stage, ...]


def compose_tasks(findings: Findings, written: Iterable[Written]) -> tuple[Composed, ...]:
    """The tasks that have something to run, numbered as written. What is too long is left out, with an error."""
    composed: list[Composed] = []
    markers: dict[str, int] = {}
    room = SCRIPTS_BYTES_MAX
    for number, task in enumerate(written):
        stages = tuple(stage for stage in task.stages if stage.commands)
        if not stages:
            continue
        marker = _marker(task.name, stages, markers)
        script = compose_script(stages, task.folder, marker)
        name = task.name or f"task {number + 1}"
        size = len(script.encode())
        if size > SCRIPT_BYTES_MAX:
            findings.error(
                task.place,
                "too_long",
                f"the commands of {show(name)} take {size} bytes as a script, and at most {SCRIPT_BYTES_MAX} are run: "
                "the task is left out; put them into a file of the repository",
            )
            continue
        room -= bytes_sent(script) + sum(bytes_sent(key) + bytes_sent(value) for key, value in task.environment)
        if room < 0:
            message = f"all tasks together take more than {SCRIPTS_BYTES_MAX} bytes: {show(name)} and those after it"
            findings.error(task.place, "too_long", f"{message} are left out; put them into files of the repository")
            break
        composed.append(Composed(Task(number, name, script, task.environment, marker), stages))
    return tuple(composed)


def _marker(name: str, stages: tuple[Stage, ...], seen: dict[str, int]) -> str | None:
    """The file that is there once what runs once went through. What is changed, runs again; of tasks that are the same
    in name and commands, each has its own."""
    once = [stage for stage in stages if stage.once]
    if not once:
        return None
    parts = [name, *(f"{stage.heading}\0{command.text}" for stage in once for command in stage.commands)]
    text = "\0".join(parts)
    again = seen[text] = seen.get(text, -1) + 1
    digest = hashlib.sha256(f"{text}\0{again}".encode() if again else text.encode()).hexdigest()
    return f"{MARKERS}/{digest[:16]}"


def compose_script(stages: tuple[Stage, ...], folder: str, marker: str | None) -> str:
    """A script for `sh -c`, which goes on in bash where there is one.

    The words are handed over as arguments, so that each is quoted once only: first the folder and the marker, then the
    commands in order.
    """
    words = [folder, marker or "", *(command.text for stage in stages for command in stage.commands)]
    program = quote(_program(stages))
    return (
        f"set -- {' '.join(quote(word) for word in words)}\n"
        f"_fw_program={program}\n"
        "if command -v bash >/dev/null 2>&1; then\n"
        '  if [ -t 0 ]; then exec bash -i -c "$_fw_program" bash "$@"; fi\n'
        '  exec bash -c "$_fw_program" bash "$@"\n'
        "fi\n"
        'eval "$_fw_program"\n'
    )


def _program(stages: tuple[Stage, ...]) -> str:
    count = sum(len(stage.commands) for stage in stages)
    once = sum(stage.once for stage in stages)
    taken = " ".join(f"_fw_{number}=${{{number + 3}}}" for number in range(count))
    lines = [
        f"_fw_folder=$1 _fw_marker=$2 {taken}; shift {count + 2}",
        # An interactive shell of some images asks before it overwrites (`alias cp='cp -i'`): nobody is there to answer.
        "unalias -a 2>/dev/null || :",
        'if [ -d "$_fw_folder" ]; then cd -- "$_fw_folder" || exit; fi',
    ]
    first, done = 0, 0
    for stage in stages:
        numbers = range(first, first + len(stage.commands))
        first += len(stage.commands)
        run = [_heading(stage.title), *_run(stage, numbers), *_stop_at_failure(stage.heading)]
        if stage.once:
            done += 1
            # Each has a mark of its own, so that a later one that failed does not lead to the earlier ones again.
            mark = "$_fw_marker" if done == once else f"$_fw_marker.{done}"
            made = f'mkdir -p -- "${{_fw_marker%/*}}" && : >"{mark}" || exit'
            skipped = _heading(f"{stage.heading}: went through before")
            run = [f'if [ -e "{mark}" ]; then', skipped, "else", *run, made, "fi"]
        lines += run
    return "\n".join(lines) + "\n"


def _heading(title: str) -> str:
    sound = "".join(sign if sign.isprintable() else "?" for sign in title)
    return f"printf '%s\\n' {quote('--- ' + sound)}"


def _run(stage: Stage, numbers: range) -> list[str]:
    # The space keeps a command that begins with a dash from being taken for an option of eval.
    if len(numbers) > 1:
        side_by_side = [f'( eval " $_fw_{number}" ) </dev/null & _fw_pids="$_fw_pids $!"' for number in numbers]
        waiting = 'for _fw_pid in $_fw_pids; do wait "$_fw_pid" || _fw_status=$?; done'
        # Inside of parentheses no interactive shell tells of jobs.
        return ["(", "_fw_pids= _fw_status=0", *side_by_side, waiting, 'exit "$_fw_status"', ")"]
    command = f'eval " $_fw_{numbers[0]}"'
    return [f"( {command} )" if stage.apart else command]


def _stop_at_failure(heading: str) -> list[str]:
    return [
        "_fw_status=$?",
        'if [ "$_fw_status" -ne 0 ]; then',
        f"  printf '%s\\n' {quote('--- ' + heading + ' failed with exit status')}\" $_fw_status\" >&2",
        '  exit "$_fw_status"',
        "fi",
    ]
