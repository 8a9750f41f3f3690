"""An agent that dies at any moment: what runs goes on, what was begun is finished, nothing is left behind."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path

import pytest
from tests.node.workspace.conftest import OpenLab
from tests.node.workspace.laboratory import Lab, end_all, wait_for

from fairwater.domain.ids import RunNumber
from fairwater.domain.workspaces.run import RunState, RunStep
from fairwater.loops.run_steps import RunReconciler
from fairwater.node.network import WorkspaceNetwork
from fairwater.node.sandboxes import ParkedSandboxes
from fairwater.ports.agent import StartRequest

pytestmark = [pytest.mark.root, pytest.mark.asyncio(loop_scope="module")]


async def test_a_restarted_agent_finds_what_runs(open_lab: OpenLab) -> None:
    async with open_lab() as before:
        workspace = await before.start()
        await before.sh(workspace, "echo here > /tmp/only-in-this-run; (sleep 1000 >/dev/null 2>&1 &)")
        pid = before.init_pid(workspace)
    assert Path(f"/proc/{pid}").exists(), "the workspace must not need the agent"
    async with open_lab() as after:
        assert (await after.facts(workspace)).state is RunState.RUNNING
        assert after.init_pid(workspace) == pid
        assert await after.sh(workspace, "cat /tmp/only-in-this-run; pgrep -c sleep") == (0, "here\n1\n")
        await end_all(after)


async def test_a_run_that_died_while_the_agent_was_away_is_cleared(open_lab: OpenLab) -> None:
    async with open_lab() as before:
        workspace = await before.start()
        pid = before.init_pid(workspace)
    os.kill(pid, signal.SIGKILL)
    async with open_lab() as after:
        assert (await after.until(workspace, RunState.ENDED)).reason == "its first process was killed"
        await end_all(after)


class Interrupted(BaseException):
    """Stands for a kill of the agent."""


UP = [
    RunStep.CREATE_VOLUME,
    RunStep.ATTACH_VOLUME,
    RunStep.BRING_CONTENT,
    RunStep.CLAIM_SANDBOX,
    RunStep.ADMIT,
    RunStep.LAUNCH,
]
DOWN = [RunStep.SIGNAL, RunStep.KILL, RunStep.REMOVE_SANDBOX, RunStep.DETACH_VOLUME]


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("step", [*UP, *DOWN], ids=lambda step: step.value)
async def test_an_agent_killed_around_any_step_ends_where_it_would_have(
    open_lab: OpenLab, monkeypatch: pytest.MonkeyPatch, step: RunStep, when: str
) -> None:
    apply = RunReconciler.apply
    killed = asyncio.Event()

    async def until_killed(self: RunReconciler, key: object, todo: RunStep) -> None:
        if killed.is_set():
            raise Interrupted
        if todo is not step or when == "after":
            await apply(self, key, todo)  # type: ignore[arg-type]
        if todo is step:
            killed.set()
            raise Interrupted

    async with open_lab() as before:
        workspace = next(before.names)
        if step in DOWN:
            await before.start(workspace)
        monkeypatch.setattr(RunReconciler, "apply", until_killed)
        if step in DOWN:
            await before.node.runs.stop_run(workspace, RunNumber(1))
        else:
            await before.node.runs.start_run(workspace, StartRequest(RunNumber(1), before.spec(), True))
        await asyncio.wait_for(killed.wait(), 20)
        monkeypatch.undo()
    async with open_lab() as after:
        if step in DOWN:
            assert (await after.until(workspace, RunState.ENDED)).failure is None
        else:
            await after.until(workspace, RunState.RUNNING)
            assert await after.sh(workspace, "cat README") == (0, "hello\n")
            assert [s.tenant.workspace for s in after.node.sandboxes.claimed()] == [workspace]
        await end_all(after)


@pytest.mark.pm(24)
async def test_a_network_that_does_not_forward_fails_the_start_with_its_reason(
    open_lab: OpenLab, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_lab() as lab:
        create = WorkspaceNetwork.create

        def without_forwarding(self: WorkspaceNetwork, slot: int, netns: Path) -> str:
            address = create(self, slot, netns)
            from fairwater.node import linux

            with linux.opened(netns) as namespace:
                linux.in_namespaces(lambda: Path("/proc/sys/net/ipv4/ip_forward").write_text("0"), net_ns=namespace)
            return address

        monkeypatch.setattr(WorkspaceNetwork, "create", without_forwarding)
        assert isinstance(lab.node.sandboxes, ParkedSandboxes)
        for slot in lab.node.sandboxes._pool.parked:  # the ones parked before do work
            os.kill(slot.pid, signal.SIGKILL)
        await wait_for(lambda: _empty(lab), "the pool to be empty")
        workspace = next(lab.names)
        await lab.node.runs.start_run(workspace, StartRequest(RunNumber(1), lab.spec(), True))

        async def told() -> bool:
            return "ip_forward" in (await lab.facts(workspace)).reason

        await wait_for(told, "the reason to be told")
        hindered = (await lab.facts(workspace)).progress
        assert hindered is not None, "who waits for the workspace is told, too"
        assert "ip_forward" in hindered.step
        monkeypatch.undo()
        await end_all(lab)


async def _empty(lab: Lab) -> bool:
    return lab.node.sandboxes.parked() == 0  # type: ignore[union-attr]
