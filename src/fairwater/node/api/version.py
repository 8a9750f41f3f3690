"""Refuses requests of an API version that this agent does not speak, before anything else looks at them."""

from __future__ import annotations

from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send
from starlette.websockets import WebSocket

from fairwater.ports.agent import SUPPORTED_VERSIONS, VERSION_HEADER
from fairwater.serving.problems import problem

_HEADER = VERSION_HEADER.lower().encode()
_SPOKEN = frozenset(str(version).encode() for version in SUPPORTED_VERSIONS)


class RequireVersion:
    """ASGI middleware: 400 without the version header, 426 with the supported versions where it names another."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in {"http", "websocket"}:
            await self._app(scope, receive, send)
            return
        said = [value for name, value in scope["headers"] if name == _HEADER]
        if len(said) == 1 and said[0] in _SPOKEN:
            await self._app(scope, receive, send)
            return
        refusal = _refusal(said)
        if scope["type"] == "websocket":
            await WebSocket(scope, receive, send).send_denial_response(refusal)
        else:
            await refusal(scope, receive, send)


def _refusal(said: list[bytes]) -> Response:
    spoken = ", ".join(map(str, SUPPORTED_VERSIONS))
    if len(said) != 1:
        return problem(
            400, "no_version", f"every request needs one header {VERSION_HEADER}; this agent speaks {spoken}"
        )
    asked = said[0].decode("ascii", "replace")[:20]
    return problem(
        426,
        "unknown_version",
        f"this agent does not speak version {asked!r} of its API, it speaks {spoken}: run server and agent of "
        "neighbouring versions",
        headers={"Upgrade": ", ".join(f"fairwater-agent/{version}" for version in SUPPORTED_VERSIONS)},
        supported=list(SUPPORTED_VERSIONS),
    )
