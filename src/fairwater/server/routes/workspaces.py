"""Workspaces: created, listed, started, stopped and deleted. What a start may be is decided in the domain."""

from __future__ import annotations

import os
from dataclasses import replace
from datetime import datetime
from typing import Annotated, Literal

import structlog
from fastapi import APIRouter, Query, Request
from starlette.responses import Response

from fairwater.domain.abuse.rate import admit_parallel, admit_start
from fairwater.domain.failure import Permanent, Temporary
from fairwater.domain.ids import ID_LENGTH, parse_name, workspace_id
from fairwater.domain.images.reference import parse_reference
from fairwater.domain.workspaces.context import Context, Scheme, parse_context
from fairwater.domain.workspaces.workspace import ACTIVE, Event, Phase
from fairwater.ports.catalogue import Entry, Order
from fairwater.ports.database import Transaction
from fairwater.server.authentication import Principal, blocked
from fairwater.server.authorisation import Caller, forbidden, workspace_for
from fairwater.server.documents import page_document, workspace_document
from fairwater.server.idempotency import Reply, answer_once, json_response
from fairwater.server.messages import CreateWorkspace, StopWorkspace
from fairwater.server.naming import free_name, name_stem
from fairwater.server.paging import Cursor, Limit
from fairwater.server.services import Services, services_of

router = APIRouter(prefix="/workspaces", tags=["workspaces"])
_log = structlog.get_logger("fairwater.server")


@router.get("")
async def list_workspaces(
    request: Request,
    who: Caller,
    owner: Literal["me", "all"] = "me",
    phase: Annotated[Phase | None, Query()] = None,
    limit: Limit = 50,
    cursor: Cursor = None,
) -> Response:
    """The newest first. `all` is all that you may see: everybody's for operators, your own for members."""
    services = services_of(request)
    seen = None if owner == "all" and who.is_staff else who.id
    page = await services.database.reading(lambda transaction: transaction.workspaces.page(seen, phase, limit, cursor))
    return json_response(200, page_document(page, lambda entry: workspace_document(entry, services.options)))


@router.post("", status_code=201)
async def create_workspace(request: Request, who: Caller, body: CreateWorkspace) -> Response:
    services = services_of(request)
    context = parse_context(body.context_url)
    _check_class(services, body.workspace_class)
    if context.scheme is Scheme.FILE and not who.local:
        raise Permanent(
            "file:// is for the local administrator alone, on Fairwater's own machine: give an https or ssh URL",
            code="local_only",
        )
    reference = parse_reference(body.image) if body.image is not None else None
    local = context.scheme is Scheme.FILE or (reference is not None and reference.local)
    if reference is not None and reference.local and not who.local:
        raise Permanent(
            f"{reference.kind}: is for the local administrator alone, on Fairwater's own machine: give an image of a "
            "registry",
            code="local_only",
        )
    if body.name is not None:
        parse_name(body.name)

    async def act(transaction: Transaction) -> Reply:
        now = services.clock.now()
        # A workspace counts as a start even when it is created stopped: so nobody fills the database with them.
        await _admit(services, transaction, who, now, parallel=body.start)
        entry = await _add(transaction, who, _order(services, body, local), context, now)
        if body.start:
            entry = await transaction.workspaces.apply(entry, Event.START, "asked for by its owner", now)
        key = entry.workspace.id
        _log.info("workspace_created", workspace=key, owner=who.id, start=body.start)
        return Reply(
            201,
            workspace_document(entry, services.options),
            location=f"/api/v1/workspaces/{key}",
            then=(lambda: services.wake(key)) if body.start else None,
        )

    return await answer_once(request, who, act)


@router.get("/{workspace}")
async def show_workspace(request: Request, who: Caller, workspace: str) -> Response:
    services = services_of(request)
    entry = await services.database.reading(lambda transaction: workspace_for(request, transaction, who, workspace))
    return json_response(200, workspace_document(entry, services.options))


@router.post("/{workspace}/start", status_code=202)
async def start_workspace(request: Request, who: Caller, workspace: str) -> Response:
    """Does nothing to a workspace that runs or is starting already."""
    services = services_of(request)

    async def act(transaction: Transaction) -> Reply:
        now = services.clock.now()
        entry = await workspace_for(request, transaction, who, workspace)
        if entry.workspace.phase not in ACTIVE and not entry.workspace.doomed:
            _check_class(services, entry.workspace_class)
            await _admit(services, transaction, who, now)
        return await _apply(services, transaction, entry, Event.START, "asked for by its owner", now)

    return await answer_once(request, who, act)


@router.post("/{workspace}/stop", status_code=202)
async def stop_workspace(
    request: Request, who: Caller, workspace: str, body: StopWorkspace = StopWorkspace()
) -> Response:
    services = services_of(request)

    async def act(transaction: Transaction) -> Reply:
        entry = await workspace_for(request, transaction, who, workspace)
        reason = "stopped by its owner" if entry.owner == who.id else f"stopped by {who.account.name}"
        now = services.clock.now()
        return await _apply(services, transaction, entry, Event.STOP, reason, now, force=body.force)

    return await answer_once(request, who, act)


@router.delete("/{workspace}", status_code=202)
async def delete_workspace(request: Request, who: Caller, workspace: str) -> Response:
    """For good. One that runs is stopped first."""
    services = services_of(request)

    async def act(transaction: Transaction) -> Reply:
        entry = await workspace_for(request, transaction, who, workspace)
        now = services.clock.now()
        return await _apply(services, transaction, entry, Event.DELETE, "deleted by its owner", now)

    return await answer_once(request, who, act)


async def _apply(
    services: Services,
    transaction: Transaction,
    entry: Entry,
    event: Event,
    reason: str,
    now: datetime,
    *,
    force: bool = False,
) -> Reply:
    after = await transaction.workspaces.apply(entry, event, reason, now, force=force)
    key = after.workspace.id
    return Reply(202, workspace_document(after, services.options), then=lambda: services.wake(key))


async def _admit(
    services: Services, transaction: Transaction, who: Principal, now: datetime, *, parallel: bool = True
) -> None:
    """Takes one start from the account's allowance. Raises those of `domain/abuse/rate.py`; `blocked`."""
    allowance = await transaction.allowances.allowance(who.id)
    if allowance is None or allowance.blocked:
        raise blocked()
    limit = services.options.start_limit
    try:
        if parallel:
            admit_parallel(allowance.active, limit)
        arrival = admit_start(allowance.arrival, now, limit)
    except (Permanent, Temporary) as failure:
        services.metrics.refused(failure.code)
        _log.info("start_refused", account=who.id, code=failure.code)
        raise
    await transaction.allowances.spend(who.id, arrival)


def _order(services: Services, body: CreateWorkspace, local: bool) -> Order:
    image = body.image.strip() if body.image is not None else None
    return Order(
        name=body.name or "",
        context_url=body.context_url.strip(),
        workspace_class=body.workspace_class,
        image=image or services.options.default_image,
        command=tuple(body.command) if body.command is not None else None,
        environment=tuple(sorted(body.environment.items())),
        local_allowed=local,
        image_asked=image,
    )


async def _add(transaction: Transaction, who: Principal, order: Order, context: Context, now: datetime) -> Entry:
    if not who.account.organisations:
        raise forbidden("your account is in no organisation: ask an administrator")
    if not order.name:
        stem = name_stem(context.name)
        name = free_name(stem, await transaction.workspaces.names_like(who.id, stem))
        order = replace(order, name=name)
    organisation = who.account.organisations[0]
    return await transaction.workspaces.add(workspace_id(os.urandom(ID_LENGTH)), who.id, organisation.id, order, now)


def _check_class(services: Services, name: str) -> None:
    if name not in services.options.classes:
        known = ", ".join(sorted(services.options.classes))
        raise Permanent(f"there is no class {name[:63]!r}: choose one of {known}", code="no_such_class")
