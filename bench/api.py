"""How soon the API answers with 10,000 workspaces in the database: on SQLite and on PostgreSQL, in one run.

A real server process is asked over TCP, at a steady rate whatever it answers; a time counts from when the request was
due, so that a server that falls behind is not let off (https://www.scylladb.com/2021/04/22/on-coordinated-omission/).
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from itertools import count, islice
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import httpx2
from bench.report import Report
from sqlalchemy import insert
from tests.servers.address import free_port
from tests.servers.postgres import cluster, why_no_postgres

from fairwater.domain.workspaces.classes import STANDARD
from fairwater.domain.workspaces.deadlines import DeadlinePolicy
from fairwater.ports.accounts import Account, Role
from fairwater.server.authentication import new_secret
from fairwater.store.database import SqlDatabase
from fairwater.store.migration import upgrade
from fairwater.store.schema import HISTORY, WORKSPACES

READ_RATE, CREATE_RATE, BURST_RATE = 50.0, 25.0, 50.0
"""Requests a second. Each create is followed by all of a start: 25 a second are 90,000 starts an hour."""
REQUESTS = 500
"""For each figure: fewer say little of the slowest in a hundred."""
WARM_UP = 50
"""Requests of each kind that are not counted: connections are opened, statements prepared."""
LIST_LIMIT = 50
OWNERS = 50
READ_GOAL_S, CREATE_GOAL_S = 0.050, 0.100
_ALPHABET = "abcdefghjkmnpqrstuvwxyz23456789"
_SERVER = "from fairwater.cli.main import run; run()"
_RUN_AGENT = """
import asyncio, sys
from pathlib import Path
from fairwater.node.api.app import create_agent_app
from fairwater.serving.serve import serve
from tests.server.tiny_agent import TinyAgent

class Agent(TinyAgent):
    async def changes(self):
        await asyncio.Event().wait()
        yield

agent = Agent()
asyncio.run(serve(create_agent_app(agent, agent, agent.facts), unix_socket=Path(sys.argv[1]), stop=asyncio.Event()))
"""


async def fill(url: str, workspaces: int) -> tuple[str, str, list[str]]:
    """The tokens of an operator and of an owner of `workspaces` / `OWNERS` of them, and the owner's ids."""
    await upgrade(url)
    database = SqlDatabase.open(url, DeadlinePolicy(), lambda change: None)
    now, chance = datetime.now(UTC), random.Random(1)
    owners: list[Account] = []
    (secret, digest), (operators, operators_digest) = new_secret(), new_secret()
    async with database.write() as transaction:
        for number in range(OWNERS):
            owners.append(await transaction.accounts.add(f"user-{number}", Role.MEMBER, "default", now))
        await transaction.tokens.add(owners[0].id, "bench", digest, now, None)
        operator = await transaction.accounts.add("operator", Role.OPERATOR, "default", now)
        await transaction.tokens.add(operator.id, "bench", operators_digest, now, None)
    mine = []
    for first in range(0, workspaces, 500):
        rows: list[dict[str, object]] = []
        lines: list[dict[str, object]] = []
        for number in range(first, min(workspaces, first + 500)):
            owner = owners[number % OWNERS]
            key = "".join(chance.choices(_ALPHABET, k=12))
            mine += [key] if owner is owners[0] else []
            rows.append(
                {
                    "id": key, "name": f"repo-{number}", "owner_id": owner.id,
                    "organisation_id": owner.organisations[0].id, "context_url": "https://example.org/team/repo",
                    "workspace_class": STANDARD.name, "image": "host", "image_asked": None, "command": None,
                    "environment": [], "local_allowed": False, "phase": "stopped", "reason": "stopped", "since": now,
                    "run": 1, "failure": None, "doomed": False, "created_at": now, "asked_at": None,
                    "cleared_at": None,
                }
            )  # fmt: skip
            for event, phase in (("start", "pending"), ("placed", "creating"), ("released", "stopped")):
                lines.append(
                    {"workspace_id": key, "owner_id": owner.id, "event": event, "phase": phase, "reason": event,
                     "run": 1, "at": now}
                )  # fmt: skip
        async with database.write() as transaction:
            await transaction.connection.execute(insert(WORKSPACES), rows)
            await transaction.connection.execute(insert(HISTORY), lines)
    await database.close()
    return operators, secret, mine


@contextmanager
def serving(folder: Path, url: str) -> Iterator[tuple[str, int]]:
    """A server with a node that starts everything at once; its address, and its process."""
    (folder / "run").mkdir(parents=True)
    address = f"127.0.0.1:{free_port('127.0.0.1')}"
    environment = {
        **os.environ,
        "PYTHONPATH": str(Path(__file__).parent.parent),
        "FAIRWATER_SERVER_DATABASE_URL": url,
        "FAIRWATER_SERVER_LISTEN": address,
        "FAIRWATER_LIMITS_START_INTERVAL": "1ms",
        "FAIRWATER_LIMITS_START_BURST": "100000",
        "FAIRWATER_LIMITS_PARALLEL": "100000",
    }
    with (folder / "log").open("wb") as log:
        started = [
            subprocess.Popen([sys.executable, "-c", *words], env=environment, stdout=log, stderr=log)
            for words in (
                (_RUN_AGENT, str(folder / "run/node.sock")),
                (_SERVER, "server", "run", "--data-dir", str(folder)),
            )
        ]
    try:
        give_up = time.monotonic() + 30
        while True:
            try:
                httpx2.get(f"http://{address}/healthz")
                break
            except httpx2.TransportError:
                if time.monotonic() > give_up:
                    raise RuntimeError((folder / "log").read_text()) from None
                time.sleep(0.1)
        yield f"http://{address}/api/v1", started[1].pid
    finally:
        for process in reversed(started):
            process.terminate()
            process.wait(30)


async def steadily(
    ask: Callable[[int], Awaitable[int]], rate: float, numbers: Iterable[int], expected: int
) -> list[float]:
    """Asks `rate` times a second; the time to each answer, in seconds."""
    times: list[float] = []
    began = time.monotonic() + 0.1

    async def one(turn: int, number: int) -> None:
        due = began + turn / rate
        await asyncio.sleep(due - time.monotonic())
        status = await ask(number)
        if status != expected:
            raise RuntimeError(f"answered with {status} instead of {expected}")
        times.append(time.monotonic() - due)

    await asyncio.gather(*(one(turn, number) for turn, number in enumerate(numbers)))
    return times


def cpu_s(process: int) -> float:
    """The processor time that `process` has used."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def p99(values: list[float]) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, round(0.99 * (len(ordered) - 1)))]


async def measure(
    report: Report, kind: str, api: str, process: int, tokens: tuple[str, str], mine: list[str], requests: int
) -> None:
    async with httpx2.AsyncClient(headers={"Authorization": f"Bearer {tokens[1]}"}, timeout=30) as client:

        async def listed_of_all(_number: int) -> int:
            headers = {"Authorization": f"Bearer {tokens[0]}"}
            return (await client.get(f"{api}/workspaces?owner=all&limit={LIST_LIMIT}", headers=headers)).status_code

        async def listed(_number: int) -> int:
            return (await client.get(f"{api}/workspaces?limit={LIST_LIMIT}")).status_code

        async def shown(number: int) -> int:
            return (await client.get(f"{api}/workspaces/{mine[number % len(mine)]}")).status_code

        async def created(number: int) -> int:
            body = {"context_url": "https://example.org/team/repo", "name": f"made-{kind}-{number}"}
            headers = {"Idempotency-Key": f"{kind}-{number}"}
            return (await client.post(f"{api}/workspaces", json=body, headers=headers)).status_code

        numbers = count()
        for name, ask, rate, expected, goal_s in (
            ("list", listed, READ_RATE, 200, READ_GOAL_S),
            ("list_of_all", listed_of_all, READ_RATE, 200, READ_GOAL_S),
            ("show", shown, READ_RATE, 200, READ_GOAL_S),
            ("create", created, CREATE_RATE, 201, CREATE_GOAL_S),
            ("create_burst", created, BURST_RATE, 201, CREATE_GOAL_S),
        ):
            await steadily(ask, rate, islice(numbers, WARM_UP), expected)
            used_s = cpu_s(process)
            times = await steadily(ask, rate, islice(numbers, requests), expected)
            used_s = cpu_s(process) - used_s
            report.sample(f"{name}, {rate:g} a second, {kind}", times)
            report.add(f"{name}_p99_{kind}", p99(times) * 1e3, "ms", f"<= {goal_s * 1e3:g}")
            report.add(f"{name}_server_cpu_{kind}", used_s / requests * 1e3, "ms")


def run(workspaces: int, requests: int) -> bool:
    report = Report("api")
    with tempfile.TemporaryDirectory(prefix="fairwater-bench-") as path:
        folder = Path(path)
        compare(report, "sqlite", folder / "sqlite", f"sqlite:///{folder}/fairwater.db", workspaces, requests)
        reason = why_no_postgres()
        if reason is not None:
            print(f"  not measured: {reason}")
        else:
            with cluster(durable=True) as postgres:
                compare(report, "postgresql", folder / "postgresql", postgres.create(), workspaces, requests)
    return report.close()


def compare(report: Report, kind: str, folder: Path, url: str, workspaces: int, requests: int) -> None:
    operators, owners, mine = asyncio.run(fill(url, workspaces))
    with serving(folder, url) as (api, process):
        asyncio.run(measure(report, kind, api, process, (operators, owners), mine, requests))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workspaces", type=int, default=10_000)
    parser.add_argument("--requests", type=int, default=REQUESTS, help="for each figure")
    arguments = parser.parse_args()
    sys.exit(0 if run(arguments.workspaces, arguments.requests) else 1)
