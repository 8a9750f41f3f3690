"""The limits on starts that held in April 2022, over HTTP, and that they are what holds."""

from __future__ import annotations

import asyncio

import pytest

from fairwater.domain.abuse.rate import StartLimit

from .conftest import API, MakeWorld, World

LIMIT = StartLimit(interval_s=10, burst=3, parallel=1000)
OFF = StartLimit(interval_s=0, burst=1, parallel=1000)


async def too_many_starts_are_refused(world: World) -> None:
    """A burst is admitted, the next start is told when to come back, and then admitted; another account is not held."""
    spammer, neighbour = await world.member("spammer"), await world.member("neighbour")
    body = {"context_url": "https://example.org/team/repo"}
    answers = await asyncio.gather(*(spammer.post(f"{API}/workspaces", json=body) for _ in range(LIMIT.burst + 2)))
    assert sorted(answer.status_code for answer in answers) == [201] * LIMIT.burst + [429] * 2
    refused = next(answer for answer in answers if answer.status_code == 429)
    assert refused.json()["code"] == "rate_limited"
    assert refused.headers["retry-after"] == "10"
    assert len(world.woken) == LIMIT.burst
    assert (await neighbour.post(f"{API}/workspaces", json=body)).status_code == 201
    world.clock.advance(float(refused.headers["retry-after"]))
    assert (await spammer.post(f"{API}/workspaces", json=body)).status_code == 201
    assert (await spammer.post(f"{API}/workspaces", json=body)).status_code == 429


async def too_many_at_once_are_refused(world: World, parallel: int) -> None:
    client = await world.member()
    made = [await world.create(client) for _ in range(parallel)]
    refused = await client.post(f"{API}/workspaces", json={"context_url": "https://example.org/team/repo"})
    assert refused.status_code == 409
    assert refused.json()["code"] == "too_many_workspaces"
    stopped = await world.create(client, start=False)
    assert (await client.post(f"{API}/workspaces/{stopped['id']}/start")).status_code == 409
    await client.post(f"{API}/workspaces/{made[0]['id']}/stop")
    assert (await client.post(f"{API}/workspaces/{stopped['id']}/start")).status_code == 409, "it still holds its place"


@pytest.mark.pm(39)
async def test_an_account_starts_no_more_than_its_rate(make_world: MakeWorld) -> None:
    await too_many_starts_are_refused(await make_world(start_limit=LIMIT))


@pytest.mark.pm(39, sabotage=True)
async def test_without_the_rate_limit_the_check_fails(make_world: MakeWorld) -> None:
    world = await make_world(start_limit=OFF)
    with pytest.raises(AssertionError, match="201, 201, 201, 201, 201"):
        await too_many_starts_are_refused(world)


@pytest.mark.pm(39)
async def test_an_account_runs_no_more_workspaces_than_its_share(make_world: MakeWorld) -> None:
    await too_many_at_once_are_refused(await make_world(start_limit=StartLimit(0, 1, parallel=2)), 2)


@pytest.mark.pm(39, sabotage=True)
async def test_without_the_parallel_cap_the_check_fails(make_world: MakeWorld) -> None:
    world = await make_world(start_limit=OFF)
    with pytest.raises(AssertionError, match="201"):
        await too_many_at_once_are_refused(world, 2)


async def test_a_start_that_is_refused_for_another_reason_costs_nothing(make_world: MakeWorld) -> None:
    world = await make_world(start_limit=StartLimit(interval_s=10, burst=2, parallel=1000))
    client = await world.member()
    body = {"context_url": "https://example.org/team/repo", "name": "mine"}
    assert (await client.post(f"{API}/workspaces", json=body)).status_code == 201
    assert (await client.post(f"{API}/workspaces", json=body)).json()["code"] == "name_taken"
    assert (await client.post(f"{API}/workspaces", json=body | {"name": "other"})).status_code == 201


async def test_creating_stopped_workspaces_is_held_to_the_rate_too(make_world: MakeWorld) -> None:
    world = await make_world(start_limit=StartLimit(interval_s=10, burst=1, parallel=1000))
    client = await world.member()
    await world.create(client, start=False)
    body = {"context_url": "https://example.org/team/repo", "start": False}
    assert (await client.post(f"{API}/workspaces", json=body)).status_code == 429


async def test_refusals_are_counted(make_world: MakeWorld) -> None:
    world = await make_world(start_limit=StartLimit(interval_s=10, burst=1, parallel=1000))
    client = await world.member()
    await world.create(client)
    await client.post(f"{API}/workspaces", json={"context_url": "https://example.org/team/repo"})
    figures = (await world.client(uid=0).get("/metrics")).text
    assert 'fairwater_workspace_start_refusals_total{code="rate_limited"} 1.0' in figures
