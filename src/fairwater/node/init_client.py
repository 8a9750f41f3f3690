"""The agent's way to a workspace's PID 1: what is launched there, and commands begun in it.

Every call is one connection to PID 1's socket, so that nothing has to be found again after a restart of the agent;
`init/protocol.h` has the messages, `init_messages.py` their form. Pipes are made here and handed over; a terminal is
made by PID 1 from the container's own devpts and handed back. Whoever runs in the container may be hostile: a reply is
bounded in size and time, and what is handed back must be a terminal.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
import stat
from dataclasses import dataclass
from pathlib import Path

from fairwater.domain.failure import Permanent, Temporary
from fairwater.node.init_connection import Descriptor, connect, is_terminal_master, pipe, receive, send
from fairwater.node.init_messages import (
    PROTOCOL_VERSION,
    TASKS_MAX,
    TASKS_SINCE_VERSION,
    Answer,
    Command,
    Reply,
    Request,
    Where,
    command_request,
    request,
    start_failure,
)
from fairwater.node.init_process import InitProcess, Streams
from fairwater.ports.process import TerminalSize

ANSWER_WITHIN_S = 10.0
"""A start can take long on a busy disk: PID 1 answers once the program is executed."""
TASK_TERMINAL = TerminalSize(24, 120)
"""Nobody looks at it while it runs: as wide as the logs of builds are."""
TASK_LOG_MAX, TASK_LOG_KEPT = 8 << 20, 4 << 20
"""Bytes: a task's log is cut to its last `TASK_LOG_KEPT` each time it has grown to `TASK_LOG_MAX`."""
_PARKED = 0


@dataclass(frozen=True, slots=True)
class InitState:
    """`launched_run` is None while parked; `first_pid` is the first process' pid in the workspace while it lives."""

    version: int
    launched_run: int | None
    first_pid: int | None


@dataclass(frozen=True, slots=True)
class Launched:
    """`pid` is None where no first process was asked for, or it has ended. `already`: it was launched before."""

    pid: int | None
    already: bool


class InitClient:
    """Speaks to the PID 1 that listens at `path`.

    `host_ids` is the first id of the sandbox's range on the machine, where it has one: pipes are then given to the
    command's user, so that it may open /dev/stdout by name; None leaves them to the agent.
    """

    def __init__(self, path: Path, *, host_ids: int | None = None, answer_within_s: float = ANSWER_WITHIN_S) -> None:
        self._path = path
        self._host_ids = host_ids
        self._answer_within_s = answer_within_s

    async def hello(self) -> InitState:
        """What PID 1 says of itself.

        Raises:
            Temporary: `init_gone`, `init_confused`, `init_silent`, `busy`.
            Permanent: `init_version`, when it speaks a version that this agent does not.
        """
        reply = await self._ask(request(Request.HELLO, number=PROTOCOL_VERSION), Answer.HELLO)
        if not 1 <= reply.value <= PROTOCOL_VERSION:
            raise _other_version(reply.value, f"this agent none but 1 to {PROTOCOL_VERSION}")
        return InitState(reply.value, reply.run if reply.where != _PARKED else None, reply.pid or None)

    async def launch(self, run: int, command: Command, *, stdout: int, stderr: int) -> Launched:
        """Marks the workspace launched for `run` and lets its first process go, if `command` has arguments; once only.

        `stdout` and `stderr` stay the caller's; standard input is at its end from the beginning. When the command
        cannot be started, the workspace counts as not launched.

        Raises:
            Permanent: `other_run`, when another run was launched here; what `exec` raises.
            Temporary: as `hello`.
        """
        message = command_request(Request.LAUNCH, command, run=run)
        with pipe() as (reading, writing):
            os.close(writing.release())
            with contextlib.closing(connect(self._path)) as connection:
                send(connection, message, (reading.number, stdout, stderr))
                reply = await self._reply(connection)
        if reply.kind == Answer.OTHER_RUN:
            raise Permanent(
                f"this sandbox was launched for run {reply.run}, not for {run}: it is never used twice",
                code="other_run",
            )
        if reply.kind not in (Answer.LAUNCHED, Answer.ALREADY):
            raise _failure(reply, command)
        return Launched(reply.pid or None, already=reply.kind == Answer.ALREADY)

    async def exec(self, command: Command, terminal: TerminalSize | None = None) -> InitProcess:
        """Begins a command; it runs when this returns.

        Raises:
            Permanent: `command_not_found`, `not_executable`, `bad_cwd`, `bad_command`, `command_too_long`,
                `start_failed`.
            Temporary: `workspace_full`, `program_busy`; as `hello`.
        """
        message = command_request(Request.EXEC, command, terminal=terminal)
        with contextlib.ExitStack() as undo:
            connection = undo.enter_context(contextlib.closing(connect(self._path)))
            if terminal:
                send(connection, message, ())
                reply, held = await receive(connection, self._answer_within_s)
                undo.enter_context(held)
                if reply.kind == Answer.STARTED and not is_terminal_master(held.number):
                    raise Temporary("the workspace's first process handed over no terminal", code="init_confused")
                streams = Streams(held.number, held.number, terminal=True)
                ours = [held]
            else:
                pipes = [undo.enter_context(pipe()) for _ in range(3)]
                theirs = [pipes[0][0], pipes[1][1], pipes[2][1]]
                ours = [pipes[0][1], pipes[1][0], pipes[2][0]]
                self._give(theirs, command.uid)
                send(connection, message, tuple(end.number for end in theirs))
                for end in theirs:
                    os.close(end.release())
                reply = await self._reply(connection)
                streams = Streams(ours[0].number, ours[1].number, ours[2].number)
            if reply.kind != Answer.STARTED:
                raise _failure(reply, command)
            for end in ours:
                os.set_blocking(end.number, False)
            process = InitProcess(connection, reply.pid, streams)
            for end in ours:
                end.release()
            undo.pop_all()  # everything left is the process' now
            return process

    async def start_task(self, number: int, command: Command, *, log: int, status: int) -> bool:
        """Starts a task in a terminal that nobody need hold; false when that number was started before.

        Its output is appended to `log`, a file open for reading and writing (what is no plain file gets nothing). When
        it has ended, its exit status is in `status`, an empty file, in decimal with a newline. Both stay the caller's.

        Raises:
            Permanent: `init_version`, in a workspace started by an agent that knew no tasks; as `exec`.
            Temporary: as `exec`.
        """
        if not 0 <= number < TASKS_MAX:
            raise Permanent(
                f"task {number}: a workspace has at most {TASKS_MAX} tasks, numbered from 0; put some of them together",
                code="too_many_tasks",
            )
        if stat.S_ISREG(os.fstat(log).st_mode) and fcntl.fcntl(log, fcntl.F_GETFL) & os.O_ACCMODE != os.O_RDWR:
            raise ValueError("a task's log is to be open for reading and writing: its end is moved within it")
        message = command_request(Request.TASK, command, number=number, terminal=TASK_TERMINAL)
        version = (await self.hello()).version
        if version < TASKS_SINCE_VERSION:
            raise _other_version(version, f"tasks need version {TASKS_SINCE_VERSION}")
        with contextlib.closing(connect(self._path)) as connection:
            send(connection, message, (log, status))
            reply = await self._reply(connection)
        if reply.kind not in (Answer.STARTED, Answer.ALREADY):
            raise _failure(reply, command)
        return reply.kind == Answer.STARTED

    async def terminate(self) -> None:
        """SIGTERM to every process but PID 1, SIGHUP to what has a terminal; they may take their time to end."""
        await self._ask(request(Request.TERMINATE), Answer.DONE)

    async def _ask(self, message: bytes, expected: Answer) -> Reply:
        with contextlib.closing(connect(self._path)) as connection:
            send(connection, message, ())
            reply = await self._reply(connection)
        if reply.kind != expected:
            raise _failure(reply, Command(()))
        return reply

    async def _reply(self, connection: socket.socket) -> Reply:
        reply, unasked = await receive(connection, self._answer_within_s)
        with unasked:
            return reply

    def _give(self, ends: list[Descriptor], uid: int) -> None:
        if self._host_ids is not None:
            for end in ends:
                os.fchown(end.number, self._host_ids + uid, -1)


def _other_version(version: int, wanted: str) -> Permanent:
    return Permanent(
        f"the workspace's first process speaks version {version}, {wanted}: stop the workspace and start it again",
        code="init_version",
    )


def _failure(reply: Reply, command: Command) -> Temporary | Permanent:
    if reply.kind != Answer.ERROR:
        return Temporary(f"the workspace's first process answered {reply.kind.name} to it", code="init_confused")
    if reply.where == Where.PROTOCOL:
        return Temporary("the workspace's first process did not understand the request", code="init_confused")
    return start_failure(reply, command)
