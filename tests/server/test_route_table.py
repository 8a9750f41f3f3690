"""Every route of the app against everyone who is not meant to use it. A new route without an entry here fails."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import httpx2
import pytest
import structlog
from starlette.testclient import TestClient, WebSocketDenialResponse

from fairwater.domain.ids import UserId
from fairwater.domain.workspaces.secrets import Credential, CredentialKind
from fairwater.ports.accounts import Role
from fairwater.ports.vault import Holder, Variable
from fairwater.server.authorisation import RULES

from .conftest import World
from .streaming import Listener
from .tiny_agent import ScriptedProcess

WHO = ("anonymous", "other member", "owner", "operator", "admin", "blocked")


@dataclass(frozen=True)
class Expected:
    """A request about the owner's workspace or account, and the status that each one gets, in WHO's order."""

    method: str
    path: str
    statuses: tuple[int, int, int, int, int, int]
    body: dict[str, Any] | None = field(default=None, hash=False)


ROLES = {"other member": Role.MEMBER, "operator": Role.OPERATOR, "admin": Role.ADMIN, "blocked": Role.ADMIN}
ANYONE = (200, 200, 200, 200, 200, 200)
VARIABLE = {"name": "A", "value": "b"}
STREAMS = {"workspace_events", "all_events"}
EXPECTED: dict[str, Expected] = {
    "list_workspaces": Expected("GET", "/api/v1/workspaces", (401, 200, 200, 200, 200, 403)),
    "create_workspace": Expected(
        "POST", "/api/v1/workspaces", (401, 201, 201, 201, 201, 403), {"context_url": "https://example.org/a/b"}
    ),
    "show_workspace": Expected("GET", "/api/v1/workspaces/{workspace}", (401, 404, 200, 200, 200, 403)),
    "start_workspace": Expected("POST", "/api/v1/workspaces/{workspace}/start", (401, 404, 202, 403, 403, 403)),
    "stop_workspace": Expected("POST", "/api/v1/workspaces/{workspace}/stop", (401, 404, 202, 202, 202, 403)),
    "delete_workspace": Expected("DELETE", "/api/v1/workspaces/{workspace}", (401, 404, 202, 403, 403, 403)),
    "exec_command": Expected(
        "POST", "/api/v1/workspaces/{workspace}/exec", (401, 404, 200, 403, 403, 403), {"command": ["true"]}
    ),
    "exec_terminal": Expected("WS", "/api/v1/workspaces/{workspace}/exec", (401, 404, 101, 403, 403, 403)),
    "read_file": Expected("GET", "/api/v1/workspaces/{workspace}/files/a", (401, 404, 200, 403, 403, 403)),
    "write_file": Expected("PUT", "/api/v1/workspaces/{workspace}/files/a", (401, 404, 201, 403, 403, 403)),
    "read_logs": Expected("GET", "/api/v1/workspaces/{workspace}/logs", (401, 404, 200, 403, 403, 403)),
    "list_tasks": Expected("GET", "/api/v1/workspaces/{workspace}/tasks", (401, 404, 200, 403, 403, 403)),
    "read_task_log": Expected("GET", "/api/v1/workspaces/{workspace}/tasks/0/log", (401, 404, 200, 403, 403, 403)),
    "workspace_events": Expected("GET", "/api/v1/workspaces/{workspace}/events", (401, 404, 200, 200, 200, 403)),
    "all_events": Expected("GET", "/api/v1/events", (401, 200, 200, 200, 200, 403)),
    "show_me": Expected("GET", "/api/v1/me", (401, 200, 200, 200, 200, 403)),
    "list_users": Expected("GET", "/api/v1/users", (401, 403, 403, 200, 200, 403)),
    "create_user": Expected("POST", "/api/v1/users", (401, 403, 403, 403, 201, 403), {"name": "new"}),
    "change_user": Expected("PATCH", "/api/v1/users/{owner}", (401, 404, 200, 403, 200, 403), {}),
    "list_credentials": Expected("GET", "/api/v1/users/{owner}/credentials", (401, 404, 200, 403, 200, 403)),
    "add_credential": Expected(
        "POST",
        "/api/v1/users/{owner}/credentials",
        (401, 404, 201, 403, 201, 403),
        {"host": "git.example", "secret": "s3cret"},
    ),
    "delete_credential": Expected(
        "DELETE", "/api/v1/users/{owner}/credentials/{credential}", (401, 404, 204, 403, 204, 403)
    ),
    "list_variables": Expected("GET", "/api/v1/users/{owner}/variables", (401, 404, 200, 403, 200, 403)),
    "set_variable": Expected("PUT", "/api/v1/users/{owner}/variables", (401, 404, 200, 403, 200, 403), VARIABLE),
    "delete_variable": Expected("DELETE", "/api/v1/users/{owner}/variables/{variable}", (401, 404, 204, 403, 204, 403)),
    "list_organisation_variables": Expected(
        "GET", "/api/v1/organisations/default/variables", (401, 403, 403, 200, 200, 403)
    ),
    "set_organisation_variable": Expected(
        "PUT", "/api/v1/organisations/default/variables", (401, 403, 403, 403, 200, 403), VARIABLE
    ),
    "delete_organisation_variable": Expected(
        "DELETE", "/api/v1/organisations/default/variables/{shared}", (401, 403, 403, 403, 204, 403)
    ),
    "list_tokens": Expected("GET", "/api/v1/users/{owner}/tokens", (401, 404, 200, 403, 200, 403)),
    "create_token": Expected("POST", "/api/v1/users/{owner}/tokens", (401, 404, 201, 403, 201, 403), {}),
    "delete_token": Expected("DELETE", "/api/v1/users/{owner}/tokens/{token}", (401, 404, 204, 403, 204, 403)),
    "list_organisations": Expected("GET", "/api/v1/organisations", (401, 200, 200, 200, 200, 403)),
    "create_login_code": Expected("POST", "/api/v1/login/codes", (401, 403, 403, 403, 201, 403), {"user": "{owner}"}),
    "exchange_login_code": Expected(
        "POST", "/api/v1/login/exchange", (404, 404, 404, 404, 404, 404), {"code": "not one"}
    ),
    "show_version": Expected("GET", "/api/v1/version", ANYONE),
    "show_configuration": Expected("GET", "/api/v1/config", (401, 403, 403, 403, 200, 403)),
    "show_node": Expected("GET", "/api/v1/node", (401, 403, 403, 200, 200, 403)),
    "download_backup": Expected("GET", "/api/v1/admin/backup", (401, 403, 403, 403, 200, 403)),
    "upload_backup": Expected("POST", "/api/v1/admin/restore?confirm=true", (401, 403, 403, 403, 200, 403)),
    "rotate_keys": Expected("POST", "/api/v1/admin/rotate-keys", (401, 403, 403, 403, 200, 403)),
    "metrics": Expected("GET", "/metrics", (401, 403, 403, 200, 200, 403)),
    "healthz": Expected("GET", "/healthz", ANYONE),
    "readyz": Expected("GET", "/readyz", ANYONE),
    "openapi": Expected("GET", "/api/openapi.json", ANYONE),
}


def routes_of(app: Any) -> Iterator[tuple[str, str]]:
    """Name and path of every route, those of included routers too."""
    for route in app.routes:
        contexts = getattr(route, "effective_route_contexts", None)
        if contexts is None:
            yield route.name, route.path
        else:
            for context in contexts():
                inner = context.starlette_route or context
                yield inner.name, inner.path


async def test_every_route_has_a_rule_and_an_entry_here(world: World) -> None:
    names = [name for name, _ in routes_of(world.app)]
    assert sorted(names) == sorted(EXPECTED), "a route was added or removed: say here who may use it"
    assert sorted(name for name in names if name != "openapi") == sorted(RULES)


async def test_a_route_without_a_rule_can_be_used_by_nobody(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    client = await world.member()
    monkeypatch.delitem(RULES, "show_me")
    with structlog.testing.capture_logs() as logs:
        assert (await client.get("/api/v1/me")).status_code == 500
    assert [line["event"] for line in logs] == ["request_failed"]


@pytest.mark.parametrize("name", sorted(EXPECTED))
async def test_who_may_use_a_route(world: World, name: str) -> None:
    got = {who: await status_for(world, EXPECTED[name], who, name in STREAMS) for who in WHO}
    assert got == dict(zip(WHO, EXPECTED[name].statuses, strict=True))


async def status_for(world: World, expected: Expected, who: str, streamed: bool) -> int:
    """What `who` gets for the request about a workspace and an account of somebody made for it."""
    owner, owner_token = await world.account(f"owner-for-{who.replace(' ', '-')}")
    token: str | None = None
    if who == "owner":
        token = owner_token
    elif who in ROLES:
        account, token = await world.account(who.replace(" ", "-"), ROLES[who])
        if who == "blocked":
            async with world.database.write() as transaction:
                await transaction.accounts.change(account.id, None, True)
    world.agent.files["/a"] = b"content"
    world.agent.process = ScriptedProcess([])
    workspace = (await world.create(world.client(owner_token)))["id"]
    async with world.database.read() as transaction:
        kept = (await transaction.tokens.page(UserId(owner.id), 1, None)).items[0].id
        organisation = owner.organisations[0].id
    async with world.database.write() as transaction:
        given = Credential(CredentialKind.TOKEN, "registry.example", "ada", "s3cret")
        credential = (await transaction.secrets.put_credential(owner.id, given, None, world.clock.now())).id
        own, everyones = [
            (await transaction.secrets.put_variable(holder, Variable("GREETING", "hi"), world.clock.now())).id
            for holder in (Holder(owner.id), Holder(organisation, organisation=True))
        ]
    path = expected.path.format(
        workspace=workspace, owner=owner.id, token=kept, credential=credential, variable=own, shared=everyones
    )
    body = (
        None
        if expected.body is None
        else {
            key: value.format(owner=owner.name) if isinstance(value, str) else value
            for key, value in expected.body.items()
        }
    )
    if expected.method == "WS":
        return websocket_status(world, path, token)
    if streamed:
        async with Listener(world.app, path, token) as listener:
            return await listener.status()
    answer = await world.client(token).request(expected.method, path, json=body)
    if answer.status_code >= 400:
        assert_problem(answer)
    return answer.status_code


def assert_problem(answer: httpx2.Response) -> None:
    assert answer.headers["content-type"] == "application/problem+json"
    document = answer.json()
    assert document["status"] == answer.status_code
    assert document["code"]
    assert document["detail"]
    if answer.status_code == 401:
        assert answer.headers["www-authenticate"] == "Bearer"


def websocket_status(world: World, path: str, token: str | None) -> int:
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    try:
        with TestClient(world.app).websocket_connect(path, headers=headers):
            return 101
    except WebSocketDenialResponse as denial:
        return int(denial.status_code)
