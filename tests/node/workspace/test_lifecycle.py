"""Runs on a real node: started, stopped, killed, adopted, interrupted; and nothing left behind."""

from __future__ import annotations

import asyncio
import os
import signal

import pytest
from tests.node.workspace.laboratory import Lab, wait_for

from fairwater.domain.failure import Permanent
from fairwater.domain.ids import RunNumber
from fairwater.domain.workspaces.run import RunState, Source
from fairwater.ports.agent import StartRequest

pytestmark = [pytest.mark.root, pytest.mark.asyncio(loop_scope="module")]


async def test_an_edit_is_there_after_stop_and_start(lab: Lab) -> None:
    workspace = await lab.start()
    await lab.sh(workspace, "echo edited > README; echo mine > ~/.mine")
    assert (await lab.stop(workspace)).reason == "stopped"
    await lab.start(workspace, run=2)
    assert await lab.sh(workspace, "cat README ~/.mine") == (0, "edited\nmine\n")


async def test_the_checkout_is_clean_and_knows_where_it_came_from(lab: Lab) -> None:
    workspace = await lab.start()
    status, words = await lab.sh(
        workspace, "git status --porcelain && git remote get-url origin && git log --format=%s"
    )
    assert (status, words.splitlines()) == (0, [f"file://{lab.repository}", "first"])


@pytest.mark.pm(35)
async def test_git_works_whatever_the_owner_of_the_checkout(lab: Lab) -> None:
    workspace = await lab.start()
    await lab.sh(workspace, "chown -R root:root /workspace/repo", user="root")
    assert (await lab.sh(workspace, "git -C /workspace/repo status --porcelain"))[0] == 0
    assert (await lab.sh(workspace, "git -C /workspace/repo log -1 --format=%s", user="root")) == (0, "first\n")


@pytest.mark.pm(35, sabotage=True)
async def test_without_the_setting_git_refuses_a_checkout_of_another_owner(lab: Lab) -> None:
    workspace = await lab.start()
    await lab.sh(workspace, "chown -R root:root /workspace/repo; rm /etc/gitconfig", user="root")
    status, words = await lab.sh(workspace, "git -C /workspace/repo status --porcelain")
    assert status != 0
    assert "dubious ownership" in words


async def test_the_first_process_writes_its_log(lab: Lab) -> None:
    spec = lab.spec(
        command=("sh", "-c", "echo hello from $FAIRWATER_WORKSPACE_ID; echo trouble >&2"),
        environment=(("FAIRWATER_WORKSPACE_ID", "me"),),
    )
    workspace = await lab.start(spec=spec)

    async def text() -> str:
        return b"".join([chunk async for chunk in lab.node.access.logs(workspace, RunNumber(1))]).decode()

    async def both() -> bool:
        found = await text()
        return "hello from me\n" in found and "trouble\n" in found

    await wait_for(both, "the log to hold both lines")


async def test_a_first_process_that_does_not_exist_fails_the_run_and_leaves_nothing(lab: Lab) -> None:
    workspace = next(lab.names)
    await lab.node.runs.start_run(workspace, StartRequest(RunNumber(1), lab.spec(command=("no-such-program",)), True))
    facts = await lab.until(workspace, RunState.ENDED)
    assert facts.code == "command_not_found"
    assert "no-such-program" in (facts.failure or "")
    assert not any(sandbox.tenant.workspace == workspace for sandbox in lab.node.sandboxes.claimed())


async def test_processes_get_their_grace_to_save_and_are_killed_after_it(lab: Lab) -> None:
    script = "trap 'sleep 0.3; echo saved > /workspace/saved; exit' TERM; while :; do sleep 0.05; done"
    polite = await lab.start(spec=lab.spec(command=("sh", "-c", script)))
    deaf = await lab.start(spec=lab.spec(command=("sh", "-c", "trap '' TERM HUP; while :; do sleep 0.05; done")))
    await asyncio.gather(lab.stop(polite), lab.stop(deaf))
    await lab.start(polite, run=2)
    assert await lab.sh(polite, "cat /workspace/saved") == (0, "saved\n")


async def test_a_command_of_an_older_run_is_refused(lab: Lab) -> None:
    workspace = await lab.start()
    await lab.stop(workspace)
    await lab.start(workspace, run=2)
    for late in (
        lab.node.runs.start_run(workspace, StartRequest(RunNumber(1), lab.spec(), True)),
        lab.node.runs.stop_run(workspace, RunNumber(1)),
        lab.node.runs.delete_volume(workspace, RunNumber(1)),
    ):
        with pytest.raises(Permanent) as refused:
            await late
        assert refused.value.code == "stale_run"
    assert (await lab.facts(workspace)).state is RunState.RUNNING


async def test_the_death_of_the_first_process_ends_the_run_and_keeps_the_content(lab: Lab) -> None:
    workspace = await lab.start()
    await lab.sh(workspace, "echo kept > /workspace/kept; sync")
    os.kill(lab.init_pid(workspace), signal.SIGKILL)
    facts = await lab.until(workspace, RunState.ENDED)
    assert facts.reason == "its first process was killed"
    await lab.start(workspace, run=2)
    assert await lab.sh(workspace, "cat /workspace/kept") == (0, "kept\n")


async def test_a_stop_during_the_clone_does_not_wait_for_it(lab: Lab) -> None:
    workspace = next(lab.names)
    # A host that accepts and says nothing: the blackhole address of RFC 6666's IPv4 sibling, dropped by the rules.
    source = Source("https://169.254.10.10/org/repo", "repo")
    await lab.node.runs.start_run(workspace, StartRequest(RunNumber(1), lab.spec(source=source), True))
    assert (await lab.facts(workspace)).state is RunState.INITIALIZING
    await lab.node.runs.stop_run(workspace, RunNumber(1))
    assert (await lab.until(workspace, RunState.ENDED)).failure is None
