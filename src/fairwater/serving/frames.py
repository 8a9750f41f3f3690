"""The frames of `ports/process.py`: a command's streams as binary messages of a WebSocket.

Besides what the port names, a command that was started is announced by the control frame `{"started": true}`, since
it may be silent for long; and the error of a `Temporary` has `retry_after_s`. Whoever reads control frames leaves out
what it does not know.
"""

from __future__ import annotations

import json
from typing import Any

from fairwater.domain.failure import Permanent, Temporary
from fairwater.ports.process import Channel, TerminalSize

FRAME_BYTES_MAX = 256 * 1024
"""The most that is put into one frame; a reader must take at least this and the channel's byte."""
STARTED = b'\x03{"started": true}'


def frame(channel: Channel, data: bytes) -> bytes:
    return bytes((channel,)) + data


def control(**members: Any) -> bytes:
    return frame(Channel.CONTROL, json.dumps(members).encode())


def failure_frame(failure: Temporary | Permanent) -> bytes:
    error: dict[str, Any] = {"code": failure.code, "message": failure.message}
    if isinstance(failure, Temporary):
        error["retry_after_s"] = failure.delay_s
    return control(error=error)


def read_failure(error: Any) -> Temporary | Permanent:
    """The failure that an `error` member tells of."""
    told = error if isinstance(error, dict) else {}
    code, message = str(told.get("code", "unknown")), str(told.get("message", "the command failed"))
    delay_s = told.get("retry_after_s")
    if isinstance(delay_s, (int, float)):
        return Temporary(message, code=code, delay_s=float(delay_s))
    return Permanent(message, code=code)


def read_frame(message: bytes) -> tuple[Channel, bytes]:
    """Raises Permanent: `bad_frame`."""
    try:
        return Channel(message[0]), message[1:]
    except (IndexError, ValueError):
        raise Permanent("a frame begins with a channel byte from 0 to 3", code="bad_frame") from None


def read_control(data: bytes) -> dict[str, Any]:
    """The JSON object of a control frame. Raises Permanent: `bad_frame`."""
    try:
        members = json.loads(data)
    except ValueError:
        members = None
    if not isinstance(members, dict):
        raise Permanent("a control frame holds one JSON object", code="bad_frame")
    return members


def read_size(value: Any) -> TerminalSize:
    """`[rows, columns]` as a size. Raises Permanent: `bad_frame`."""
    match value:
        case [int(rows), int(columns)] if 0 < rows < 65536 and 0 < columns < 65536:
            return TerminalSize(rows, columns)
        case _:
            raise Permanent("resize takes [rows, columns], each from 1 to 65535", code="bad_frame")
