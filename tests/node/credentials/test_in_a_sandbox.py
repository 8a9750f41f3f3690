"""Credentials and tasks in a real sandbox: its user, its capabilities, its filter of system calls."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

import asyncssh
import pytest
from tests.node.init.conftest import becomes
from tests.node.workspace.sandbox_laboratory import SandboxLab, sandbox_lab

from fairwater.domain.workspaces.secrets import RunSecrets
from fairwater.domain.workspaces.setup import Task
from fairwater.node.credential_service import CredentialService
from fairwater.node.host_image import REFERENCE
from fairwater.node.secrets import FileSecrets
from fairwater.ports.sandboxes import Sandbox

from .conftest import SECRET, ssh_key, token

pytestmark = [pytest.mark.root, pytest.mark.skipif(shutil.which("crun") is None, reason="needs crun")]


@pytest.fixture
async def lab() -> AsyncIterator[SandboxLab]:
    with tempfile.TemporaryDirectory(prefix="fairwater-test-", dir="/var/tmp") as name:
        secrets = FileSecrets(Path(name) / "secrets")
        async with sandbox_lab(Path(name) / "data", service=CredentialService(secrets)) as lab:
            lab.secrets = secrets  # type: ignore[attr-defined]
            try:
                yield lab
            finally:
                await lab.end_all()


async def begin(lab: SandboxLab) -> Sandbox:
    """A sandbox whose workspace has a token and a key."""
    workspace, _ = await lab.volume()
    key = asyncssh.generate_private_key("ssh-ed25519").export_private_key().decode()
    lab.secrets.put(workspace, RunSecrets((token("git.example.org"), ssh_key(key))))  # type: ignore[attr-defined]
    return await lab.start(await lab.images.prepare(REFERENCE), workspace)


async def test_git_and_ssh_are_served_in_it_and_nothing_can_be_changed(lab: SandboxLab) -> None:
    sandbox = await begin(lab)
    ask = "printf 'protocol=https\\nhost=%s\\n' {} | GIT_TERMINAL_PROMPT=0 git credential fill"
    status, out = await lab.sh(sandbox, ask.format("git.example.org"))
    assert (status, out.splitlines()[-2:]) == (0, ["username=person", f"password={SECRET}"])
    status, out = await lab.sh(sandbox, ask.format("other.example.org"))
    assert status != 0
    assert SECRET not in out
    status, out = await lab.sh(sandbox, "ssh-add -l")
    assert status == 0, out
    assert "git.example.org (ED25519)" in out
    text = "echo text >/tmp/text && ssh-add -L >/tmp/key.pub && ssh-keygen -q -Y sign -n file -f /tmp/key.pub /tmp/text"
    assert (await lab.sh(sandbox, text))[0] == 0
    for user in ("workspace", "root"):
        for script in (
            "touch /run/fairwater/service/x",
            "rm -f /run/fairwater/service/credential",
            "cat /run/fairwater/git-credential-fairwater",
        ):
            assert (await lab.sh(sandbox, script, user=user))[0] != 0


async def test_a_restarted_service_is_found_by_what_runs_already(lab: SandboxLab) -> None:
    sandbox = await begin(lab)
    again = CredentialService(lab.secrets)  # type: ignore[attr-defined]
    [folder] = [path.parent for path in lab.slots_folder.glob("*/service/credential")]
    await again.open(folder, sandbox.tenant.workspace)
    status, out = await lab.sh(sandbox, "ssh-add -l")
    assert status == 0, out
    await again.close(folder)
    assert (await lab.sh(sandbox, "ssh-add -l"))[0] == 2


async def test_a_task_runs_under_its_filter_and_is_told_apart_from_others(lab: SandboxLab) -> None:
    sandbox = await begin(lab)
    with tempfile.TemporaryDirectory(prefix="fairwater-test-", dir="/var/tmp") as name:
        log, status = Path(name) / "log", Path(name) / "status"
        script = "tty; id -un; grep Seccomp: /proc/self/status; ssh-add -l; exit 5"
        for _ in range(2):
            await lab.sandboxes.start_task(sandbox, Task(3, "three", script), log, status)
        async with asyncio.timeout(20):
            await becomes(lambda: status.exists() and status.read_text() == "5\n")
        lines = log.read_text().splitlines()
        assert lines[0].startswith("/dev/pts/")
        assert lines[2].split() == ["Seccomp:", "2"]
        assert lines[3].endswith("git.example.org (ED25519)")
        assert len(lines) == 4
        await lab.sandboxes.start_task(sandbox, Task(4, "four", "sleep 100"), log, status.with_name("four"))
        await lab.sandboxes.terminate(sandbox)
        await becomes(lambda: status.with_name("four").read_text() in ("143\n", "129\n"))
