"""Databases for tests: `database_url` is a fresh and upgraded one, of each kind that this machine has.

To use the fixtures, import them into a `conftest.py`: `from tests.servers.databases import sqlite_url as sqlite_url`.
One PostgreSQL runs for all tests of a session, begun by the first that needs it.
"""

from __future__ import annotations

import asyncio
import atexit
import functools
import shutil
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest

from fairwater.store.migration import upgrade

from .postgres import TEMPLATE, Cluster, cluster, why_no_postgres

KINDS = ("sqlite", "postgresql")


@functools.cache
def shared_cluster() -> Cluster:
    """The session's PostgreSQL. To be left running: who stops or kills one begins one of its own."""
    stack = ExitStack()
    atexit.register(stack.close)
    running = stack.enter_context(cluster())
    url = running.create()
    _upgrade(url)
    running.rename(url, TEMPLATE)
    return running


@functools.cache
def _upgraded_file() -> Path:
    folder = Path(tempfile.mkdtemp(prefix="fairwater-database-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    _upgrade(f"sqlite:///{folder / 'fairwater.db'}")
    return folder / "fairwater.db"


def _upgrade(url: str) -> None:
    """In a thread: a fixture that asks for a database may itself run in an event loop."""
    with ThreadPoolExecutor(1) as thread:
        thread.submit(lambda: asyncio.run(upgrade(url))).result()


@pytest.fixture(scope="session")
def postgres() -> Cluster:
    reason = why_no_postgres()
    if reason is not None:
        pytest.skip(reason)
    return shared_cluster()


@pytest.fixture
def own_postgres() -> Iterator[Cluster]:
    """One that the test may stop and kill."""
    reason = why_no_postgres()
    if reason is not None:
        pytest.skip(reason)
    with cluster() as running:
        yield running


@pytest.fixture(params=KINDS)
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """A fresh, upgraded database of each kind."""
    yield from _database(request, tmp_path, upgraded=True)


@pytest.fixture(params=KINDS)
def empty_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """A database of each kind that nobody has used yet."""
    yield from _database(request, tmp_path, upgraded=False)


@pytest.fixture
def sqlite_url(tmp_path: Path) -> str:
    """A fresh, upgraded database in the file `fairwater.db` of the test's folder."""
    shutil.copyfile(_upgraded_file(), tmp_path / "fairwater.db")
    (tmp_path / "fairwater.db").chmod(0o600)
    return f"sqlite:///{tmp_path}/fairwater.db"


@pytest.fixture
def postgres_url(postgres: Cluster) -> Iterator[str]:
    url = postgres.create(TEMPLATE)
    yield url
    postgres.drop(url)


def _database(request: pytest.FixtureRequest, tmp_path: Path, *, upgraded: bool) -> Iterator[str]:
    if request.param == "postgresql":
        running: Cluster = request.getfixturevalue("postgres")
        url = running.create(TEMPLATE if upgraded else "template0")
        yield url
        running.drop(url)
    elif upgraded:
        yield request.getfixturevalue("sqlite_url")
    else:
        yield f"sqlite:///{tmp_path}/fairwater.db"
