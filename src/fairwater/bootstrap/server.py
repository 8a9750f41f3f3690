"""The control plane, wired together."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from secrets import token_hex

import uvloop
from fastapi import FastAPI

from fairwater.bootstrap.process import SystemClock, raise_descriptor_limit, stop_on_signals
from fairwater.data_dir import DataDir
from fairwater.engines.local.client import AgentClient
from fairwater.loops.lease import LeaseKeeper
from fairwater.loops.workspaces import WorkspacesLoop
from fairwater.ports.database import Restored
from fairwater.server.app import create_app
from fairwater.server.bus import EventBus
from fairwater.server.options import ServerOptions
from fairwater.serving.logs import configure_logs
from fairwater.serving.serve import serve
from fairwater.settings import Settings
from fairwater.store.backup import backup, restore
from fairwater.store.database import SqlDatabase
from fairwater.store.leases import SqlLeases
from fairwater.store.migration import upgrade
from fairwater.store.records import SqlWorkspaceRecords
from fairwater.store.vault import Vault
from fairwater.store.vault_keys import keys_in

_DATABASE_WITHIN_S = 30.0
"""How long a server that starts waits for its database: after a restart of the machine, both start at once."""


def run_server(settings: Settings, data_dir: Path) -> None:
    """The control plane, until SIGTERM or SIGINT. Needs no privilege."""
    configure_logs(part="server")
    raise_descriptor_limit()
    uvloop.run(_run_server(settings, DataDir(data_dir)))


async def _run_server(settings: Settings, data: DataDir) -> None:
    stop = stop_on_signals()
    listen = settings.server.listen
    async with open_server(settings, data, stop) as app:
        await serve(
            app,
            unix_socket=data.server_socket,
            tcp=(listen.host, listen.port),
            # Anybody may connect: who it is decides what is allowed, and only some are the local administrator.
            socket_mode=0o666,
            stop=stop,
        )


@contextlib.asynccontextmanager
async def open_server(settings: Settings, data: DataDir, stop: asyncio.Event | None = None) -> AsyncIterator[FastAPI]:
    """The server's app with its loop running; the database is brought up to date first.

    Once `stop` is set, another server may look after workspaces, while this one still answers.
    """
    data.server.mkdir(parents=True, exist_ok=True, mode=0o700)
    url = settings.server.database_url or f"sqlite:///{data.server / 'fairwater.db'}"
    await upgrade(url, _DATABASE_WITHIN_S)
    bus, clock = EventBus(), SystemClock()
    database = await _open_database(settings, data, url, bus)
    options = ServerOptions(
        public_url=settings.server.public_url,
        classes=settings.classes,
        start_limit=settings.limits,
        default_image=settings.images.default,
        administrator_uids=frozenset({0, os.geteuid(), data.root.stat().st_uid}),
        configuration={explained.key: explained.value for explained in settings.explain()},
    )
    lease = LeaseKeeper(SqlLeases(database, clock), "workspaces", database.server)
    records = SqlWorkspaceRecords(
        database, settings.classes, options.workspace_url, clock, bus.progressed, lease.current
    )
    async with AgentClient(data.node_socket) as agent:
        loop = WorkspacesLoop(records, agent, clock, lease)
        bus.listen(lambda change: loop.wake(change.after.id) if change.elsewhere else None)
        following = asyncio.create_task(database.follow(), name="database")
        looking_after = asyncio.create_task(_look_after(loop, lease, stop or asyncio.Event()), name="workspaces")

        async def put_back(chunks: AsyncIterator[bytes]) -> Restored:
            restored = await restore(database, chunks, agent.runs, clock.now())
            loop.sweep()
            return restored

        try:
            app = create_app(
                database=database,
                wake=loop.wake,
                agent=agent,
                access=agent,
                node_facts=agent.facts,
                clock=clock,
                options=options,
                bus=bus,
                backup=lambda: backup(database, clock.now()),
                restore=put_back,
            )
            _keep_all_there_is()
            yield app
        finally:
            for task in (looking_after, following):
                task.cancel()
            await asyncio.gather(looking_after, following, return_exceptions=True)
            await database.close()


async def _look_after(loop: WorkspacesLoop, lease: LeaseKeeper, stop: asyncio.Event) -> None:
    """Until `stop` is set; the lease is free at once then."""
    tasks = [asyncio.create_task(work) for work in (loop.run(), lease.run(), stop.wait())]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await lease.release()


def _keep_all_there_is() -> None:
    """What is there now stays to the end: looking through it for garbage would stop every request for 100 ms."""
    gc.collect()
    gc.freeze()


def _server_name() -> str:
    """Unlike any other's, and such that an operator finds the process."""
    return f"{socket.gethostname()[:40]}:{os.getpid()}:{token_hex(4)}"


async def _open_database(settings: Settings, data: DataDir, url: str, bus: EventBus) -> SqlDatabase:
    """With the vault for the secrets in it, whose key must be the one they are sealed with."""
    named = settings.server.master_key_file
    path = named or data.server / "master.key"
    made = settings.server.master_key is None and not path.exists()
    vault = Vault(settings.server.master_key or keys_in(path, make=named is None))
    database = SqlDatabase.open(url, settings.deadlines, bus.committed, vault, _server_name())
    try:
        async with database.write() as transaction:
            await transaction.secrets.prove_key(SystemClock().now())
    except BaseException:
        if made:
            path.unlink(missing_ok=True)  # it opens nothing, and would pass for the one that is missed
        await database.close()
        raise
    return database
