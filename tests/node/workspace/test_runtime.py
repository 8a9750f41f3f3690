"""Another OCI runtime than crun, chosen by a setting."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from tests.node.workspace.laboratory import end_all, lab_on

pytestmark = [
    pytest.mark.root,
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.skipif(not shutil.which("runc"), reason="needs runc on this machine (apt install runc)"),
]


async def test_runc_runs_workspaces_as_crun_does(data_dir: Path, repository: Path) -> None:
    async with lab_on(data_dir, repository, parked=1, runtime="runc") as lab:
        workspace = await lab.start()
        slot = lab.node.runs.sandbox_of(workspace).id.split("-")[0]
        [state] = Path("/run/fairwater").glob(f"*/slots/{slot}/runtime/fw{slot}/state.json")  # runc's, not crun's
        assert state.exists()
        assert await lab.sh(workspace, "id -u; cat README; ps -e -o comm= | head -1") == (0, "1000\nhello\ninit\n")
        _, status = await lab.sh(workspace, "grep -E 'NoNewPrivs|Seccomp:' /proc/self/status")
        assert [line.split()[1] for line in status.splitlines()] == ["1", "2"]
        assert (await lab.stop(workspace)).failure is None
        await end_all(lab)
