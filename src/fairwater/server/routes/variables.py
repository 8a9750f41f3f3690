"""Variables of people and of organisations, for the workspaces of the repositories that their pattern means.

A secret value comes in and is never in an answer or a log. No `Idempotency-Key` is needed: PUT is the same done twice.
"""

from __future__ import annotations

import structlog
from fastapi import APIRouter, Request
from starlette.responses import Response

from fairwater.domain.failure import Permanent
from fairwater.domain.workspaces.pattern import parse_pattern
from fairwater.ports.database import Transaction
from fairwater.ports.vault import VALUE_BYTES_MAX, Holder, Variable
from fairwater.server.authentication import Principal
from fairwater.server.authorisation import Caller, account_for
from fairwater.server.documents import variable_document
from fairwater.server.idempotency import json_response
from fairwater.server.messages import RESERVED_VARIABLES, SetVariable
from fairwater.server.services import services_of

router = APIRouter(tags=["variables"])
_log = structlog.get_logger("fairwater.server")


@router.get("/users/{user}/variables")
async def list_variables(request: Request, who: Caller, user: str) -> Response:
    """All of them: there are 256 at most."""
    async with services_of(request).database.read() as transaction:
        return await _list(transaction, await _person(request, transaction, who, user))


@router.put("/users/{user}/variables")
async def set_variable(request: Request, who: Caller, user: str, body: SetVariable) -> Response:
    """In place of the one of that name for the same repositories. Workspaces have it from their next start on."""
    variable = _variable(body)
    async with services_of(request).database.write() as transaction:
        return await _set(request, transaction, who, await _person(request, transaction, who, user), variable)


@router.delete("/users/{user}/variables/{variable}", status_code=204)
async def delete_variable(request: Request, who: Caller, user: str, variable: str) -> Response:
    async with services_of(request).database.write() as transaction:
        return await _delete(transaction, who, await _person(request, transaction, who, user), variable)


@router.get("/organisations/{organisation}/variables")
async def list_organisation_variables(request: Request, who: Caller, organisation: str) -> Response:
    async with services_of(request).database.read() as transaction:
        return await _list(transaction, await _organisation(transaction, organisation))


@router.put("/organisations/{organisation}/variables")
async def set_organisation_variable(request: Request, who: Caller, organisation: str, body: SetVariable) -> Response:
    """For the workspaces of all its members; what a person has of the same name goes before it."""
    variable = _variable(body)
    async with services_of(request).database.write() as transaction:
        return await _set(request, transaction, who, await _organisation(transaction, organisation), variable)


@router.delete("/organisations/{organisation}/variables/{variable}", status_code=204)
async def delete_organisation_variable(request: Request, who: Caller, organisation: str, variable: str) -> Response:
    async with services_of(request).database.write() as transaction:
        return await _delete(transaction, who, await _organisation(transaction, organisation), variable)


async def _person(request: Request, transaction: Transaction, who: Principal, user: str) -> Holder:
    return Holder((await account_for(request, transaction, who, user)).id)


async def _organisation(transaction: Transaction, reference: str) -> Holder:
    found = await transaction.organisations.find(reference)
    if found is None:
        raise Permanent(f"there is no organisation {reference[:80]!r}", code="no_such_organisation")
    return Holder(found.id, organisation=True)


def _variable(body: SetVariable) -> Variable:
    """Raises Permanent: `bad_variable`, `bad_pattern`."""
    if body.name in RESERVED_VARIABLES:
        raise Permanent(f"{body.name} is set by Fairwater: choose another name", code="bad_variable")
    if len(body.value.encode("utf-8", "surrogatepass")) > VALUE_BYTES_MAX:
        raise Permanent(f"a value has at most {VALUE_BYTES_MAX // 1024} KiB", code="bad_variable")
    return Variable(body.name, body.value, parse_pattern(body.repository), body.secret)


async def _list(transaction: Transaction, holder: Holder) -> Response:
    found = await transaction.secrets.variables(holder)
    return json_response(200, {"items": [variable_document(one) for one in found], "next": None})


async def _set(
    request: Request, transaction: Transaction, who: Principal, holder: Holder, variable: Variable
) -> Response:
    stored = await transaction.secrets.put_variable(holder, variable, services_of(request).clock.now())
    _log.info("variable_set", variable=stored.id, name=stored.name, holder=holder.id, by=who.id)
    return json_response(200, variable_document(stored))


async def _delete(transaction: Transaction, who: Principal, holder: Holder, variable: str) -> Response:
    if not await transaction.secrets.remove_variable(holder, variable):
        raise Permanent(f"there is no variable {variable[:40]!r}", code="no_such_variable")
    _log.info("variable_deleted", variable=variable[:40], holder=holder.id, by=who.id)
    return Response(status_code=204)
