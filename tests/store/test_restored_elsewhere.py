"""A backup put back by the command line where the server has another master key: what is said, and the way out."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from tests.loops.scripted_agent import Script, ScriptedAgent
from tests.server.tiny_agent import TinyAgent
from tests.servers.fairwater_server import KEY, ServerProcess, server_process

from fairwater.node.api.app import create_agent_app
from fairwater.serving.serve import serve

from .test_two_servers import WallClock

pytestmark = pytest.mark.long

OTHER = "11" * 32
_RUN = "from fairwater.cli.main import run; run()"


@pytest.fixture
async def node(tmp_path: Path) -> AsyncIterator[Path]:
    agent, tiny, stop = ScriptedAgent(WallClock(), Script()), TinyAgent(), asyncio.Event()
    app = create_agent_app(agent, tiny, tiny.facts)
    serving = asyncio.create_task(serve(app, unix_socket=tmp_path / "node.sock", stop=stop))
    yield tmp_path / "node.sock"
    stop.set()
    await serving
    await agent.close()


def admin(server: ServerProcess, *words: str) -> subprocess.CompletedProcess[str]:
    """`fairwater admin …` at the server's own socket."""
    return subprocess.run(
        [sys.executable, "-c", _RUN, "admin", *words],
        env={"PATH": "/usr/bin:/bin", "HOME": str(server.folder), "FAIRWATER_DATA_DIR": str(server.folder)},
        capture_output=True,
        text=True,
        check=False,
    )


def backed_up(folder: Path, file: Path, node: Path) -> None:
    with server_process(folder, f"sqlite:///{folder}/own.db", node_socket=node) as server:
        server.set_variable(name="NAME", value="hush-hush", secret=True)
        server.post("workspaces", context_url="https://example.org/team/repo", name="repo", start=False)
        saved = admin(server, "backup", str(file))
        assert saved.returncode == 0, saved.stderr


def put_back(folder: Path, file: Path, node: Path, master_key: str) -> str:
    """What the command says; afterwards the server has ended."""
    with server_process(folder, f"sqlite:///{folder}/own.db", node_socket=node, master_key=master_key) as server:
        restored = admin(server, "restore", str(file), "--yes")
        assert restored.returncode == 0, restored.stderr
        assert set(server.phases()) == {"repo"}
        return restored.stderr


async def test_a_backup_under_another_master_key_says_so_until_that_key_is_there_too(
    tmp_path: Path, node: Path
) -> None:
    file, one, other = tmp_path / "file.backup", tmp_path / "one", tmp_path / "other"
    await asyncio.to_thread(backed_up, one, file, node)
    said = await asyncio.to_thread(put_back, other, file, node, OTHER)
    assert "warning" in said
    assert "put back the key that was used before" in said
    assert KEY not in said
    assert "hush" not in said

    def begun_anew() -> None:
        with server_process(other, f"sqlite:///{other}/own.db", master_key=OTHER):
            pass

    with pytest.raises(RuntimeError, match="put back the key that was used before"):
        await asyncio.to_thread(begun_anew)

    def with_both() -> dict[str, str]:
        url = f"sqlite:///{other}/own.db"
        with server_process(other, url, node_socket=node, master_key=f"{OTHER} {KEY}") as server:
            rotated = admin(server, "rotate-keys", "--yes")
            assert rotated.returncode == 0, rotated.stderr
        with server_process(other, url, node_socket=node, master_key=OTHER) as server:
            server.post("workspaces/repo/start")
            return server.phases()

    assert set(await asyncio.to_thread(with_both)) == {"repo"}


async def test_a_backup_under_the_same_master_key_says_nothing(tmp_path: Path, node: Path) -> None:
    file = tmp_path / "file.backup"
    await asyncio.to_thread(backed_up, tmp_path / "one", file, node)
    said = await asyncio.to_thread(put_back, tmp_path / "other", file, node, KEY)
    assert "warning" not in said
