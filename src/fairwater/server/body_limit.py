"""Bounds the bodies that the server takes as a whole. What it takes as a stream passes: files, and backups."""

from __future__ import annotations

import re

from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from fairwater.serving.problems import problem

_STREAMED = re.compile(r"PUT /api/v1/workspaces/[^/]+/files/.*|POST /api/v1/admin/restore", re.DOTALL)
BODY_BYTES_MAX = 4 * 1024 * 1024


class BodyLimit:
    """Plain ASGI: nothing is gathered, and a request without a body costs one comparison."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or _STREAMED.fullmatch(f"{scope['method']} {scope['path']}"):
            await self._app(scope, receive, send)
            return
        for name, value in scope["headers"]:
            if name == b"content-length" and (not value.isdigit() or len(value) > 18 or int(value) > BODY_BYTES_MAX):
                await problem(413, "content_too_large", _TOO_LARGE)(scope, receive, send)
                return
        taken = 0

        async def bounded() -> Message:
            nonlocal taken
            message = await receive()
            taken += len(message.get("body", b""))
            if taken > BODY_BYTES_MAX:
                raise HTTPException(413, _TOO_LARGE)
            return message

        await self._app(scope, bounded, send)


_TOO_LARGE = f"a body has at most {BODY_BYTES_MAX // 1024**2} MiB; send larger content with PUT …/files/PATH"
