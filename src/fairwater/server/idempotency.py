"""Takes a request's effect once, however often it is sent with the same `Idempotency-Key`.

The key, what the request does and the answer are one transaction: after a crash all of it is there, or nothing. For a
request that acts outside of the database (`Once.reserve`), the key is taken first; cut off in between, it stays taken.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from fairwater.domain.failure import Permanent, Temporary
from fairwater.ports.database import Answer, Claim, Transaction
from fairwater.server.authentication import Principal
from fairwater.server.services import Services, services_of

_KEY_LENGTH_MAX = 255


_KEPT_MAX = 64 * 1024
"""Characters of an answer that is kept: what a command printed may be large, and would stay for a day."""


@dataclass(frozen=True, slots=True)
class Reply:
    """What a request is answered with. `secret`: not to be kept. `then` is called after the commit."""

    status: int
    document: Any
    location: str | None = None
    secret: bool = False
    then: Callable[[], None] | None = None


async def answer_once(
    request: Request, principal: Principal, act: Callable[[Transaction], Awaitable[Reply]]
) -> Response:
    """Runs `act` in one transaction and answers with its reply, or with that of the first request of the same key.

    Raises:
        Permanent: `bad_idempotency_key`, `idempotency_key_reused`, `answer_not_kept`.
        Temporary: `idempotency_in_progress`.
    """
    services = services_of(request)
    key = _key(request)
    if key is None:
        return _respond(await services.database.writing(act))
    fingerprint = await _fingerprint(request)

    async def once(transaction: Transaction) -> Claim | Reply:
        claim = await transaction.keys.claim(principal.id, key, fingerprint, services.clock.now())
        if claim is not None:
            return claim
        reply = await act(transaction)
        await transaction.keys.keep(principal.id, key, _answer(reply))
        return reply

    async with _exclusively(services, principal, key):
        done = await services.database.writing(once)
        return _replay(done, fingerprint) if isinstance(done, Claim) else _respond(done)


class Once:
    """For a request whose effect is outside of the database, such as a command that is run."""

    def __init__(self, request: Request, principal: Principal) -> None:
        self._request = request
        self._services = services_of(request)
        self._principal = principal
        self._key = _key(request)

    async def reserve(self) -> Response | None:
        """The answer of the first request of the same key; None when this is it. Raises as `answer_once`."""
        if self._key is None:
            return None
        fingerprint = await _fingerprint(self._request)
        async with self._services.database.write() as transaction:
            claim = await transaction.keys.claim(self._principal.id, self._key, fingerprint, self._services.clock.now())
        return _replay(claim, fingerprint) if claim is not None else None

    async def done(self, reply: Reply) -> Response:
        if self._key is not None:
            async with self._services.database.write() as transaction:
                await transaction.keys.keep(self._principal.id, self._key, _answer(reply))
        return _respond(reply)

    async def undone(self) -> None:
        """Nothing has happened: the key may be used again."""
        if self._key is not None:
            async with self._services.database.write() as transaction:
                await transaction.keys.release(self._principal.id, self._key)


def json_response(status: int, document: Any, headers: dict[str, str] | None = None) -> Response:
    return Response(_encode(document), status, headers, media_type="application/json")


@asynccontextmanager
async def _exclusively(services: Services, principal: Principal, key: str) -> AsyncIterator[None]:
    holding = (principal.id, key)
    if holding in services.under_way:
        raise _in_progress()
    services.under_way.add(holding)
    try:
        yield
    finally:
        services.under_way.discard(holding)


def _respond(reply: Reply) -> Response:
    if reply.then is not None:
        reply.then()
    headers = {"Location": reply.location} if reply.location else None
    return json_response(reply.status, reply.document, headers)


def _answer(reply: Reply) -> Answer:
    document = None if reply.secret else _encode(reply.document)
    if document is not None and len(document) > _KEPT_MAX:
        document = None
    return Answer(reply.status, document, reply.location)


def _replay(claim: Claim, fingerprint: str) -> Response:
    if claim.fingerprint != fingerprint:
        raise Permanent(
            "the Idempotency-Key was used for another request: take a new one for each", code="idempotency_key_reused"
        )
    if claim.answer is None:
        raise _in_progress()
    if claim.answer.body is None:
        raise Permanent(
            "this was done already, and its answer was shown once and is not kept: take a new Idempotency-Key to do "
            "it again",
            code="answer_not_kept",
        )
    headers = {"Idempotent-Replayed": "true"}
    if claim.answer.location:
        headers["Location"] = claim.answer.location
    return Response(claim.answer.body, claim.answer.status, headers, media_type="application/json")


def _in_progress() -> Temporary:
    return Temporary(
        "the first request with this Idempotency-Key is still under way, or was cut off: ask for its effect",
        code="idempotency_in_progress",
        delay_s=1.0,
    )


def _key(request: Request) -> str | None:
    key = request.headers.get("idempotency-key")
    if key is None:
        return None
    if not 0 < len(key) <= _KEY_LENGTH_MAX or not (key.isascii() and key.isprintable()):
        raise Permanent(
            f"an Idempotency-Key is 1 to {_KEY_LENGTH_MAX} printable ASCII characters", code="bad_idempotency_key"
        )
    return key


async def _fingerprint(request: Request) -> str:
    """Of what is asked for: method, address and body."""
    digest = hashlib.sha256(f"{request.method} {request.url.path}?{request.url.query}\n".encode())
    digest.update(await request.body())
    return digest.hexdigest()


def _encode(document: Any) -> str:
    return json.dumps(document, ensure_ascii=False, separators=(",", ":"))
