"""Failures as problem details (RFC 9457): one shape for every error that leaves over HTTP.

Decides the status of a failure by its kind and code, and what of it a stranger may read. Refuses to know the routes.
A `Temporary` is 503 (429 for `rate_limited`) with `Retry-After`; a `Permanent` has the status the app gives its code,
else 409 where its word is about the state of things and 400 where it is about the request; anything else is a bug:
logged in full, answered without inner details.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

import structlog
from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError, WebSocketRequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, HTTPConnection, Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from starlette.websockets import WebSocket, WebSocketDisconnect, WebSocketState

from fairwater.domain.failure import Permanent, Temporary

MEDIA_TYPE = "application/problem+json"
_INTERNAL_ERROR_CLOSE = 1011
"""RFC 6455, 7.4.1: the server met a condition that kept it from going on."""

_log = structlog.get_logger("fairwater.serving")


def problem(
    status: int,
    code: str,
    detail: str,
    *,
    retry_after_s: float | None = None,
    headers: Mapping[str, str] | None = None,
    **extensions: Any,
) -> Response:
    """A problem details response. `extensions` are further members; `retry_after_s` also becomes `Retry-After`."""
    try:
        title = HTTPStatus(status).phrase
    except ValueError:
        title = "Error"
    body: dict[str, Any] = {"type": "about:blank", "title": title, "status": status, "detail": detail, "code": code}
    sent = dict(headers or {})
    if retry_after_s is not None:
        body["retry_after_s"] = retry_after_s
        sent["Retry-After"] = str(max(1, math.ceil(retry_after_s)))
    body.update(extensions)
    content = json.dumps(body, ensure_ascii=False).encode("utf-8", "replace")
    return Response(content, status, sent, media_type=MEDIA_TYPE)


def failure_problem(failure: Temporary | Permanent, statuses: Mapping[str, int]) -> Response:
    """`failure` as a response, with the status that `statuses` has for its code, else the default of its kind."""
    if isinstance(failure, Temporary):
        status = statuses.get(failure.code, 429 if failure.code == "rate_limited" else 503)
        return problem(status, failure.code, failure.message, retry_after_s=max(0.0, failure.delay_s))
    default = 400 if failure.code.startswith("bad_") else 409
    return problem(statuses.get(failure.code, default), failure.code, failure.message)


def install_problems(app: FastAPI, statuses: Mapping[str, int]) -> None:
    """Makes `app` answer every failure as problem details; `statuses` maps codes of `Permanent` to HTTP statuses."""

    async def failed(connection: HTTPConnection, error: Exception) -> Response:
        assert isinstance(error, (Temporary, Permanent))
        return await _answer(connection, failure_problem(error, statuses))

    async def invalid(connection: HTTPConnection, error: Exception) -> Response:
        assert isinstance(error, (RequestValidationError, WebSocketRequestValidationError))
        fields = [{"field": _field(item["loc"]), "message": item["msg"]} for item in error.errors()]
        first = (
            f"{fields[0]['field']}: {fields[0]['message']}" if fields else "the request does not have the right form"
        )
        return await _answer(connection, problem(422, "invalid_request", first, errors=fields))

    async def refused(connection: HTTPConnection, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        code = HTTPStatus(error.status_code).name.lower()
        return await _answer(connection, problem(error.status_code, code, str(error.detail), headers=error.headers))

    for kind in (Temporary, Permanent):
        app.add_exception_handler(kind, failed)
    for kind_of_validation in (RequestValidationError, WebSocketRequestValidationError):
        app.add_exception_handler(kind_of_validation, invalid)
    app.add_exception_handler(HTTPException, refused)
    app.add_middleware(_UnexpectedErrors)


class _Sent(Response):
    """What was sent already: not a second time."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        pass


async def _answer(connection: HTTPConnection, response: Response) -> Response:
    """What a handler is to return. On a WebSocket it is sent here: before the handshake, as its refusal."""
    if isinstance(connection, WebSocket):
        if connection.application_state is WebSocketState.CONNECTING:
            await connection.send_denial_response(response)
        elif connection.application_state is WebSocketState.CONNECTED:
            await connection.close(_INTERNAL_ERROR_CLOSE)
        return _Sent()
    return response


def _field(location: tuple[int | str, ...]) -> str:
    """`body.spec.limits` for the person who sent it; the body's own level is not named where it is all there is."""
    return ".".join(str(part) for part in location) or "body"


class _UnexpectedErrors:
    """The edge of the HTTP server: a bug ends one request, is logged once, and tells a stranger nothing."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in {"http", "websocket"}:
            await self._app(scope, receive, send)
            return
        started = False

        async def sending(message: Message) -> None:
            nonlocal started
            started = True
            await send(message)

        try:
            await self._app(scope, receive, sending)
        except (ClientDisconnect, WebSocketDisconnect):
            return
        except Exception as error:
            failure = error.__cause__ if started else None
            if isinstance(failure, (Temporary, Permanent)):
                # It came after the answer had begun, so no handler could turn it into one: the connection is cut.
                _log.warning("answer_cut_short", path=scope["path"], code=failure.code, reason=failure.message)
                raise AnswerCutShort from error
            _log.exception("request_failed", path=scope["path"], method=scope.get("method", "WEBSOCKET"))
            if started:
                raise AnswerCutShort from error
            response = problem(500, "internal_error", "Something went wrong inside Fairwater; its log says more.")
            connection: HTTPConnection = Request(scope, receive, send)
            if scope["type"] == "websocket":
                connection = WebSocket(scope, receive, send)
                await connection.send_denial_response(response)
            else:
                await response(scope, receive, send)


class AnswerCutShort(Exception):
    """Ends a connection whose answer can neither be completed nor taken back; logged already."""
