"""What the routes work with: one frozen value, kept on the app."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field

from starlette.requests import HTTPConnection

from fairwater.domain.ids import UserId, WorkspaceId
from fairwater.ports.agent import Fact, RunAgent, WorkspaceAccess
from fairwater.ports.clock import Clock
from fairwater.ports.database import Database, Restored
from fairwater.server.authentication import Authenticator
from fairwater.server.bus import EventBus
from fairwater.server.metrics import Metrics
from fairwater.server.options import ServerOptions


@dataclass(frozen=True, slots=True)
class Services:
    """`wake` pokes the workspaces loop; `node_facts` asks the node what it offers.

    `backup` gives the database as it is at one moment; `restore` puts one in its place. Each is None where this server
    cannot.
    """

    database: Database
    wake: Callable[[WorkspaceId], None]
    agent: RunAgent
    access: WorkspaceAccess
    node_facts: Callable[[], Awaitable[tuple[Fact, ...]]]
    clock: Clock
    options: ServerOptions
    bus: EventBus
    metrics: Metrics
    authenticator: Authenticator
    backup: Callable[[], AsyncIterator[bytes]] | None = None
    restore: Callable[[AsyncIterator[bytes]], Awaitable[Restored]] | None = None
    under_way: set[tuple[UserId, str]] = field(default_factory=set)
    """The idempotency keys whose first request this server is answering."""


def services_of(connection: HTTPConnection) -> Services:
    services: Services = connection.app.state.services
    return services
