"""Parked sandboxes of fifty images: how many starts find one, how soon a new image has one, what each costs.

A real node's sandboxes without the rest of the agent, on images of one small layer each.
"""

from __future__ import annotations

import asyncio
import itertools
import random
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from bench.report import Report, Result, median, p95
from tests.node.workspace.sandbox_laboratory import SandboxLab, busybox_layer, image_of, sandbox_lab

from fairwater.domain.ids import RunNumber, WorkspaceId
from fairwater.domain.units import MIB, Bytes
from fairwater.domain.workspaces.parking import SANDBOX_COST
from fairwater.ports.images import ImageRoot
from fairwater.ports.sandboxes import Sandbox, Tenant

IMAGES, STARTS = 50, 500
MEMORY = Bytes(160 * MIB)
EVERY_S = 0.2
"""Between two starts of the trace, on average: five a second, as no node will see for long."""
STAYS_S = 3.0
"""How long a sandbox of the trace is held."""


@dataclass
class Trace:
    hits: int
    most_parked: int
    claims: list[float]


def pool_results() -> list[Result]:
    """The figures, each with its goal; about seven minutes, as root."""
    return asyncio.run(_measure())


async def _measure() -> list[Result]:
    folder = Path(tempfile.mkdtemp(prefix="fw-bench-", dir="/var/tmp"))
    try:
        images = [image_of([busybox_layer(folder / f"images/i{number:02d}")]) for number in range(IMAGES + 10)]
        (folder / "node").mkdir()
        async with sandbox_lab(folder / "node", memory=MEMORY) as lab:
            cost, ready = await _park_each(lab, images[:IMAGES])
            zipf = await _play(lab, images, _zipf(random.Random(1)))
            bursty = await _play(lab, images, _bursty(random.Random(2)))
            soon = [await _prefer(lab, image) for image in images[IMAGES:]]
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    missed = zipf.claims + bursty.claims
    return [
        Result("pool_hit_rate_zipf", round(zipf.hits / STARTS, 4), "ratio", ">= 0.95"),
        Result("pool_hit_rate_bursty", round(bursty.hits / STARTS, 4), "ratio", ">= 0.95"),
        Result("pool_claim_p50", round(median(missed) * 1e3, 2), "ms"),
        Result("pool_claim_p95", round(p95(missed) * 1e3, 2), "ms"),
        Result("pool_parked_most", max(zipf.most_parked, bursty.most_parked), "boxes", f"<= {MEMORY // SANDBOX_COST}"),
        Result("pool_fifty_images_parked", round(ready, 2), "s"),
        Result("pulled_to_parked_p95", round(p95(soon), 3), "s", "<= 1.0"),
        Result("parked_sandbox_memory", round(cost / MIB, 2), "MiB", f"<= {SANDBOX_COST / MIB:g}"),
    ]


async def _park_each(lab: SandboxLab, images: list[ImageRoot]) -> tuple[float, float]:
    """Memory of a parked sandbox in bytes, and how long it took to park one of each image in seconds."""
    await _prefer(lab, images[0])
    before, began = _memory_used(), time.monotonic()
    for image in images[1:]:
        lab.sandboxes.prefer(image)
    await _until(lambda: lab.sandboxes.parked() >= len(images))
    took = time.monotonic() - began
    return (_memory_used() - before) / (len(images) - 1), took


async def _prefer(lab: SandboxLab, image: ImageRoot) -> float:
    began = time.monotonic()
    lab.sandboxes.prefer(image)
    await _until(lambda: lab.sandboxes.parked_of(image.digest) > 0)
    return time.monotonic() - began


async def _until(there: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not there():  # noqa: ASYNC110 - nothing tells; looked at as often as what is measured needs
            await asyncio.sleep(0.002)


async def _play(lab: SandboxLab, images: list[ImageRoot], trace: list[tuple[float, int]]) -> Trace:
    """Claims a sandbox for each start of the trace at its time, and gives it back a little later."""
    hits_before, _ = lab.sandboxes.hits()
    played = Trace(0, 0, [])
    ending: set[asyncio.Task[None]] = set()
    began = time.monotonic()
    async with asyncio.TaskGroup() as group:
        for number, (at, picked) in enumerate(trace):
            await asyncio.sleep(max(0.0, at - (time.monotonic() - began)))
            group.create_task(_start(lab, images[picked], number, played, ending))
            played.most_parked = max(played.most_parked, lab.sandboxes.parked())
    await asyncio.gather(*ending)
    played.hits = lab.sandboxes.hits()[0] - hits_before
    return played


async def _start(
    lab: SandboxLab, image: ImageRoot, number: int, played: Trace, ending: set[asyncio.Task[None]]
) -> None:
    began = time.monotonic()
    sandbox = await lab.sandboxes.claim(Tenant(WorkspaceId(f"trace{number:07d}"), RunNumber(1)), image)
    played.claims.append(time.monotonic() - began)
    ending.add(asyncio.create_task(_end(lab, sandbox)))


async def _end(lab: SandboxLab, sandbox: Sandbox) -> None:
    await asyncio.sleep(STAYS_S)
    await lab.sandboxes.remove(sandbox)


def _zipf(chance: random.Random) -> list[tuple[float, int]]:
    """The n-th image is asked for 1/n as often as the first."""
    times = itertools.accumulate(chance.expovariate(1 / EVERY_S) for _ in range(STARTS))
    picked = chance.choices(range(IMAGES), [1 / (number + 1) for number in range(IMAGES)], k=STARTS)
    return list(zip(times, picked, strict=True))


def _bursty(chance: random.Random) -> list[tuple[float, int]]:
    """Every third second or so, a handful of people begin with the same image within ten seconds."""
    trace: list[tuple[float, int]] = []
    now = 0.0
    while len(trace) < STARTS:
        now += chance.expovariate(1 / 3)
        image = chance.choices(range(IMAGES), [1 / (number + 1) for number in range(IMAGES)])[0]
        trace += [(now + chance.uniform(0, 10), image) for _ in range(chance.randint(2, 10))]
    return sorted(trace[:STARTS])


def _memory_used() -> int:
    """Bytes of the machine's memory in use, by processes and the kernel, files in memory included, caches not."""
    fields = {name: int(kib) for name, kib in re.findall(r"(\w+):\s+(\d+) kB", Path("/proc/meminfo").read_text())}
    free = fields["MemFree"] + fields["Buffers"] + fields["Cached"] - fields["Shmem"] + fields["SReclaimable"]
    return (fields["MemTotal"] - free) * 1024


def main() -> int:
    report = Report("image-pool")
    report.results.extend(pool_results())
    return 0 if report.close() else 1


if __name__ == "__main__":
    sys.exit(main())
