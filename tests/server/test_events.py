"""Server-sent events: complete, in order, taken up where they broke off, and each one's own."""

from __future__ import annotations

import pytest

from fairwater.domain.ids import WorkspaceId
from fairwater.domain.workspaces.run import Progress
from fairwater.domain.workspaces.workspace import Event
from fairwater.ports.accounts import Role

from .conftest import API, MakeWorld, World
from .streaming import Listener


async def test_a_workspaces_stream_tells_its_history_and_then_what_happens(world: World) -> None:
    _, token = await world.account("ada")
    made = await world.create(world.client(token))
    async with Listener(world.app, f"{API}/workspaces/{made['id']}/events", token) as listener:
        first = await listener.frame()
        assert (first.kind, first.data["event"], first.data["phase"]) == ("workspace", "start", "pending")
        assert first.id == first.data["sequence"]
        await world.record(made["id"], Event.PLACED)
        second = await listener.frame()
        assert (second.data["phase"], second.data["run"], second.data["workspace"]) == ("creating", 1, made["id"])


@pytest.mark.parametrize("resumed", ["header", "query"])
async def test_a_broken_stream_is_taken_up_after_the_last_event_seen(world: World, resumed: str) -> None:
    _, token = await world.account("ada")
    made = await world.create(world.client(token))
    path = f"{API}/workspaces/{made['id']}/events"
    async with Listener(world.app, path, token) as listener:
        last = (await listener.frame()).id
    await world.record(made["id"], Event.PLACED, Event.READY)
    headers = {"Last-Event-ID": str(last)} if resumed == "header" else {}
    query = f"after={last}" if resumed == "query" else "after=0"
    async with Listener(world.app, path, token, query, headers) as listener:
        assert [(await listener.frame()).data["phase"] for _ in range(2)] == ["creating", "running"]


async def test_the_stream_of_all_begins_now(world: World) -> None:
    _, token = await world.account("ada")
    client = world.client(token)
    await world.create(client)
    async with Listener(world.app, f"{API}/events", token) as listener:
        assert await listener.text() == "retry: 1000"
        second = await world.create(client)
        assert (await listener.frame()).data["workspace"] == second["id"]


async def test_a_long_history_arrives_whole_and_in_order(world: World) -> None:
    _, token = await world.account("ada")
    made = await world.create(world.client(token))
    for _ in range(60):
        await world.record(made["id"], Event.STOP, Event.RELEASED)
        await world.client(token).post(f"{API}/workspaces/{made['id']}/start")
        await world.record(made["id"], Event.PLACED)
    async with Listener(world.app, f"{API}/workspaces/{made['id']}/events", token) as listener:
        sequences = [(await listener.frame()).id for _ in range(1 + 60 * 4)]
    assert sequences == sorted(set(sequences), key=lambda number: number or 0)


async def test_progress_is_told_without_a_number(world: World) -> None:
    _, token = await world.account("ada")
    made = await world.create(world.client(token))
    async with Listener(world.app, f"{API}/events", token, "after=0") as listener:
        await listener.frame()
        await world.records.note_progress(WorkspaceId(made["id"]), Progress("cloning", 1, 2, "objects"))
        frame = await listener.frame()
    assert (frame.kind, frame.id) == ("progress", None)
    expected = {"step": "cloning", "done": 1, "total": 2, "unit": "objects"}
    assert frame.data == {"workspace": made["id"], "progress": expected}


async def test_nobody_is_told_of_another_members_workspaces(world: World) -> None:
    _, token = await world.account("ada")
    other = await world.create(await world.member("bob"))
    async with Listener(world.app, f"{API}/events", token, "after=0&owner=all") as listener:
        await listener.text()
        await world.record(other["id"], Event.PLACED)
        await world.records.note_progress(WorkspaceId(other["id"]), Progress("cloning"))
        mine = await world.create(world.client(token))
        assert (await listener.frame()).data["workspace"] == mine["id"]


async def test_operators_can_follow_everything(world: World) -> None:
    _, token = await world.account("olga", Role.OPERATOR)
    other = await world.create(await world.member("bob"))
    async with Listener(world.app, f"{API}/events", token, "after=0&owner=all") as listener:
        assert (await listener.frame()).data["workspace"] == other["id"]


async def test_a_quiet_stream_gives_signs_of_life(make_world: MakeWorld) -> None:
    world = await make_world(keep_alive_s=0.01)
    _, token = await world.account("ada")
    async with Listener(world.app, f"{API}/events", token) as listener:
        await listener.text()
        assert await listener.text() == ": keep-alive"


async def test_a_server_that_stops_ends_its_streams(world: World) -> None:
    import asyncio

    stopping = asyncio.Event()
    _, token = await world.account("ada")
    scope = {"fairwater.stopping": stopping}
    async with Listener(world.app, f"{API}/events", token, scope=scope) as listener:
        await listener.text()
        stopping.set()
        await listener.ended()


async def test_a_number_that_is_none_is_refused(world: World) -> None:
    client = await world.member()
    answer = await client.get(f"{API}/events", headers={"Last-Event-ID": "yesterday"})
    assert (answer.status_code, answer.json()["code"]) == (400, "bad_event_id")


async def test_who_leaves_is_forgotten(world: World) -> None:
    _, token = await world.account("ada")
    async with Listener(world.app, f"{API}/events", token) as listener:
        await listener.text()
        assert len(world.bus._subscriptions) == 1
    assert not world.bus._subscriptions
