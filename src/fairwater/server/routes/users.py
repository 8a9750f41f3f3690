"""Accounts, their tokens, and organisations."""

from __future__ import annotations

from datetime import timedelta

import structlog
from fastapi import APIRouter, Request
from starlette.responses import Response

from fairwater.domain.failure import Permanent
from fairwater.domain.workspaces.context import Scheme, parse_context
from fairwater.ports.accounts import ADMINISTRATOR, Role
from fairwater.ports.database import Transaction
from fairwater.server.authentication import new_secret
from fairwater.server.authorisation import Caller, account_for, forbidden
from fairwater.server.documents import account_document, organisation_document, page_document, token_document
from fairwater.server.idempotency import Reply, answer_once, json_response
from fairwater.server.messages import ChangeUser, CreateToken, CreateUser
from fairwater.server.paging import Cursor, Limit
from fairwater.server.services import services_of

router = APIRouter(tags=["users"])
_log = structlog.get_logger("fairwater.server")


@router.get("/me")
async def show_me(who: Caller) -> Response:
    return json_response(200, account_document(who.account))


@router.get("/users")
async def list_users(request: Request, who: Caller, limit: Limit = 50, cursor: Cursor = None) -> Response:
    async with services_of(request).database.read() as transaction:
        page = await transaction.accounts.page(limit, cursor)
    return json_response(200, page_document(page, account_document))


@router.post("/users", status_code=201)
async def create_user(request: Request, who: Caller, body: CreateUser) -> Response:
    """In the organisation of that name, which is made where there is none."""
    services = services_of(request)
    organisation = body.organisation or next((one.name for one in who.account.organisations), "default")

    async def act(transaction: Transaction) -> Reply:
        account = await transaction.accounts.add(body.name, body.role, organisation, services.clock.now())
        _log.info("user_created", user=account.id, role=account.role, by=who.id)
        return Reply(201, account_document(account), location=f"/api/v1/users/{account.id}")

    return await answer_once(request, who, act)


@router.patch("/users/{user}")
async def change_user(request: Request, who: Caller, user: str, body: ChangeUser) -> Response:
    """Acts at once, on open streams too."""
    services = services_of(request)
    powers = body.role is not None or body.blocked is not None
    if powers and who.account.role is not Role.ADMIN:
        raise forbidden("role and blocked are for administrators to change")
    if body.dotfiles_url is not None and parse_context(body.dotfiles_url).scheme is Scheme.FILE:
        raise Permanent(
            "dotfiles come from where every workspace can reach them: give an https or ssh URL", code="bad_context_url"
        )
    async with services.database.write() as transaction:
        account = await account_for(request, transaction, who, user)
        if powers and account.name == ADMINISTRATOR:
            raise Permanent(
                "the local administrator's account cannot be changed: whoever owns the machine has it",
                code="local_administrator",
            )
        changed = await transaction.accounts.change(account.id, body.role, body.blocked)
        if "dotfiles_url" in body.model_fields_set:
            changed = await transaction.accounts.set_dotfiles(account.id, body.dotfiles_url)
        assert changed is not None
    if body.model_fields_set:
        services.authenticator.forget(changed.id, may_stay=not powers)
        _log.info("user_changed", user=changed.id, role=changed.role, blocked=changed.blocked, by=who.id)
    return json_response(200, account_document(changed))


@router.get("/users/{user}/tokens")
async def list_tokens(request: Request, who: Caller, user: str, limit: Limit = 50, cursor: Cursor = None) -> Response:
    async with services_of(request).database.read() as transaction:
        account = await account_for(request, transaction, who, user)
        page = await transaction.tokens.page(account.id, limit, cursor)
    return json_response(200, page_document(page, token_document))


@router.post("/users/{user}/tokens", status_code=201)
async def create_token(request: Request, who: Caller, user: str, body: CreateToken = CreateToken()) -> Response:
    """The token itself is in this answer and nowhere else."""
    services = services_of(request)
    secret, digest = new_secret()

    async def act(transaction: Transaction) -> Reply:
        account = await account_for(request, transaction, who, user)
        now = services.clock.now()
        expires_at = now + timedelta(seconds=body.expires_in_s) if body.expires_in_s is not None else None
        token = await transaction.tokens.add(account.id, body.name, digest, now, expires_at)
        _log.info("token_created", token=token.id, user=account.id, by=who.id)
        location = f"/api/v1/users/{account.id}/tokens/{token.id}"
        return Reply(201, token_document(token) | {"token": secret}, location, secret=True)

    return await answer_once(request, who, act)


@router.delete("/users/{user}/tokens/{token}", status_code=204)
async def delete_token(request: Request, who: Caller, user: str, token: str) -> Response:
    services = services_of(request)
    async with services.database.write() as transaction:
        account = await account_for(request, transaction, who, user)
        if not await transaction.tokens.remove(account.id, token):
            raise Permanent(f"{account.name} has no token {token[:40]!r}", code="no_such_token")
    services.authenticator.forget(account.id, token)
    _log.info("token_deleted", token=token, user=account.id, by=who.id)
    return Response(status_code=204)


@router.get("/organisations")
async def list_organisations(request: Request, who: Caller, limit: Limit = 50, cursor: Cursor = None) -> Response:
    """Your own; all of them for operators."""
    async with services_of(request).database.read() as transaction:
        page = await transaction.organisations.page(limit, cursor, None if who.is_staff else who.id)
    return json_response(200, page_document(page, organisation_document))
