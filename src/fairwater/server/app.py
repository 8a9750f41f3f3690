"""The HTTP API as one ASGI app, made from its collaborators. Knows no configuration file and starts nothing."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress

from fastapi import APIRouter, Depends, FastAPI

from fairwater import __version__
from fairwater.domain.ids import WorkspaceId
from fairwater.ports.agent import Fact, RunAgent, WorkspaceAccess
from fairwater.ports.clock import Clock
from fairwater.ports.database import Database, Restored
from fairwater.server.authentication import Authenticator
from fairwater.server.authorisation import authorise
from fairwater.server.body_limit import BodyLimit
from fairwater.server.bus import EventBus
from fairwater.server.metrics import Metrics
from fairwater.server.options import ServerOptions
from fairwater.server.routes import (
    administration,
    credentials,
    events,
    exec,
    files,
    login,
    logs,
    platform,
    tasks,
    terminal,
    users,
    variables,
    workspaces,
)
from fairwater.server.services import Services
from fairwater.serving.problems import install_problems

PREFIX = "/api/v1"
STATUSES = {
    "blocked": 403,
    "forbidden": 403,
    "local_only": 403,
    "outside": 403,
    "no_such_workspace": 404,
    "no_such_user": 404,
    "no_such_token": 404,
    "no_such_file": 404,
    "no_such_code": 404,
    "no_such_credential": 404,
    "no_such_variable": 404,
    "no_such_organisation": 404,
    "no_such_task": 404,
    "no_such_folder": 404,
    "access_denied": 403,
    "too_large": 413,
    "command_too_long": 422,
    "not_executable": 422,
    "command_not_executable": 422,
    "bad_context_url": 422,
    "bad_name": 422,
    "bad_image": 422,
    "bad_host": 422,
    "bad_pattern": 422,
    "bad_ssh_key": 422,
    "no_such_class": 422,
    "no_such_image": 422,
    "command_not_found": 422,
    "bad_cwd": 422,
    "not_a_file": 422,
    "idempotency_key_reused": 422,
    "idempotency_in_progress": 409,
    "exec_timeout": 504,
    "quota_exceeded": 507,
    "bad_backup": 422,
    "newer_backup": 422,
    "backup_too_large": 413,
    "bad_value": 422,
    "database_refused": 503,
    "wrong_master_key": 500,
    "sealed_damaged": 500,
    "not_offered": 501,
}
"""Codes of failures whose status is not the one of their kind: see `serving/problems.py`."""


def create_app(
    *,
    database: Database,
    wake: Callable[[WorkspaceId], None],
    agent: RunAgent,
    access: WorkspaceAccess,
    node_facts: Callable[[], Awaitable[tuple[Fact, ...]]],
    clock: Clock,
    options: ServerOptions,
    bus: EventBus,
    backup: Callable[[], AsyncIterator[bytes]] | None = None,
    restore: Callable[[AsyncIterator[bytes]], Awaitable[Restored]] | None = None,
) -> FastAPI:
    """`bus` is to be told by the store: give `bus.committed` and `bus.progressed` to it. `backup`: see `Services`."""
    metrics = Metrics(options.cluster)
    bus.listen(metrics.observe)
    services = Services(
        database=database,
        wake=wake,
        agent=agent,
        access=access,
        node_facts=node_facts,
        clock=clock,
        options=options,
        bus=bus,
        metrics=metrics,
        authenticator=Authenticator(database, clock, options),
        backup=backup,
        restore=restore,
    )
    app = FastAPI(
        title="Fairwater",
        version=__version__,
        description="Developer workspaces. Send `Authorization: Bearer TOKEN`.",
        openapi_url="/api/openapi.json",
        docs_url=None,  # their scripts would come from elsewhere
        redoc_url=None,
        lifespan=_lifespan,
        telemetry={"tracing": False},
    )
    app.state.services = services
    install_problems(app, STATUSES)
    app.add_middleware(BodyLimit)
    gate = [Depends(authorise)]
    api = APIRouter(prefix=PREFIX)
    for module in (
        workspaces, exec, terminal, files, logs, tasks, events, users, credentials, variables, login, platform,
        administration,
    ):  # fmt: skip
        api.include_router(module.router)
    app.include_router(api, dependencies=gate)
    app.include_router(platform.root_router, dependencies=gate)
    return app


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    watching = asyncio.create_task(app.state.services.metrics.watch_event_loop())
    try:
        yield
    finally:
        watching.cancel()
        with suppress(asyncio.CancelledError):
            await watching
