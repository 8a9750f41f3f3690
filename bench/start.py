"""How soon a workspace is at its first process, beside a bare OCI runtime, podman and docker in the same run.

A start counts from the API request to the time that the first process itself writes down.
"""

from __future__ import annotations

import argparse
import asyncio
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from bench import peers
from bench.report import Report, median, p95
from bench.stack import Stack, running

from fairwater.bootstrap.node import INIT, INSTALLATION
from fairwater.node.host_image import HostImage

GAP_S = 0.15
GENEROUS = {
    "FAIRWATER_LIMITS_START_INTERVAL": "1ms",
    "FAIRWATER_LIMITS_START_BURST": "1000",
    "FAIRWATER_LIMITS_PARALLEL": "1000",
}


def repository(folder: Path) -> Path:
    """A small repository of 100 files in 20 commits."""
    path = folder / "small"
    path.mkdir()
    git = ["git", "-C", str(path), "-c", "user.name=B", "-c", "user.email=b@example.org"]
    subprocess.run([*git, "init", "-q"], check=True)
    for commit in range(20):
        for number in range(5):
            (path / f"file-{commit}-{number}").write_text(f"{commit} {number}\n" * 50)
        subprocess.run([*git, "add", "."], check=True)
        subprocess.run([*git, "commit", "-qm", f"commit {commit}"], check=True)
    return path


def warm_start(stack: Stack, workspace: str) -> float:
    began = time.time()
    stack.start(workspace)
    stack.wait(workspace, "running")
    # Running is told when the first process was let go; it may still be on its way to writing.
    while True:
        text = stack.file(workspace, "workspace/started")
        if text.strip() and int(text) / 1e9 > began:
            return int(text) / 1e9 - began
        time.sleep(0.002)


def stop(stack: Stack, *workspaces: str) -> None:
    for workspace in workspaces:
        stack.stop(workspace)
    for workspace in workspaces:
        stack.wait(workspace, "stopped")


def compare_starts(report: Report, source: Path, rounds: int) -> None:
    """Warm starts and `crun run`, in turns."""
    init = INSTALLATION / INIT
    with running({**GENEROUS, "FAIRWATER_NODE_PARKED": "4"}, source.parent) as stack, peers.crun(init) as crun:
        workspace = stack.create(f"file://{source}", command=peers.FIRST_PROCESS)
        stack.wait(workspace, "running")
        ours: list[float] = []
        failed = 0
        bare: list[float] = []
        for number in range(rounds):
            stop(stack, workspace)
            time.sleep(GAP_S)
            try:
                ours.append(warm_start(stack, workspace))
            except RuntimeError as failure:
                print(f"  start {number} failed: {failure}")
                failed += 1
                stack.stop(workspace, force=True)
            time.sleep(GAP_S)
            if number % 2 == 0:
                bare.append(crun())
                time.sleep(GAP_S)
        report.sample("warm start: API request to first process", ours)
        report.sample("crun run, the same bundle and mounts", bare)
        report.add("warm_start_p50_vs_crun", median(ours) / median(bare), "ratio", "<= 1.0")
        report.add("warm_start_p95_vs_crun", p95(ours) / p95(bare), "ratio", "<= 1.5")
        report.add(f"starts_failed_of_{rounds}", failed, "starts", "<= 0")
        compare_engines(report, stack, workspace, median(ours))
        compare_create(report, stack, source)


def compare_engines(report: Report, stack: Stack, workspace: str, ours: float) -> None:
    with tempfile.TemporaryDirectory(prefix="fw-", dir="/var/tmp") as folder:
        Path(folder).chmod(0o755)
        image = asyncio.run(HostImage(Path(folder)).prepare("host"))
        for name, peer, goal in (
            ("podman_run", peers.podman(image), ">= 6"),
            ("docker_run_without_network", peers.docker(image), ">= 6"),
            ("podman_run_without_network", peers.podman(image, "--network", "none"), None),
        ):
            with peer as run:
                run()
                times = []
                for _ in range(15):
                    time.sleep(GAP_S)
                    times.append(run())
            report.sample(f"{name.replace('_', ' ')}, the same root file system", times)
            report.add(f"{name}_p50_vs_warm_start", median(times) / ours, "ratio", goal)


def compare_create(report: Report, stack: Stack, source: Path) -> None:
    """From the request to a running workspace with the repository in it, beside `git clone` alone."""
    created: list[float] = []
    cloned: list[float] = []
    with tempfile.TemporaryDirectory(prefix="fw-", dir="/var/tmp") as folder:
        for number in range(15):
            began = time.monotonic()
            workspace = stack.create(f"file://{source}", name=f"created-{number}")
            stack.wait(workspace, "running")
            created.append(time.monotonic() - began)
            stop(stack, workspace)
            stack.delete(workspace)
            time.sleep(GAP_S)
            began = time.monotonic()
            subprocess.run(["git", "clone", "-q", f"file://{source}", f"{folder}/{number}"], check=True)
            cloned.append(time.monotonic() - began)
            time.sleep(GAP_S)
    report.sample("create from a small local repository", created)
    report.sample("git clone alone", cloned)
    report.add("create_beyond_git_clone_p50", (median(created) - median(cloned)) * 1e3, "ms", "<= 150")


def many_at_once(report: Report, source: Path, count: int = 20) -> None:
    with running({**GENEROUS, "FAIRWATER_NODE_PARKED": str(count)}, source.parent) as stack:
        workspaces = [stack.create(f"file://{source}", command=peers.FIRST_PROCESS, name=f"w{n}") for n in range(count)]
        for workspace in workspaces:
            stack.wait(workspace, "running")
        spans = []
        for _ in range(5):
            stop(stack, *workspaces)
            time.sleep(8)  # until the pool is full again
            stacks = [Stack(stack.data_dir, stack.agent_pid, stack.server_pid) for _ in workspaces]
            began = time.time()
            with ThreadPoolExecutor(count) as pool:
                list(pool.map(lambda pair: pair[0].start(pair[1]), zip(stacks, workspaces, strict=True)))
            for workspace in workspaces:
                stack.wait(workspace, "running")
            time.sleep(0.2)
            last = max(int(stack.file(workspace, "workspace/started")) / 1e9 for workspace in workspaces)
            spans.append(last - began)
        report.sample(f"{count} warm starts at once, until the last first process", spans)
        report.add(f"{count}_at_once_p50", median(spans), "s", "<= 0.6")


def without_pool(report: Report, source: Path) -> None:
    with running({**GENEROUS, "FAIRWATER_NODE_PARKED": "0"}, source.parent) as stack:
        workspace = stack.create(f"file://{source}", command=peers.FIRST_PROCESS)
        stack.wait(workspace, "running")
        times = []
        for _ in range(15):
            stop(stack, workspace)
            time.sleep(GAP_S)
            times.append(warm_start(stack, workspace))
        report.sample("start with a drained pool", times)
        report.add("drained_pool_start_p50", median(times) * 1e3, "ms")


def idle_cost(report: Report, source: Path, count: int = 100, seconds: float = 30) -> None:
    """The agent's processor time and memory beside `count` workspaces in which nothing happens."""
    small = {"FAIRWATER_CLASSES_STANDARD_DISK": "1GiB", "FAIRWATER_NODE_PARKED": "4"}
    with running({**GENEROUS, **small}, source.parent) as stack:
        workspaces = [stack.create(f"file://{source}", name=f"w{n}") for n in range(count)]
        for workspace in workspaces:
            stack.wait(workspace, "running", within_s=300)
        time.sleep(10)
        before = _cpu_s(stack.agent_pid)
        time.sleep(seconds)
        share = (_cpu_s(stack.agent_pid) - before) / seconds
        report.rows.append((f"agent idle with {count} workspaces", f"{share:.3%} of one core"))
        report.add(f"agent_idle_{count}_workspaces_cpu", share * 100, "%", "<= 1")
        report.add(f"agent_idle_{count}_workspaces_rss", _rss_mib(stack.agent_pid), "MiB", "<= 150")


def _cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / 100


def _rss_mib(pid: int) -> float:
    line = next(line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("VmRSS"))
    return int(line.split()[1]) / 1024


PARTS = {"starts": compare_starts, "at-once": many_at_once, "drained": without_pool, "idle": idle_cost}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", choices=PARTS, action="append", help="only this part")
    parser.add_argument("--rounds", type=int, default=200, help="warm starts (default 200)")
    arguments = parser.parse_args()
    report = Report("start")
    with tempfile.TemporaryDirectory(prefix="fw-bench-", dir="/var/tmp") as folder:
        Path(folder).chmod(0o755)
        source = repository(Path(folder))
        for name in arguments.only or PARTS:
            if name == "starts":
                compare_starts(report, source, arguments.rounds)
            else:
                PARTS[name](report, source)  # type: ignore[operator]
    return 0 if report.close() else 1


if __name__ == "__main__":
    sys.exit(main())
