"""Logging in: a code that works once, exchanged for a token."""

from __future__ import annotations

from datetime import timedelta

import structlog
from fastapi import APIRouter, Request
from starlette.responses import Response

from fairwater.domain.failure import Permanent
from fairwater.ports.database import Transaction
from fairwater.server.authentication import blocked, digest_of, new_secret
from fairwater.server.authorisation import Caller, find_account, no_such_user
from fairwater.server.documents import moment
from fairwater.server.idempotency import Reply, answer_once, json_response
from fairwater.server.messages import CreateLoginCode, ExchangeLoginCode
from fairwater.server.services import services_of

router = APIRouter(prefix="/login", tags=["login"])
CODE_LIFETIME = timedelta(minutes=10)
LOGIN_TOKEN_LIFETIME = timedelta(days=30)
_log = structlog.get_logger("fairwater.server")


@router.post("/codes", status_code=201)
async def create_login_code(request: Request, who: Caller, body: CreateLoginCode) -> Response:
    """Good for ten minutes, and for one login."""
    services = services_of(request)
    code, digest = new_secret()
    code = code.removeprefix("fw_")
    digest = digest_of(code)

    async def act(transaction: Transaction) -> Reply:
        account = await find_account(transaction, who.id if body.user == "me" else body.user)
        if account is None:
            raise no_such_user(body.user)
        now = services.clock.now()
        await transaction.codes.add(account.id, digest, now, now + CODE_LIFETIME)
        _log.info("login_code_created", user=account.id, by=who.id)
        document = {"code": code, "user": account.name, "expires_at": moment(now + CODE_LIFETIME)}
        return Reply(201, document, secret=True)

    return await answer_once(request, who, act)


@router.post("/exchange")
async def exchange_login_code(request: Request, body: ExchangeLoginCode) -> Response:
    """Takes no Idempotency-Key: whose it would be is known only once the code is used up."""
    services = services_of(request)
    secret, digest = new_secret()
    async with services.database.write() as transaction:
        now = services.clock.now()
        account = await transaction.codes.redeem(digest_of(body.code), now)
        if account is None:
            raise Permanent(
                "the login code is unknown, used or older than ten minutes: ask for a new one", code="no_such_code"
            )
        if account.blocked:
            raise blocked()
        token = await transaction.tokens.add(account.id, "login", digest, now, now + LOGIN_TOKEN_LIFETIME)
    _log.info("logged_in", user=account.id, token=token.id)
    return json_response(200, {"token": secret, "user": account.name, "expires_at": moment(now + LOGIN_TOKEN_LIFETIME)})
