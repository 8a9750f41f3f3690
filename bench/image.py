"""How soon an image is here and ready, beside umoci and podman in the same run, and what a pull costs a neighbour.

The image is made on the spot: 1 GiB in 40,000 files, of the machine's own programs and of sizes as they are found in
images, in one layer packed by gzip. About three minutes, as root; the part `pool`, which plays traces of five hundred
starts over fifty images, takes several more and runs where it is asked for.
"""

from __future__ import annotations

import argparse
import asyncio
import gzip
import hashlib
import io
import os
import random
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import AsyncIterator, Coroutine, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from bench.image_pool import pool_results
from bench.report import Report, median, p95
from tests.node.images.laboratory import boxes_reaching
from tests.node.workspace.sandbox_laboratory import SandboxLab
from tests.servers.address import own_address
from tests.servers.oci import Image, Layer, write_layout

from fairwater.domain.units import GIB, MIB, Bytes
from fairwater.node import linux
from fairwater.node.images.bringing import StoreSettings
from fairwater.node.images.store import ImageStore

SIZE, FILES = GIB, 40_000
RATE = Bytes(200 * MIB)
"""The default of images.pull_rate."""
PARK_MS_MAX = 1000
ALONE_S = 5


def make_image(size: int, files: int) -> Image:
    """The same for the same machine: seeded, its bytes taken from /usr/lib."""
    chance = random.Random(1)
    corpus = b"".join(
        path.read_bytes()[: 256 * 1024] for path in sorted(Path("/usr/lib").rglob("*.so*"))[:400] if path.is_file()
    )
    sizes = [chance.lognormvariate(8.3, 1.9) for _ in range(files)]
    scale = size / sum(sizes)
    unpacked = hashlib.sha256()
    packed = io.BytesIO()
    with gzip.GzipFile(fileobj=packed, mode="wb", compresslevel=1, mtime=0) as zipped:
        sink = _Tee(zipped, unpacked.update)
        with tarfile.open(fileobj=sink, mode="w|", bufsize=MIB) as archive:
            for number, part in enumerate(sizes):
                info = tarfile.TarInfo(f"usr/lib/d{number % 40}/e{number % 600}/f{number}")
                info.size = int(part * scale)
                info.mode = 0o644
                archive.addfile(info, _Pieces(corpus, info.size, chance))
    return Image((Layer(packed.getvalue(), f"sha256:{unpacked.hexdigest()}"),))


class _Tee(io.RawIOBase):
    def __init__(self, sink: gzip.GzipFile, also: object) -> None:
        self._sink, self._also = sink, also

    def writable(self) -> bool:
        return True

    def write(self, content: object) -> int:
        self._also(content)  # type: ignore[operator]
        return self._sink.write(content)  # type: ignore[arg-type]


class _Pieces(io.RawIOBase):
    """`size` bytes, from places of the corpus chosen by chance."""

    def __init__(self, corpus: bytes, size: int, chance: random.Random) -> None:
        self._corpus, self._left, self._chance = corpus, size, chance

    def read(self, size: int = -1) -> bytes:
        count = min(self._left, size if size >= 0 else self._left, MIB)
        begin = self._chance.randrange(len(self._corpus) - MIB)
        self._left -= count
        return self._corpus[begin : begin + count]


@asynccontextmanager
async def opened(boxes: SandboxLab, folder: Path, layout: Path, rate: Bytes | None) -> AsyncIterator[ImageStore]:
    settings = StoreSettings(Bytes(20 * GIB), rate, folders=(layout.parent,))
    store = ImageStore(folder, boxes.sandboxes, boxes.images, settings, boxes.sandboxes.in_use, boxes.behind_others)
    await store.open()
    try:
        yield store
    finally:
        await store.close()
        shutil.rmtree(folder)


async def pulled(boxes: SandboxLab, place: Path, layout: Path, rate: Bytes | None) -> float:
    """Seconds from nothing to an image that is on the disk and may be used."""
    async with opened(boxes, place / "store", layout, rate) as store:
        began = time.monotonic()
        await store.prepare(f"oci:{layout}", local_allowed=True)
        return time.monotonic() - began


def umoci(place: Path, layout: Path) -> float:
    began = time.monotonic()
    subprocess.run(
        ("umoci", "raw", "unpack", "--image", f"{layout}:latest", str(place / "umoci")), check=True, capture_output=True
    )
    took = time.monotonic() - began
    shutil.rmtree(place / "umoci")
    return took


def podman(place: Path, layout: Path) -> float:
    """Without the version 2 tree, which it does not bear on a hybrid machine."""
    hide = 'umount /sys/fs/cgroup/unified 2>/dev/null; exec "$@"'
    inside = ("unshare", "--mount", "--propagation", "private", "sh", "-c", hide, "sh", "podman",
              "--root", str(place / "podman"), "--runroot", str(place / "podman-run"), "--storage-driver",
              "overlay")  # fmt: skip
    began = time.monotonic()
    subprocess.run((*inside, "pull", "--quiet", f"oci:{layout}:latest"), check=True, capture_output=True)
    took = time.monotonic() - began
    subprocess.run((*inside, "system", "reset", "--force"), check=False, capture_output=True)
    shutil.rmtree(place / "podman", ignore_errors=True)
    shutil.rmtree(place / "podman-run", ignore_errors=True)
    return took


async def compare_unpacking(report: Report, boxes: SandboxLab, place: Path, layout: Path, rounds: int) -> None:
    """In turns, each from a disk that has nothing left to write."""
    ours: list[float] = []
    limited: list[float] = []
    peers: dict[str, list[float]] = {"umoci": [], "podman": []}
    for _ in range(rounds):
        os.sync()
        ours.append(await pulled(boxes, place, layout, None))
        os.sync()
        limited.append(await pulled(boxes, place, layout, RATE))
        for name, peer in (("umoci", umoci), ("podman", podman)):
            os.sync()
            peers[name].append(await asyncio.to_thread(peer, place, layout))
    report.sample("1 GiB image from a folder to usable", ours)
    report.sample("the same, held to images.pull_rate", limited)
    report.sample("umoci raw unpack of it", peers["umoci"])
    report.sample("podman pull of it", peers["podman"])
    best = min(median(peers["umoci"]), median(peers["podman"]))
    report.add("unpack_vs_better_of_umoci_and_podman", median(ours) / best, "ratio", "<= 1.3")
    report.add("unpack_at_pull_rate_vs_better_peer", median(limited) / best, "ratio", "<= 1.3")


async def park(report: Report, boxes: SandboxLab, place: Path, layout: Path) -> None:
    """From an image that is here to a sandbox of it that is claimed and admitted, none parked before."""
    async with opened(boxes, place / "store", layout, None) as store:
        image = await store.prepare(f"oci:{layout}", local_allowed=True)
        times = []
        for _ in range(10):
            began = time.monotonic()
            sandbox = await boxes.start(image)
            times.append(time.monotonic() - began)
            await boxes.sandboxes.remove(sandbox)
        await boxes.end_all()
    report.sample("from an image that is here to a sandbox of it", times)
    report.add("image_to_parked_p95", p95(times) * 1e3, "ms", f"<= {PARK_MS_MAX}")


@dataclass
class Neighbour:
    """Writes 4 KiB and waits until it is on its disk, over and over, on a volume of its own; `times` in seconds."""

    folder: Path
    times: list[float]
    over: bool = False

    def write(self) -> None:
        with open(self.folder / "workspace/log", "wb", buffering=0) as file:
            while not self.over:
                began = time.monotonic()
                file.write(os.urandom(4096))
                os.fsync(file.fileno())
                self.times.append(time.monotonic() - began)
                time.sleep(0.01)


async def neighbour(report: Report, boxes: SandboxLab, place: Path, layout: Path) -> None:
    """What a neighbour's durable writes take, alone and while the image is brought in, with and without its ceiling."""
    _, volume = await boxes.volume()
    alone: list[float] = []
    beside: dict[str, list[float]] = {"with": [], "without": []}
    for ceiling, rate in (("with", RATE), ("without", None)):
        os.sync()
        alone += await _writing(volume, asyncio.sleep(ALONE_S))
        beside[ceiling] = await _writing(volume, pulled(boxes, place, layout, rate))
    await boxes.end_all()
    report.sample("a neighbour's write and fsync, alone", alone)
    for name, spread in (("p50", median), ("p95", p95)):
        report.add(f"neighbour_fsync_alone_{name}", spread(alone) * 1e3, "ms")
        for ceiling, times in beside.items():
            report.add(f"neighbour_fsync_{ceiling}_ceiling_{name}", spread(times) * 1e3, "ms")
            report.add(f"neighbour_fsync_{ceiling}_ceiling_{name}_to_alone", spread(times) / spread(alone), "ratio")
    for ceiling, times in beside.items():
        report.sample(f"the same, beside a pull {ceiling} a ceiling", times)


async def _writing(volume: Path, meanwhile: Coroutine[None, None, object]) -> list[float]:
    """How long the neighbour's writes take until `meanwhile` is over, in seconds."""
    one = Neighbour(volume, [])
    writing = asyncio.create_task(asyncio.to_thread(one.write))
    try:
        await meanwhile
    finally:
        one.over = True
        await writing
    return one.times


PARTS = ("unpack", "park", "neighbour")


@contextmanager
def _place() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="fw-bench-", dir="/var/tmp") as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)


async def run(report: Report, parts: list[str], rounds: int) -> None:
    with own_address() as address, _place() as place:
        layout = write_layout(place / "images/layout", {"latest": make_image(SIZE, FILES)})
        async with boxes_reaching(place / "node", address, parked=2) as boxes:
            if "unpack" in parts:
                await compare_unpacking(report, boxes, place, layout, rounds)
            if "park" in parts:
                await park(report, boxes, place, layout)
            if "neighbour" in parts:
                await neighbour(report, boxes, place, layout)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", choices=(*PARTS, "pool"), action="append", help="only this part")
    parser.add_argument("--rounds", type=int, default=2, help="unpackings of each (default 2)")
    arguments = parser.parse_args()
    parts = arguments.only or list(PARTS)
    # As the agent has them: whatever begins on the machine meanwhile holds on to no volume.
    linux.unshare(linux.CLONE_NEWNS)
    linux.mount("none", "/", "none", linux.MS_REC | linux.MS_SLAVE)
    report = Report("image")
    if set(parts) & set(PARTS):
        asyncio.run(run(report, parts, arguments.rounds))
    if "pool" in parts:
        report.results.extend(pool_results())
    return 0 if report.close() else 1


if __name__ == "__main__":
    sys.exit(main())
