"""What the agent says to a workspace's PID 1, and what it believes of the answers.

The C side, and the table of messages, is `init/protocol.h`; this module puts requests together and takes replies
apart. It knows nothing of sockets. A reply comes out of a container whose processes may be hostile: whatever does not
have the form of one is refused.
"""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum

from fairwater.domain.failure import Permanent, Temporary
from fairwater.ports.process import TerminalSize

PROTOCOL_VERSION = 2
"""The newest spoken here; a first process of before speaks an older one."""
TASKS_SINCE_VERSION = 2
TASKS_MAX = 64
"""Tasks of a workspace, numbered from 0."""
MESSAGE_MAX = 128 * 1024
"""Bytes of a request: command, environment and folder together."""
GROUPS_MAX, ARGUMENTS_MAX, VARIABLES_MAX = 32, 8192, 4096
ID_MAX = 2**32 - 2

REQUEST = struct.Struct("=IIQiIIIIIHHI")
REPLY = struct.Struct("=IIiiQ")
_WITH_TERMINAL = 1


class Request(IntEnum):
    HELLO = 1
    LAUNCH = 2
    EXEC = 3
    SIGNAL = 4
    TERMINATE = 5
    TASK = 6


class Answer(IntEnum):
    HELLO = 1
    LAUNCHED = 2
    ALREADY = 3
    OTHER_RUN = 4
    STARTED = 5
    EXITED = 6
    DONE = 7
    ERROR = 8


class Where(IntEnum):
    """The step at which a command's start failed."""

    EXEC = 1
    CHDIR = 2
    USER = 3
    FORK = 4
    TERMINAL = 5
    PROTOCOL = 6
    BUSY = 7


@dataclass(frozen=True, slots=True)
class Reply:
    """`where` is a step in an ERROR, a state in a HELLO; `value` a version, a wait status or an errno."""

    kind: Answer
    where: int
    value: int
    pid: int
    run: int


@dataclass(frozen=True, slots=True)
class Command:
    """A command with all that decides how it runs; ids are the container's. PATH is searched in `environment`."""

    arguments: tuple[str, ...]
    environment: Mapping[str, str] = field(default_factory=dict)
    cwd: str = "/"
    uid: int = 1000
    gid: int = 1000
    groups: tuple[int, ...] = ()


def request(kind: Request, *, number: int = 0) -> bytes:
    """A request without a command; `number` is a signal's, or in a HELLO the version spoken here."""
    return REQUEST.pack(kind, 0, 0, number, 0, 0, 0, 0, 0, 0, 0, 0)


def command_request(
    kind: Request, command: Command, *, run: int = 0, number: int = 0, terminal: TerminalSize | None = None
) -> bytes:
    """A LAUNCH, an EXEC, or a TASK, whose `number` is its own.

    Raises:
        Permanent: `bad_command`, where a part of it cannot be passed on; `command_too_long`.
    """
    if kind != Request.LAUNCH and not command.arguments:
        raise Permanent("the command is empty: name a program to run", code="bad_command")
    variables = [f"{_variable_name(name)}={value}" for name, value in command.environment.items()]
    ids = (command.uid, command.gid, *command.groups)
    if not all(0 <= number <= ID_MAX for number in ids) or len(command.groups) > GROUPS_MAX:
        raise Permanent(f"user and group ids go from 0 to {ID_MAX}, at most {GROUPS_MAX} groups", code="bad_command")
    strings = b"".join(_c_string(text) for text in (command.cwd, *command.arguments, *variables))
    size = terminal or TerminalSize(0, 0)
    head = REQUEST.pack(
        kind,
        _WITH_TERMINAL if terminal else 0,
        run,
        number,
        command.uid,
        command.gid,
        len(command.groups),
        len(command.arguments),
        len(variables),
        *window(size),
        0,
    )
    message = head + struct.pack(f"={len(command.groups)}I", *command.groups) + strings
    if len(message) > MESSAGE_MAX or len(command.arguments) > ARGUMENTS_MAX or len(variables) > VARIABLES_MAX:
        raise Permanent(
            f"command and environment take {len(message)} bytes; at most {MESSAGE_MAX} can be passed: "
            "put long input into a file or into standard input",
            code="command_too_long",
        )
    return message


def window(size: TerminalSize) -> tuple[int, int]:
    """Rows and columns as the kernel takes them: 16 bits each."""
    return max(0, min(size.rows, 0xFFFF)), max(0, min(size.columns, 0xFFFF))


def parse_reply(data: bytes) -> Reply:
    """Raises Temporary (`init_gone`, for the end of the connection; `init_confused`, for what is no reply)."""
    if not data:
        raise Temporary("the workspace's first process closed the connection: it has ended", code="init_gone")
    if len(data) != REPLY.size:
        raise Temporary(f"the workspace's first process sent {len(data)} bytes that are no reply", code="init_confused")
    kind, where, value, pid, run = REPLY.unpack(data)
    if kind not in Answer.__members__.values() or pid < 0:
        raise Temporary("the workspace's first process sent a reply of an unknown kind", code="init_confused")
    return Reply(Answer(kind), where, value, pid, run)


def exit_status(wait_status: int) -> int:
    """A wait status as a shell says it: the program's own, or 128 + n where signal n ended it."""
    number = wait_status & 0x7F
    return 128 + number if number else wait_status >> 8 & 0xFF


def start_failure(reply: Reply, command: Command) -> Temporary | Permanent:
    """Why PID 1 could not start `command`, as what a person can act on."""
    name = (command.arguments or ("",))[0][:200]
    number = reply.value
    reason = os.strerror(number) if 0 < number < 4096 else f"error {number}"
    if reply.where == Where.BUSY:
        return Temporary("too many commands run in this workspace at once: end one of them", code="busy")
    if reply.where == Where.CHDIR:
        return Permanent(f"cannot work in the folder {command.cwd[:200]!r}: {reason}; check cwd", code="bad_cwd")
    if number in (errno.EAGAIN, errno.ENOMEM, errno.ENOSPC, errno.EMFILE, errno.ENFILE):
        return Temporary(
            f"cannot start {name!r}: {reason}; the workspace has reached its limit of processes, memory or terminals: "
            "end some of them",
            code="workspace_full",
        )
    if reply.where == Where.EXEC:
        return _exec_failure(name, number, reason)
    step = Where(reply.where).name.lower() if reply.where in Where.__members__.values() else str(reply.where)
    return Permanent(f"cannot start {name!r}: {reason} (at the step {step!r})", code="start_failed")


def _exec_failure(name: str, number: int, reason: str) -> Permanent | Temporary:
    if number in (errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG, errno.ELOOP):
        return Permanent(
            f"{name}: command not found in the workspace (or the interpreter in its first line is not): "
            "check the name and PATH",
            code="command_not_found",
        )
    if number == errno.E2BIG:
        return Permanent(
            f"{name}: an argument or a variable is too long: put it into a file or standard input",
            code="command_too_long",
        )
    if number == errno.ETXTBSY:
        return Temporary(f"{name}: the program is being written to: try again", code="program_busy")
    return Permanent(f"{name}: cannot be executed: {reason}; check its mode and its format", code="not_executable")


def _variable_name(name: str) -> str:
    if not name or "=" in name:
        raise Permanent(f"{name[:80]!r} cannot be the name of an environment variable", code="bad_command")
    return name


def _c_string(text: str) -> bytes:
    try:
        raw = os.fsencode(text)
    except UnicodeEncodeError:
        raise Permanent(f"{text[:80]!r} cannot be written in UTF-8", code="bad_command") from None
    if b"\0" in raw:
        raise Permanent(f"{text[:80]!r} contains a NUL character, which no command can be given", code="bad_command")
    return raw + b"\0"
