"""What Fairwater says of itself: version, configuration, node, health and figures."""

from __future__ import annotations

import asyncio
from dataclasses import asdict

from fastapi import APIRouter, Request
from starlette.responses import Response

from fairwater import __version__
from fairwater.domain.failure import Permanent, Temporary
from fairwater.server.authorisation import Caller
from fairwater.server.documents import fact_document
from fairwater.server.idempotency import json_response
from fairwater.server.metrics import CONTENT_TYPE
from fairwater.server.services import Services, services_of

router = APIRouter(tags=["platform"])
root_router = APIRouter(tags=["platform"])
_READINESS_TIMEOUT_S = 2.0


@router.get("/version")
async def show_version() -> Response:
    return json_response(200, {"version": __version__, "api": "v1"})


@router.get("/config")
async def show_configuration(request: Request, who: Caller) -> Response:
    """The configuration in force, secrets masked."""
    return json_response(200, dict(services_of(request).options.configuration))


@router.get("/node")
async def show_node(request: Request, who: Caller) -> Response:
    services = services_of(request)
    hello = await services.agent.hello()
    facts = await services.node_facts()
    return json_response(200, {"hello": asdict(hello), "facts": [fact_document(fact) for fact in facts]})


@root_router.get("/healthz")
async def healthz() -> Response:
    """The process answers."""
    return json_response(200, {"status": "ok"})


@root_router.get("/readyz")
async def readyz(request: Request) -> Response:
    """It can do its work: 503 with the reasons while it cannot."""
    services = services_of(request)
    database, agent = await asyncio.gather(_database(services), _agent(services))
    ready = database == agent == "ok"
    return json_response(
        200 if ready else 503,
        {"status": "ready" if ready else "not ready", "database": database, "agent": agent},
        None if ready else {"Retry-After": "1"},
    )


@root_router.get("/metrics")
async def metrics(request: Request, who: Caller) -> Response:
    return Response(services_of(request).metrics.render(), media_type=CONTENT_TYPE)


async def _database(services: Services) -> str:
    try:
        async with asyncio.timeout(_READINESS_TIMEOUT_S):
            await services.database.ping()
    except TimeoutError:
        return "does not answer"
    except (Temporary, Permanent) as failure:
        return failure.message
    return "ok"


async def _agent(services: Services) -> str:
    try:
        async with asyncio.timeout(_READINESS_TIMEOUT_S):
            await services.agent.hello()
    except TimeoutError:
        return "does not answer"
    except (Temporary, Permanent) as failure:
        return failure.message
    return "ok"
