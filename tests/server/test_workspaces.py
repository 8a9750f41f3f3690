"""Workspaces over HTTP: made, found, started, stopped, deleted."""

from __future__ import annotations

import pytest

from fairwater.domain.ids import RunNumber, WorkspaceId
from fairwater.domain.workspaces.notice import Level, Notice
from fairwater.domain.workspaces.setup import PortRule, Setup, Task
from fairwater.domain.workspaces.workspace import Event
from fairwater.ports.accounts import Role

from .conftest import API, MakeWorld, World

ROOT_UID = 0


async def test_a_new_workspace_is_pending_under_its_address_and_the_loop_is_woken(world: World) -> None:
    client = await world.member()
    answer = await client.post(f"{API}/workspaces", json={"context_url": "https://example.org/team/repo"})
    document = answer.json()
    assert answer.headers["location"] == f"{API}/workspaces/{document['id']}"
    assert document["phase"] == "pending"
    assert document["run"] == 1
    assert document["url"] == f"http://{document['id']}.ws.localhost:7080"
    assert document["deadline"] == {"kind": "startup", "at": "2022-04-11T08:02:00.000Z"}
    assert (document["owner"], document["organisation"], document["name"]) == ("ada", "default", "repo")
    assert world.woken == [document["id"]]


async def test_a_workspace_created_stopped_wakes_nobody(world: World) -> None:
    document = await world.create(await world.member(), start=False)
    assert (document["phase"], document["run"], document["deadline"]) == ("stopped", 0, None)
    assert world.woken == []


async def test_unnamed_workspaces_of_one_repository_are_numbered(world: World) -> None:
    client = await world.member()
    names = [(await world.create(client))["name"] for _ in range(3)]
    assert names == ["repo", "repo-2", "repo-3"]
    assert (await world.create(await world.member("bob")))["name"] == "repo"


async def test_a_name_in_use_is_refused_until_its_workspace_is_deleted(world: World) -> None:
    client = await world.member()
    first = await world.create(client, name="mine", start=False)
    body = {"context_url": "https://example.org/team/repo", "name": "mine"}
    refused = await client.post(f"{API}/workspaces", json=body)
    assert (refused.status_code, refused.json()["code"]) == (409, "name_taken")
    assert (await client.delete(f"{API}/workspaces/{first['id']}")).json()["phase"] == "deleted"
    assert (await client.post(f"{API}/workspaces", json=body)).status_code == 201


@pytest.mark.parametrize(
    ("body", "code"),
    [
        ({"context_url": "https://user:secret@example.org/a/b"}, "bad_context_url"),
        ({"context_url": "--upload-pack=evil"}, "bad_context_url"),
        ({"context_url": "https://example.org/a/b", "class": "huge"}, "no_such_class"),
        ({"context_url": "https://example.org/a/b", "name": "../up"}, "bad_name"),
        ({"context_url": "https://example.org/a/b", "image": "-v /:/host"}, "bad_image"),
        ({"context_url": "https://example.org/a/b", "image": ""}, "invalid_request"),
        ({"context_url": "https://example.org/a/b", "image": "registry.example/UPPER"}, "bad_image"),
        ({"context_url": "https://example.org/a/b", "image": "registry.example/a@sha256:short"}, "bad_image"),
        ({"context_url": "https://example.org/a/b", "colour": "red"}, "invalid_request"),
        ({"context_url": "https://example.org/a/b", "environment": {"A B": "c"}}, "invalid_request"),
        ({"context_url": "https://example.org/a/b", "environment": {"FAIRWATER_REPO_ROOT": "/"}}, "invalid_request"),
        ({"context_url": "https://example.org/a/b", "command": ["a\0b"]}, "invalid_request"),
        ({"context_url": "https://example.org/a/b", "command": []}, "invalid_request"),
        ({}, "invalid_request"),
    ],
)
async def test_bad_orders_are_refused_and_leave_nothing(world: World, body: dict[str, object], code: str) -> None:
    client = await world.member()
    answer = await client.post(f"{API}/workspaces", json=body)
    assert (answer.status_code, answer.json()["code"]) == (422, code)
    assert "secret" not in answer.text
    assert (await client.get(f"{API}/workspaces")).json()["items"] == []
    assert world.woken == []


async def test_local_repositories_are_for_the_local_administrator_alone(world: World) -> None:
    body = {"context_url": "file:///srv/git/repo"}
    admin = await world.member("root-by-token", Role.ADMIN)
    refused = await admin.post(f"{API}/workspaces", json=body)
    assert (refused.status_code, refused.json()["code"]) == (403, "local_only")
    accepted = await world.client(uid=ROOT_UID).post(f"{API}/workspaces", json=body)
    assert accepted.status_code == 201
    request = await world.records.request(WorkspaceId(accepted.json()["id"]), RunNumber(1))
    assert request is not None
    assert request.local_allowed
    assert request.spec.source is not None
    assert request.spec.source.local


@pytest.mark.parametrize("image", ["oci:/srv/images/app", "oci-archive:/srv/app.tar:1", "docker-archive:/srv/app.tar"])
async def test_images_in_folders_are_for_the_local_administrator_alone(world: World, image: str) -> None:
    body = {"context_url": "https://example.org/a/b", "image": image}
    admin = await world.member("root-by-token", Role.ADMIN)
    refused = await admin.post(f"{API}/workspaces", json=body)
    assert (refused.status_code, refused.json()["code"]) == (403, "local_only")
    accepted = await world.client(uid=ROOT_UID).post(f"{API}/workspaces", json=body)
    request = await world.records.request(WorkspaceId(accepted.json()["id"]), RunNumber(1))
    assert request is not None
    assert (request.local_allowed, request.spec.image, request.spec.image_asked) == (True, image, True)


async def test_without_an_image_asked_for_it_is_the_default_which_gives_way_to_the_repositorys(
    make_world: MakeWorld,
) -> None:
    world = await make_world(default_image="docker.io/library/debian:12")
    client = await world.member()
    made = await world.create(client)
    assert (made["image"], made["image_asked"], made["setup"]) == ("docker.io/library/debian:12", None, None)
    request = await world.records.request(WorkspaceId(made["id"]), RunNumber(1))
    assert request is not None
    assert (request.spec.image, request.spec.image_asked) == ("docker.io/library/debian:12", False)


@pytest.mark.parametrize(
    "image", ["host", "debian:12", "registry.example:5000/team/app:1.2", f"ghcr.io/a/b@sha256:{'0f' * 32}"]
)
async def test_an_image_that_is_asked_for_wins(world: World, image: str) -> None:
    client = await world.member()
    made = await world.create(client, image=image)
    assert (made["image"], made["image_asked"]) == (image, image)
    request = await world.records.request(WorkspaceId(made["id"]), RunNumber(1))
    assert request is not None
    assert request.spec.image_asked
    assert not request.local_allowed


async def test_a_workspace_shows_what_it_was_set_up_with_but_no_environment(world: World) -> None:
    client = await world.member()
    made = await world.create(client)
    setup = Setup(
        image="debian:12",
        image_why="asked for in .gitpod.yml:1",
        digest="sha256:0f",
        file=".gitpod.yml",
        user="gitpod",
        home="/home/gitpod",
        folder="/workspace/repo/app",
        repository="/workspace/repo",
        container_environment=(("TOKEN", "hunter2"),),
        remote_environment=(("OTHER", "hunter2"),),
        tasks=(Task(0, "build", "make SECRET=hunter2", (("A", "hunter2"),)),),
        ports=(PortRule(8080, 8081, "web"),),
        notices=(Notice(Level.WARNING, "unsupported_key", "build is not supported", ".devcontainer.json", 3, 5),),
    )
    await world.records.note_setup(WorkspaceId(made["id"]), setup)
    answer = await client.get(f"{API}/workspaces/{made['id']}")
    shown = answer.json()["setup"]
    assert shown["image"] == "debian:12"
    assert (shown["image_why"], shown["digest"]) == ("asked for in .gitpod.yml:1", "sha256:0f")
    assert (shown["user"], shown["folder"], shown["file"]) == ("gitpod", "/workspace/repo/app", ".gitpod.yml")
    assert shown["tasks"] == [{"number": 0, "name": "build"}]
    assert (shown["ports"][0]["first"], shown["ports"][0]["visibility"]) == (8080, "private")
    assert shown["notices"] == [
        {
            "level": "warning",
            "code": "unsupported_key",
            "message": "build is not supported",
            "file": ".devcontainer.json",
            "line": 3,
            "column": 5,
        }
    ]
    assert "hunter2" not in answer.text


async def test_other_peers_of_the_unix_socket_are_nobody(world: World) -> None:
    assert (await world.client(uid=ROOT_UID).get(f"{API}/me")).json()["name"] == "admin"
    assert (await world.client(uid=1000).get(f"{API}/me")).status_code == 401


async def test_a_workspace_is_found_by_id_name_and_beginning(world: World) -> None:
    client = await world.member()
    made = await world.create(client, name="mine")
    for reference in (made["id"], "mine", made["id"][:7]):
        assert (await client.get(f"{API}/workspaces/{reference}")).json()["id"] == made["id"]
    missing = await client.get(f"{API}/workspaces/other")
    assert (missing.status_code, missing.json()["code"]) == (404, "no_such_workspace")


async def test_a_beginning_that_fits_two_is_ambiguous_and_wildcards_fit_none(world: World) -> None:
    client = await world.member()
    ids = [(await world.create(client, start=False))["id"] for _ in range(40)]
    first = {beginning for beginning in (each[0] for each in ids) if sum(e[0] == beginning for e in ids) > 1}.pop()
    answer = await client.get(f"{API}/workspaces/{first}")
    assert (answer.status_code, answer.json()["code"]) == (409, "ambiguous")
    assert (await client.get(f"{API}/workspaces/%25")).status_code == 404


async def test_staff_who_name_a_workspace_mean_their_own_first(world: World) -> None:
    member, operator = await world.member("ada"), await world.member("olga", Role.OPERATOR)
    theirs, own = await world.create(member, name="same"), await world.create(operator, name="same")
    assert (await operator.get(f"{API}/workspaces/same")).json()["id"] == own["id"]
    assert (await operator.get(f"{API}/workspaces/{theirs['id']}")).json()["owner"] == "ada"


async def test_starting_what_runs_changes_nothing_and_costs_nothing(world: World) -> None:
    client = await world.member()
    made = await world.create(client)
    again = await client.post(f"{API}/workspaces/{made['id']}/start")
    assert (again.status_code, again.json()["run"], again.json()["phase"]) == (202, 1, "pending")


async def test_a_stopping_workspace_cannot_be_started_and_says_what_happened_to_it(world: World) -> None:
    client = await world.member()
    made = await world.create(client)
    await client.post(f"{API}/workspaces/{made['id']}/stop")
    answer = await client.post(f"{API}/workspaces/{made['id']}/start")
    assert (answer.status_code, answer.json()["code"]) == (409, "wrong_phase")
    assert "start → pending" in answer.json()["detail"]


async def test_force_makes_a_stop_overdue_at_once_even_one_that_is_under_way(world: World) -> None:
    client = await world.member()
    made = await world.create(client)
    gentle = (await client.post(f"{API}/workspaces/{made['id']}/stop")).json()
    assert gentle["deadline"]["at"] == "2022-04-11T08:02:00.000Z"
    world.clock.advance(1)
    forced = (await client.post(f"{API}/workspaces/{made['id']}/stop", json={"force": True})).json()
    assert forced["deadline"] == {"kind": "stopping", "at": "2022-04-11T08:00:01.000Z"}


async def test_a_running_workspace_is_deleted_by_way_of_its_stop(world: World) -> None:
    client = await world.member()
    made = await world.create(client)
    await world.record(made["id"], Event.PLACED, Event.READY)
    assert (await client.delete(f"{API}/workspaces/{made['id']}")).json()["phase"] == "stopping"
    await world.record(made["id"], Event.RELEASED)
    assert (await client.get(f"{API}/workspaces/{made['id']}")).json()["phase"] == "deleted"
    assert (await client.get(f"{API}/workspaces")).json()["items"] == []


async def test_lists_are_paged_newest_first_without_gaps_or_repeats(world: World) -> None:
    client = await world.member()
    made = []
    for number in range(7):
        world.clock.advance(number % 2)  # two of the same moment among them
        made.append((await world.create(client, start=False))["id"])
    seen: list[str] = []
    cursor: str | None = None
    while True:
        page = (
            await client.get(f"{API}/workspaces", params={"limit": 3} | ({"cursor": cursor} if cursor else {}))
        ).json()
        assert len(page["items"]) <= 3
        seen += [item["id"] for item in page["items"]]
        cursor = page["next"]
        if cursor is None:
            break
    assert sorted(seen) == sorted(made)
    assert len(seen) == len(made)
    times = [(await client.get(f"{API}/workspaces/{each}")).json()["created_at"] for each in seen]
    assert times == sorted(times, reverse=True)


@pytest.mark.parametrize("cursor", ["x", "WyJhIl0", "WyJub3QgYSBkYXRlIiwgImIiXQ", "%%%", "bnVsbA"])
async def test_a_cursor_that_no_list_gave_out_is_refused(world: World, cursor: str) -> None:
    answer = await (await world.member()).get(f"{API}/workspaces", params={"cursor": cursor})
    assert (answer.status_code, answer.json()["code"]) == (400, "bad_cursor")


@pytest.mark.parametrize("limit", [0, 201, "many"])
async def test_pages_have_one_to_two_hundred_items(world: World, limit: object) -> None:
    answer = await (await world.member()).get(f"{API}/workspaces", params={"limit": str(limit)})
    assert answer.status_code == 422


async def test_everybodys_workspaces_are_listed_to_staff_alone(world: World) -> None:
    member, operator = await world.member("ada"), await world.member("olga", Role.OPERATOR)
    await world.create(member)
    await world.create(await world.member("bob"))
    assert len((await operator.get(f"{API}/workspaces?owner=all")).json()["items"]) == 2
    assert len((await operator.get(f"{API}/workspaces")).json()["items"]) == 0
    assert len((await member.get(f"{API}/workspaces?owner=all")).json()["items"]) == 1


async def test_a_list_can_be_narrowed_to_a_phase(world: World) -> None:
    client = await world.member()
    await world.create(client)
    stopped = await world.create(client, start=False)
    page = (await client.get(f"{API}/workspaces?phase=stopped")).json()
    assert [item["id"] for item in page["items"]] == [stopped["id"]]


async def test_progress_is_shown_until_the_step_is_over(world: World) -> None:
    from fairwater.domain.workspaces.run import Progress

    client = await world.member()
    made = await world.create(client)
    await world.record(made["id"], Event.PLACED, Event.CONTENT_BEGAN)
    await world.records.note_progress(WorkspaceId(made["id"]), Progress("cloning", 3, 10, "objects"))
    shown = (await client.get(f"{API}/workspaces/{made['id']}")).json()["progress"]
    assert shown == {"step": "cloning", "done": 3, "total": 10, "unit": "objects"}
    await world.record(made["id"], Event.READY)
    assert (await client.get(f"{API}/workspaces/{made['id']}")).json()["progress"] is None
