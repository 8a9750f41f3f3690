"""What all tests share: which can run here, the post-mortem's marks, Hypothesis' profiles, the look for leftovers.

A test marked `root` cleans up behind itself, and one that does not fails by name. What fixtures of a wider scope hold
on to is looked for at the end of the session.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import time
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from fairwater.node import linux

ROWS = frozenset(
    int(row)
    for part in tomllib.loads((Path(__file__).parent.parent / "tools/pm_rows.toml").read_text()).values()
    for row in part
)
GONE_WITHIN_S = 5.0
"""Sandboxes are cleared behind a run, in the background: so long may that take."""

settings.register_profile("default", deadline=None)
settings.register_profile("ci", deadline=None, derandomize=True, print_blob=True)
settings.load_profile("ci" if os.environ.get("CI") else "default")


def pytest_configure(config: pytest.Config) -> None:
    """So that nobody who asks for the current event loop makes one that nobody closes."""
    asyncio.set_event_loop(None)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--pm-marks", metavar="FILE", help="write the collected post-mortem marks to FILE, as JSON")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Skips what cannot run here, with its reason, and writes down the post-mortem's marks."""
    reason = why_not_root()
    marks = []
    for item in items:
        if reason and item.get_closest_marker("root"):
            item.add_marker(pytest.mark.skip(reason=reason))
        for mark in item.iter_markers("pm"):
            row, sabotage = pm_row(item.nodeid, mark)
            marks.append({"row": row, "sabotage": sabotage, "test": item.nodeid})
    target = config.getoption("--pm-marks")
    if target:
        Path(target).write_text(json.dumps(marks))


def pm_row(test: str, mark: pytest.Mark) -> tuple[int, bool]:
    """The row and the kind of a `pm` mark.

    Raises:
        pytest.UsageError: it names no row of the post-mortem.
    """
    row, sabotage = mark.args[0] if len(mark.args) == 1 else None, mark.kwargs.get("sabotage", False)
    if type(row) is not int or row not in ROWS or type(sabotage) is not bool or set(mark.kwargs) - {"sabotage"}:
        raise pytest.UsageError(f"{test}: write pm(ROW) or pm(ROW, sabotage=True), ROW as in tools/pm_rows.toml")
    return row, sabotage


def why_not_root() -> str | None:
    """Why the tests marked `root` cannot run here; None where they can."""
    if os.geteuid() != 0:
        return "needs root"
    missing = [name for name in ("crun", "ip", "mkfs.btrfs", "losetup", "mount") if not shutil.which(name)]
    if missing:
        return f"needs {', '.join(missing)} on this machine: run make test as root, which installs them"
    status = dict(line.split(":\t", 1) for line in Path("/proc/self/status").read_text().splitlines() if ":\t" in line)
    if not int(status["CapEff"], 16) >> 21 & 1:
        return "needs the capability CAP_SYS_ADMIN: root has it on a machine, not in most containers"
    return None


@pytest.fixture(scope="session", autouse=True)
def private_mounts() -> None:
    """As the agent has them: nothing that starts meanwhile holds on to a volume, and a killed run leaves none."""
    if os.geteuid() == 0:
        linux.unshare(linux.CLONE_NEWNS)
        linux.mount("none", "/", "none", linux.MS_REC | linux.MS_SLAVE)


# ---------------------------------------------------------------- leftovers


def held(scratch: Path) -> frozenset[str]:
    """What Fairwater's tests could leave on the machine: cgroups, mounts, network namespaces, veth pairs, loop devices.

    Mounts and loop devices count where they belong to Fairwater or lie below `scratch`, the session's own folder.
    """
    found = {f"network namespace {name}" for name in names("/run/netns") if name.startswith("fw")}
    found |= {f"network interface {name}" for name in names("/sys/class/net") if name.startswith("fw")}
    for top in ["/sys/fs/cgroup", *(f"/sys/fs/cgroup/{name}" for name in names("/sys/fs/cgroup"))]:
        for name in names(top):
            if name.startswith("fairwater"):
                found |= {f"cgroup {folder}" for folder, _, _ in os.walk(f"{top}/{name}")}
    ours = (str(scratch), "fairwater")
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        if any(word in line for word in ours):
            found.add(f"mount at {line.split()[4]}")
    for device in names("/sys/block"):
        file = read(f"/sys/block/{device}/loop/backing_file") if device.startswith("loop") else ""
        if any(word in file for word in ours):
            found.add(f"loop device {device} of {file}")
    return frozenset(found)


def names(folder: str) -> list[str]:
    try:
        return [entry.name for entry in os.scandir(folder)]
    except (FileNotFoundError, NotADirectoryError):
        return []


def read(file: str) -> str:
    try:
        return Path(file).read_text().strip()
    except OSError:
        return ""  # gone meanwhile


def leftovers(before: frozenset[str], scratch: Path) -> list[str]:
    """What is there beyond `before`, once what is being cleared has had its time."""
    until = time.monotonic() + GONE_WITHIN_S
    while (rest := held(scratch) - before) and time.monotonic() < until:
        time.sleep(0.05)
    return sorted(rest)


def others_at_work() -> list[str]:
    """Another Fairwater or another run of its tests on this machine: what appears may be theirs."""
    mine = {os.getpid(), os.getppid()}
    began = started_at(os.getpid())
    found = []
    for name in names("/proc"):
        if not name.isdigit() or int(name) in mine:
            continue
        command = read(f"/proc/{name}/cmdline").replace("\0", " ")
        older = started_at(int(name)) < began
        running = "fairwater" in command and any(verb in command for verb in (" up", " run"))
        if "pytest" in command or (older and running):
            found.append(f"{name} {command[:60]}")
    return found


def started_at(pid: int) -> int:
    """When a process began, in clock ticks since boot (proc(5), field 22 of stat)."""
    fields = read(f"/proc/{pid}/stat").rpartition(")")[2].split()
    return int(fields[19]) if len(fields) > 19 else 0


def judge(before: frozenset[str], scratch: Path) -> None:
    rest = leftovers(before, scratch)
    if not rest:
        return
    listed = "\n  ".join(rest[:20])
    others = others_at_work()
    if others:
        print(f"perhaps left behind, perhaps of {', '.join(others[:3])}:\n  {listed}")
    else:
        pytest.fail(f"left behind on the machine:\n  {listed}", pytrace=False)


def shares_fixtures(request: pytest.FixtureRequest) -> bool:
    """Whether the test uses something of ours that outlives it, and that may grow and shrink meanwhile."""
    return any(
        definition.scope != "function" and definition.baseid.startswith("tests/")
        for definitions in request.node._fixtureinfo.name2fixturedefs.values()
        for definition in definitions
    )


@pytest.fixture(scope="session", autouse=True)
def nothing_is_left_of_the_session(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[None]:
    if not any(item.get_closest_marker("root") for item in request.session.items) or why_not_root():
        yield
        return
    scratch = tmp_path_factory.getbasetemp()
    before = held(scratch)
    yield
    judge(before, scratch)


@pytest.fixture(autouse=True)
def nothing_is_left_of_a_root_test(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[None]:
    if request.node.get_closest_marker("root") is None or shares_fixtures(request):
        yield
        return
    scratch = tmp_path_factory.getbasetemp()
    before = held(scratch)
    yield
    judge(before, scratch)
