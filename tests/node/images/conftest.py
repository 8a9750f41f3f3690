"""Fixtures around `laboratory.StoreLab`."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import pytest_asyncio
from tests.node.images.laboratory import StoreLab, a_folder, boxes_reaching, reachable_port
from tests.node.workspace.sandbox_laboratory import SandboxLab
from tests.servers.address import own_address
from tests.servers.registry import Registry, docker_registry


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    with own_address() as address:
        yield address


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def boxes(address: str) -> AsyncIterator[SandboxLab]:
    with a_folder() as folder:
        async with boxes_reaching(folder, address) as boxes:
            yield boxes


@pytest.fixture(scope="module")
def registry(address: str) -> Iterator[Registry]:
    with docker_registry(address, reachable_port()) as registry:
        yield registry


@pytest.fixture
def lab(boxes: SandboxLab, address: str) -> Iterator[StoreLab]:
    with a_folder() as folder:
        yield StoreLab(boxes, folder, address)


@pytest.fixture
def aside() -> Iterator[Path]:
    """A folder for what a test makes."""
    with a_folder() as folder:
        yield folder
