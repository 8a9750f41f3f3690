"""Files, logs, health, figures and the shape of errors."""

from __future__ import annotations

import pytest

from fairwater import __version__
from fairwater.domain.failure import Permanent
from fairwater.domain.workspaces.workspace import Event

from .conftest import API, MakeWorld, World


async def test_a_file_goes_in_and_comes_out_as_it_was(world: World) -> None:
    client = await world.member()
    made = await world.create(client)
    data = bytes(range(256)) * 20_000  # beyond the bound of other bodies
    written = await client.put(f"{API}/workspaces/{made['id']}/files/workspace/a b.bin", content=data)
    assert (written.status_code, written.json()) == (201, {"size": len(data)})
    read = await client.get(f"{API}/workspaces/{made['id']}/files/workspace/a b.bin")
    assert read.content == data
    assert list(world.agent.files) == ["/workspace/a b.bin"]


async def test_no_browser_takes_a_file_for_a_page_of_ours(world: World) -> None:
    client = await world.member()
    made = await world.create(client)
    world.agent.files["/workspace/x.html"] = b"<script>alert(1)</script>"
    answer = await client.get(f"{API}/workspaces/{made['id']}/files/workspace/x.html")
    assert answer.headers["content-type"] == "application/octet-stream"
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["content-security-policy"] == "sandbox"


async def test_a_folder_is_listed(world: World) -> None:
    client = await world.member()
    made = await world.create(client)
    world.agent.files["a"] = b"123"
    answer = await client.get(f"{API}/workspaces/{made['id']}/files/workspace")
    assert answer.json() == {"items": [{"name": "a", "kind": "file", "size": 3, "mode": 0o644, "modified_at": 0.0}]}


async def test_a_missing_file_is_a_problem_of_its_own(world: World) -> None:
    client = await world.member()
    made = await world.create(client)
    answer = await client.get(f"{API}/workspaces/{made['id']}/files/nope")
    assert (answer.status_code, answer.json()["code"]) == (404, "no_such_file")


async def test_logs_are_those_of_the_current_run(world: World) -> None:
    client = await world.member()
    made = await world.create(client)
    answer = await client.get(f"{API}/workspaces/{made['id']}/logs")
    assert answer.text == f"run 1 of {made['id']}\n"
    assert answer.headers["content-type"] == "text/plain; charset=utf-8"


async def test_readiness_gives_its_reasons(world: World) -> None:
    client = world.client()
    assert (await client.get("/readyz")).json() == {"status": "ready", "database": "ok", "agent": "ok"}
    world.agent.failure = Permanent("the agent speaks version 9", code="unknown_version")
    answer = await client.get("/readyz")
    assert (answer.status_code, answer.json()["agent"]) == (503, "the agent speaks version 9")
    assert (await client.get("/healthz")).json() == {"status": "ok"}


async def test_the_version_is_told_to_anybody(world: World) -> None:
    assert (await world.client().get(f"{API}/version")).json() == {"version": __version__, "api": "v1"}


async def test_the_configuration_is_shown_to_administrators(make_world: MakeWorld) -> None:
    world = await make_world(configuration={"server.listen": "127.0.0.1:7080"})
    assert (await world.client(uid=0).get(f"{API}/config")).json() == {"server.listen": "127.0.0.1:7080"}


async def test_the_node_is_shown_to_operators(world: World) -> None:
    answer = (await world.client(uid=0).get(f"{API}/node")).json()
    assert answer["hello"]["node"] == "tiny"
    assert answer["facts"][0]["level"] == "missing"


async def test_figures_count_what_happened(world: World) -> None:
    client = await world.member()
    first, second, third = [await world.create(client) for _ in range(3)]
    world.clock.advance(1.5)
    await world.record(first["id"], Event.PLACED, Event.READY, Event.STOP, Event.RELEASED)
    await world.record(second["id"], Event.FAIL, Event.RELEASED)
    await client.post(f"{API}/workspaces/{third['id']}/stop")
    figures = (await world.client(uid=0).get("/metrics")).text
    assert 'fairwater_workspace_startup_seconds_sum{class="standard",cluster="local"} 1.5' in figures
    assert 'fairwater_workspace_starts_total{outcome="started"} 1.0' in figures
    assert 'fairwater_workspace_starts_total{outcome="failed"} 1.0' in figures
    assert 'fairwater_workspace_starts_total{outcome="abandoned"} 1.0' in figures
    assert 'fairwater_workspace_stops_total{reason="stopped"} 1.0' in figures
    assert 'fairwater_workspace_stops_total{reason="failed"} 1.0' in figures
    assert "fairwater_event_loop_lag_seconds" in figures


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [("GET", "/nope", 404, "not_found"), ("PUT", f"{API}/me", 405, "method_not_allowed")],
)
async def test_errors_of_every_kind_are_problem_documents(
    world: World, method: str, path: str, status: int, code: str
) -> None:
    answer = await (await world.member()).request(method, path)
    assert answer.headers["content-type"] == "application/problem+json"
    assert (answer.status_code, answer.json()["status"], answer.json()["code"]) == (status, status, code)


async def test_a_field_that_is_wrong_is_named_and_its_value_not_repeated(world: World) -> None:
    answer = await (await world.member()).post(f"{API}/workspaces", json={"context_url": ["hunter2"]})
    assert answer.json()["errors"][0]["field"].endswith("context_url")
    assert "hunter2" not in answer.text


async def test_the_api_is_described(world: World) -> None:
    document = (await world.client().get("/api/openapi.json")).json()
    assert f"{API}/workspaces/{{workspace}}/start" in document["paths"]
