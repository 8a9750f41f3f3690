"""The tasks of a run over HTTP."""

from __future__ import annotations

from datetime import timedelta

from fairwater.domain.failure import Permanent
from fairwater.domain.workspaces.run import TaskFacts, TaskState

from .conftest import API, World
from .streaming import Listener
from .tiny_agent import START


async def test_tasks_are_shown_with_their_state_and_their_end(world: World) -> None:
    world.agent.task_facts = (
        TaskFacts(0, "build", TaskState.FAILED, 2, START, START + timedelta(seconds=5)),
        TaskFacts(1, "", TaskState.WAITING),
    )
    client = await world.member()
    made = await world.create(client)
    items = (await client.get(f"{API}/workspaces/{made['id']}/tasks")).json()["items"]
    assert items == [
        {
            "number": 0,
            "name": "build",
            "state": "failed",
            "exit_status": 2,
            "started_at": "2022-04-11T08:00:00.000Z",
            "ended_at": "2022-04-11T08:00:05.000Z",
        },
        {"number": 1, "name": "", "state": "waiting", "exit_status": None, "started_at": None, "ended_at": None},
    ]


async def test_a_tasks_output_can_be_read(world: World) -> None:
    client = await world.member()
    made = await world.create(client)
    answer = await client.get(f"{API}/workspaces/{made['id']}/tasks/0/log")
    assert answer.text == "building\n"
    assert answer.headers["x-content-type-options"] == "nosniff"


async def test_a_followed_task_is_read_as_it_prints_until_it_ends(world: World) -> None:
    _, token = await world.account("ada")
    made = await world.create(world.client(token))
    async with Listener(world.app, f"{API}/workspaces/{made['id']}/tasks/0/log", token, "follow=true") as listener:
        assert await listener.status() == 200
        assert await listener.chunk() == b"building\n"
        world.agent.task_over.set()
        assert await listener.chunk() == b""


async def test_a_task_that_there_is_not_is_not_found(world: World) -> None:
    client = await world.member()
    made = await world.create(client)
    for number, status in (("7", 404), ("-1", 422), ("99999", 422), ("build", 422)):
        assert (await client.get(f"{API}/workspaces/{made['id']}/tasks/{number}/log")).status_code == status


async def test_a_workspace_that_never_ran_has_no_tasks(world: World) -> None:
    client = await world.member()
    made = await world.create(client, start=False)
    world.agent.failure = Permanent("the workspace does not run", code="not_running")
    answer = await client.get(f"{API}/workspaces/{made['id']}/tasks")
    assert (answer.status_code, answer.json()["code"]) == (409, "not_running")
