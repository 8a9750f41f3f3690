"""A server process on a PostgreSQL that halts for longer than any answer may take, or is killed, as its clients see it.

Requests are told to come back, readiness says why, creations are done once each, and no event is missed.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2
import pytest
from tests.loops.scripted_agent import Script, ScriptedAgent
from tests.server.tiny_agent import TinyAgent
from tests.servers.fairwater_server import ServerProcess, server_process
from tests.servers.postgres import Cluster

from fairwater.node.api.app import create_agent_app
from fairwater.serving.serve import serve

from .test_two_servers import WallClock

pytestmark = pytest.mark.long

HALTED_S = 11.0
"""Longer than an answer may take (`ANSWER_S`, 6 s), and than the lease lasts."""
ANSWERED_WITHIN_S = 8.0
READY_WITHIN_S = 5.0
"""2 s until it gives up waiting, and what a connection that is being opened then takes (`CONNECT_S`, 3 s at most)."""
BACK_WITHIN_S = 15.0
CREATIONS = 12


@dataclass
class Outage:
    """`refusals` are the codes of answers other than success, each with the seconds it took."""

    server: ServerProcess
    client: httpx2.AsyncClient
    agent: ScriptedAgent
    refusals: list[tuple[str, float]] = field(default_factory=list)
    events: list[int] = field(default_factory=list)
    streams: int = 0
    created: dict[str, set[str]] = field(default_factory=dict)

    async def ask(self, method: str, path: str, **options: Any) -> httpx2.Response:
        began = time.monotonic()
        answer = await self.client.request(method, path, **options)
        took_s = time.monotonic() - began
        if answer.status_code >= 400:
            self.refusals.append((answer.json().get("code", ""), took_s))
            assert answer.headers["content-type"] == "application/problem+json", answer.text
            assert int(answer.headers.get("retry-after", "0")) >= 1, answer.text
            assert "Traceback" not in answer.text
        return answer

    async def create(self, number: int) -> None:
        """Asks with the same key, until it is done and twice more."""
        name, done = f"repo-{number}", 0
        body = {"context_url": "https://example.org/team/repo", "name": name}
        while done < 3:
            answer = await self.ask("POST", "/api/v1/workspaces", json=body, headers={"Idempotency-Key": name})
            if answer.status_code == 201:
                done += 1
                self.created.setdefault(name, set()).add(answer.json()["id"])
            else:
                await asyncio.sleep(float(answer.headers.get("retry-after", "1")) / 4)

    async def listen(self) -> None:
        """As a browser does: where the stream ends, it is asked for anew after the last event."""
        while True:
            headers = {"Last-Event-ID": str(self.events[-1]) if self.events else "0"}
            try:
                async with self.client.stream("GET", "/api/v1/events", headers=headers, timeout=None) as answer:
                    if answer.status_code == 200:
                        self.streams += 1
                        async for line in answer.aiter_lines():
                            if line.startswith("id: "):
                                self.events.append(int(line[4:]))
            except httpx2.TransportError:
                pass  # it was cut short
            await asyncio.sleep(0.2)

    async def ready(self) -> tuple[int, dict[str, str]]:
        answer = await self.client.get("/readyz")
        return answer.status_code, answer.json()

    async def until_ready(self, status: int, within_s: float) -> dict[str, str]:
        async with asyncio.timeout(within_s):
            while True:
                found, document = await self.ready()
                if found == status:
                    return document
                await asyncio.sleep(0.1)

    async def all_is_well(self) -> None:
        """Every workspace runs, each was created and started once, and every event was seen, once and in order."""
        async with asyncio.timeout(BACK_WITHIN_S):
            while set((await self.phases()).values()) != {"running"}:  # noqa: ASYNC110 - another process's state tells nobody
                await asyncio.sleep(0.1)
            newest = await self.newest_event()
            while not self.events or self.events[-1] < newest:  # noqa: ASYNC110 - another process's state tells nobody
                await asyncio.sleep(0.1)
        assert sorted(await self.phases()) == sorted(self.created)
        assert {len(ids) for ids in self.created.values()} == {1}
        assert set(Counter(self.agent.begun).values()) == {1}
        assert len(self.agent.begun) == CREATIONS
        assert self.events == await self.history(newest)
        log = [json.loads(line) for line in self.server.log().splitlines() if line.startswith("{")]
        assert [line for line in log if line.get("level") in {"error", "critical"}] == []
        assert "Traceback" not in self.server.log()

    async def phases(self) -> dict[str, str]:
        answer = await self.client.get("/api/v1/workspaces?limit=100")
        return {item["name"]: item["phase"] for item in answer.json()["items"]} if answer.status_code == 200 else {}

    async def newest_event(self) -> int:
        return (await self.history(None))[-1]

    async def history(self, last: int | None) -> list[int]:
        """The numbers of all lines, by a stream of its own."""
        found: list[int] = []
        async with self.client.stream("GET", "/api/v1/events?after=0", timeout=2) as answer:
            try:
                async for line in answer.aiter_lines():
                    if line.startswith("id: "):
                        found.append(int(line[4:]))
                        if found[-1] == last:
                            break
            except httpx2.ReadTimeout:
                pass  # there are no more
        return found


@pytest.fixture
async def outage(own_postgres: Cluster, tmp_path: Path) -> AsyncIterator[Outage]:
    agent = ScriptedAgent(WallClock(), Script(start_s=0.1, init_s=0.1, stop_s=0.1))
    tiny, stop = TinyAgent(), asyncio.Event()
    app = create_agent_app(agent, tiny, tiny.facts)
    serving = asyncio.create_task(serve(app, unix_socket=tmp_path / "node.sock", stop=stop))
    opened = server_process(tmp_path / "server", own_postgres.create(), node_socket=tmp_path / "node.sock")
    server = await asyncio.to_thread(opened.__enter__)
    transport = httpx2.AsyncHTTPTransport(uds=str(server.folder / "run/server.sock"))
    async with httpx2.AsyncClient(transport=transport, base_url="http://server", timeout=30) as client:
        made = Outage(server, client, agent)
        await made.until_ready(200, 10)
        listening = asyncio.create_task(made.listen())
        yield made
        listening.cancel()
        await asyncio.gather(listening, return_exceptions=True)
    await asyncio.to_thread(opened.__exit__, None, None, None)
    stop.set()
    await serving
    await agent.close()


async def test_a_database_that_halts_is_told_to_clients_and_costs_nothing(
    outage: Outage, own_postgres: Cluster
) -> None:
    for number in range(CREATIONS // 3):
        await outage.create(number)
    creating = asyncio.gather(*(outage.create(number) for number in range(CREATIONS // 3, CREATIONS)))
    await asyncio.sleep(0.05)
    own_postgres.halt()
    halted = time.monotonic()
    try:
        began = time.monotonic()
        reason = await outage.until_ready(503, READY_WITHIN_S)
        assert time.monotonic() - began < READY_WITHIN_S
        assert (reason["agent"], reason["database"] != "ok") == ("ok", True)
        while time.monotonic() - halted < HALTED_S:
            answer = await outage.ask("GET", "/api/v1/workspaces")
            assert (answer.status_code, answer.json()["code"]) == (503, "database_away")
            assert (await outage.client.get("/healthz")).status_code == 200
            await asyncio.sleep(0.5)
        status, reason = await outage.ready()
        assert (status, "the database is away" in reason["database"]) == (503, True), reason
    finally:
        own_postgres.go_on()
    await outage.until_ready(200, BACK_WITHIN_S)
    await asyncio.wait_for(creating, 30)
    await outage.all_is_well()
    assert max(took_s for _, took_s in outage.refusals) < ANSWERED_WITHIN_S
    assert {code for code, _ in outage.refusals} <= {"database_away", "database_busy"}


async def test_a_database_that_is_killed_and_begun_anew_costs_nothing(outage: Outage, own_postgres: Cluster) -> None:
    creating = asyncio.gather(*(outage.create(number) for number in range(CREATIONS)))
    async with asyncio.timeout(10):
        while not outage.created:  # noqa: ASYNC110 - the other tasks' state tells nobody
            await asyncio.sleep(0.01)
    own_postgres.kill()
    reason = await outage.until_ready(503, READY_WITHIN_S)
    assert "the database is away" in reason["database"]
    answer = await outage.ask("GET", "/api/v1/workspaces")
    assert (answer.status_code, answer.json()["code"]) == (503, "database_away")
    assert (await outage.client.get("/healthz")).status_code == 200
    await asyncio.to_thread(own_postgres.start)
    await outage.until_ready(200, BACK_WITHIN_S)
    await asyncio.wait_for(creating, 30)
    await outage.all_is_well()
    assert max((took_s for _, took_s in outage.refusals), default=0.0) < READY_WITHIN_S
