"""The contract of tasks: what a repository has run in its workspace, on plain and isolated nodes alike."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from fairwater.domain.failure import Permanent
from fairwater.domain.ids import RunNumber, WorkspaceId
from fairwater.domain.workspaces.run import RunState, TaskFacts, TaskState

if TYPE_CHECKING:
    from tests.contracts.conftest import Node, Repository

WORKSPACE = WorkspaceId("abcdefgh2345")
WITHIN_S = 20.0


def configure(repository: Repository, text: str, name: str = ".gitpod.yml") -> None:
    repository.write(name, text)
    repository.commit("configured")


async def ended(node: Node, run: int = 1, count: int = 1) -> list[TaskFacts]:
    """The tasks, once all of them have ended."""
    async with asyncio.timeout(WITHIN_S):
        while True:
            facts = await node.access.tasks(WORKSPACE, RunNumber(run))
            if len(facts) == count and all(task.ended_at for task in facts):
                return list(facts)
            await asyncio.sleep(0.05)


async def output(node: Node, task: int = 0, run: int = 1, *, follow: bool = False) -> str:
    async with asyncio.timeout(WITHIN_S):
        chunks = node.access.task_log(WORKSPACE, RunNumber(run), task, follow=follow)
        return b"".join([chunk async for chunk in chunks]).decode()


async def test_a_task_runs_its_parts_in_order_and_what_it_shows_is_kept(node: Node, repository: Repository) -> None:
    configure(
        repository, 'tasks:\n- before: export A=1\n  init: echo "init $A"\n  command: echo "command $A"; exit 3\n'
    )
    await node.up(source=repository.source())
    [task] = await ended(node)
    assert (task.state, task.exit_status) == (TaskState.FAILED, 3)
    said = await output(node)
    assert said.index("init 1") < said.index("command 1")
    await node.down()
    assert await node.access.tasks(WORKSPACE, RunNumber(1)) == (task,)
    assert "command 1" in await output(node)


async def test_what_runs_once_runs_once_in_a_workspaces_life(node: Node, repository: Repository) -> None:
    configure(repository, "tasks:\n- init: echo once >> ../count\n  command: echo always >> ../count\n")
    await node.up(source=repository.source())
    await ended(node)
    await node.down()
    await node.up(run=2, source=repository.source())
    await ended(node, run=2)
    assert await node.run("cat", "/workspace/count" if node.isolated else "../count", run=2) == (
        0,
        b"once\nalways\nalways\n",
        b"",
    )


async def test_a_task_has_a_terminal_and_is_followed_until_it_ends(node: Node, repository: Repository) -> None:
    configure(repository, "tasks:\n- command: test -t 1 && test -t 0 && echo a terminal; echo done\n")
    await node.up(source=repository.source())
    said = await output(node, follow=True)
    assert "a terminal" in said
    assert "done" in said


async def test_a_task_that_never_ends_holds_up_nothing_and_is_stopped_with_the_run(
    node: Node, repository: Repository
) -> None:
    configure(repository, "tasks:\n- init: sleep 1000\n- command: echo other\n")
    facts = await node.up(source=repository.source())
    assert facts.state is RunState.RUNNING
    async with asyncio.timeout(WITHIN_S):
        while True:
            first, second = await node.access.tasks(WORKSPACE, RunNumber(1))
            if second.ended_at:
                break
            await asyncio.sleep(0.05)
    assert (first.state, second.state) == (TaskState.INITIALIZING, TaskState.SUCCEEDED)
    await node.down()
    stopped, _ = await node.access.tasks(WORKSPACE, RunNumber(1))
    assert stopped.state in {TaskState.STOPPED, TaskState.FAILED}


async def test_a_task_goes_on_without_the_agent(node: Node, repository: Repository) -> None:
    configure(repository, "tasks:\n- command: while ! test -e ../go; do sleep 0.05; done; echo went on\n")
    await node.up(source=repository.source())
    await node.restart()
    [task] = await node.access.tasks(WORKSPACE, RunNumber(1))
    assert task.state is TaskState.RUNNING
    await node.run("touch", "/workspace/go" if node.isolated else "../go")
    [task] = await ended(node)
    assert task.state is TaskState.SUCCEEDED
    assert "went on" in await output(node)


async def test_a_broken_configuration_is_told_with_its_place_and_the_workspace_comes_up(
    node: Node, repository: Repository
) -> None:
    configure(repository, "image: debian\ntasks: [\n")
    facts = await node.up(source=repository.source())
    assert facts.state is RunState.RUNNING
    assert facts.setup is not None
    [notice] = [notice for notice in facts.setup.notices if notice.level == "error"]
    assert notice.file == ".gitpod.yml"
    assert notice.line is not None
    assert facts.setup.image == "host"


async def test_an_image_that_cannot_be_had_leaves_the_workspace_with_the_default(
    node: Node, repository: Repository
) -> None:
    configure(repository, "image: 'no/such:thing:at-all'\ntasks:\n- command: echo not run\n")
    facts = await node.up(source=repository.source(), image_asked=False)
    assert facts.state is RunState.RUNNING
    assert facts.setup is not None
    assert facts.setup.image == "host"
    assert any("no/such:thing" in notice.message for notice in facts.setup.notices)
    assert await node.access.tasks(WORKSPACE, RunNumber(1)) == ()


async def test_a_task_that_is_not_there_is_told(node: Node, repository: Repository) -> None:
    await node.up(source=repository.source())
    with pytest.raises(Permanent) as failed:
        await output(node, 7)
    assert failed.value.code == "no_such_task"


async def test_the_remote_environment_is_for_commands_and_may_name_the_containers(
    node: Node, repository: Repository
) -> None:
    configure(
        repository,
        '{"containerEnv": {"BOTH": "b"}, "remoteEnv": {"ONLY": "${containerEnv:BOTH}-r"}}',
        ".devcontainer/devcontainer.json",
    )
    await node.up(source=repository.source())
    assert await node.run("sh", "-c", "echo $BOTH $ONLY") == (0, b"b b-r\n", b"")


async def test_a_configuration_in_a_folder_of_its_own_is_found(node: Node, repository: Repository) -> None:
    configure(repository, '{"containerEnv": {"FOUND": "yes"}}', ".devcontainer/web/devcontainer.json")
    facts = await node.up(source=repository.source())
    assert facts.setup is not None
    assert facts.setup.file == ".devcontainer/web/devcontainer.json"
    assert await node.run("sh", "-c", "echo $FOUND") == (0, b"yes\n", b"")
