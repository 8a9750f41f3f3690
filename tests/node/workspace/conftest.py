"""Fixtures around `laboratory.Lab`."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest
import pytest_asyncio
from tests.node.workspace.laboratory import Lab, end_all, lab_on
from tests.node.workspace.sandbox_laboratory import SandboxLab, sandbox_lab


@pytest.fixture(scope="module")
def data_dir() -> Iterator[Path]:
    path = Path(tempfile.mkdtemp(prefix="fw-", dir="/var/tmp"))
    yield path
    shutil.rmtree(path)


@pytest.fixture(scope="module")
def repository(data_dir: Path) -> Path:
    path = data_dir / "origin" / "repo"
    path.mkdir(parents=True)
    git = (
        "git",
        "-C",
        str(path),
        "-c",
        "user.name=T",
        "-c",
        "user.email=t@example.org",
        "-c",
        "init.defaultBranch=main",
    )
    subprocess.run([*git, "init", "-q"], check=True)
    (path / "README").write_text("hello\n")
    subprocess.run([*git, "add", "."], check=True)
    subprocess.run([*git, "commit", "-qm", "first"], check=True)
    # Read by its owner alone: bound into the helper, it must still be readable for the clone.
    subprocess.run(["chmod", "-R", "go-rwx", str(path)], check=True)
    return path


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def lab(data_dir: Path, repository: Path) -> AsyncIterator[Lab]:
    async with lab_on(data_dir, repository) as lab:
        yield lab
        await end_all(lab)


OpenLab = Callable[[], contextlib.AbstractAsyncContextManager[Lab]]


@pytest.fixture
def open_lab(data_dir: Path, repository: Path) -> OpenLab:
    """Opens the same data directory again and again, as a restarted agent does."""
    return lambda: lab_on(data_dir, repository, parked=1)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def boxes(data_dir: Path) -> AsyncIterator[SandboxLab]:
    async with sandbox_lab(data_dir) as lab:
        yield lab
        await lab.end_all()
