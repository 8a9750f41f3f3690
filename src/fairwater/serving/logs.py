"""Logs as JSON lines on standard error: one event a line, with its fields.

Decides the shape of a line; refuses to know what is worth one. What the standard library's loggers have to say
(uvicorn, asyncio, SQLAlchemy) takes the same way.
"""

from __future__ import annotations

import logging
import sys
from typing import Any, TextIO

import structlog

from fairwater.serving.problems import AnswerCutShort


def configure_logs(level: str = "info", *, part: str = "", stream: TextIO | None = None) -> None:
    """Sends every log of this process to `stream` (standard error) as JSON lines from `level` on.

    `part` (`server`, `node`, …) stands in each line. To be called once, at the start of a process.
    """
    threshold = logging.getLevelNamesMapping()[level.upper()]
    shared: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.StackInfoRenderer(),
    ]
    if part:
        shared.append(lambda _logger, _name, event: {"part": part, **event})
    rendered: list[Any] = [structlog.processors.format_exc_info, structlog.processors.JSONRenderer(default=str)]
    structlog.configure(
        processors=[*shared, *rendered],
        wrapper_class=structlog.make_filtering_bound_logger(threshold),
        logger_factory=structlog.PrintLoggerFactory(stream or sys.stderr),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[structlog.stdlib.add_logger_name, structlog.stdlib.ExtraAdder(), *shared],
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *rendered],
        )
    )
    logging.root.handlers[:] = [handler]
    logging.root.setLevel(max(threshold, logging.WARNING))
    quieten_uvicorn()


def quieten_uvicorn() -> None:
    """Leaves of uvicorn's logs what somebody must act on: no line a request, nothing that is logged already."""
    errors = logging.getLogger("uvicorn.error")
    errors.setLevel(logging.WARNING)
    if _logged_already not in errors.filters:
        errors.addFilter(_logged_already)


def _logged_already(record: logging.LogRecord) -> bool:
    return not (record.exc_info and isinstance(record.exc_info[1], AnswerCutShort))
