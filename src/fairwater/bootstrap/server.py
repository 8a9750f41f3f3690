"""The control plane, wired together."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator
from pathlib import Path

import uvloop
from fastapi import FastAPI

from fairwater.bootstrap.process import SystemClock, raise_descriptor_limit, stop_on_signals
from fairwater.data_dir import DataDir
from fairwater.engines.local.client import AgentClient
from fairwater.loops.workspaces import WorkspacesLoop
from fairwater.server.app import create_app
from fairwater.server.bus import EventBus
from fairwater.server.options import ServerOptions
from fairwater.serving.logs import configure_logs
from fairwater.serving.serve import serve
from fairwater.settings import Settings
from fairwater.store.database import SqlDatabase
from fairwater.store.migration import upgrade
from fairwater.store.records import SqlWorkspaceRecords


def run_server(settings: Settings, data_dir: Path) -> None:
    """The control plane, until SIGTERM or SIGINT. Needs no privilege."""
    configure_logs(part="server")
    raise_descriptor_limit()
    uvloop.run(_run_server(settings, DataDir(data_dir)))


async def _run_server(settings: Settings, data: DataDir) -> None:
    stop = stop_on_signals()
    listen = settings.server.listen
    async with open_server(settings, data) as app:
        await serve(
            app,
            unix_socket=data.server_socket,
            tcp=(listen.host, listen.port),
            # Anybody may connect: who it is decides what is allowed, and only some are the local administrator.
            socket_mode=0o666,
            stop=stop,
        )


@contextlib.asynccontextmanager
async def open_server(settings: Settings, data: DataDir) -> AsyncIterator[FastAPI]:
    """The server's app with its loop running; the database is brought up to date first."""
    data.server.mkdir(parents=True, exist_ok=True, mode=0o700)
    url = settings.server.database_url or f"sqlite:///{data.server / 'fairwater.db'}"
    await upgrade(url)
    bus, clock = EventBus(), SystemClock()
    database = SqlDatabase.open(url, settings.deadlines, bus.committed)
    options = ServerOptions(
        public_url=settings.server.public_url,
        classes=settings.classes,
        start_limit=settings.limits,
        administrator_uids=frozenset({0, os.geteuid(), data.root.stat().st_uid}),
        configuration={explained.key: explained.value for explained in settings.explain()},
    )
    records = SqlWorkspaceRecords(database, settings.classes, options.workspace_url, clock, bus.progressed)
    async with AgentClient(data.node_socket) as agent:
        loop = WorkspacesLoop(records, agent, clock)
        looping = asyncio.create_task(loop.run(), name="workspaces")
        try:
            yield create_app(
                database=database,
                wake=loop.wake,
                agent=agent,
                access=agent,
                node_facts=agent.facts,
                clock=clock,
                options=options,
                bus=bus,
            )
        finally:
            looping.cancel()
            await asyncio.gather(looping, return_exceptions=True)
            await database.close()
