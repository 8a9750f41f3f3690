"""The contract of `ports.agent`, on the agent itself and through its API over a unix socket."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from fairwater.domain.failure import Permanent, Temporary
from fairwater.domain.ids import RunNumber, WorkspaceId
from fairwater.domain.workspaces.run import RunState

if TYPE_CHECKING:
    from tests.contracts.conftest import Node, Repository

WORKSPACE = WorkspaceId("abcdefgh2345")
FIRST, SECOND = RunNumber(1), RunNumber(2)
WITHIN_S = 20.0


async def test_before_a_start_the_agent_knows_nothing(node: Node) -> None:
    assert await node.runs.runs() == ()
    assert await node.runs.stop_run(WORKSPACE, FIRST) is None
    await node.runs.delete_volume(WORKSPACE, FIRST)
    with pytest.raises(Permanent) as told:
        await node.run("true")
    assert told.value.code == "not_running"


async def test_the_agent_says_who_it_is(node: Node) -> None:
    hello = await node.runs.hello()
    assert hello.runtime == ("crun" if node.isolated else "plain")
    assert hello.node


async def test_a_started_run_runs(node: Node) -> None:
    facts = await node.up()
    assert (facts.workspace, facts.run, facts.state) == (WORKSPACE, FIRST, RunState.RUNNING)
    assert facts.failure is None
    assert [each.state for each in await node.runs.runs()] == [RunState.RUNNING]


async def test_starting_again_says_where_the_run_stands(node: Node) -> None:
    first = await node.up()
    assert await node.runs.start_run(WORKSPACE, node.request(1)) == first


async def test_a_stopped_run_has_ended_and_holds_nothing(node: Node) -> None:
    await node.up()
    ended = await node.down()
    assert (ended.state, ended.failure) == (RunState.ENDED, None)
    with pytest.raises(Permanent) as told:
        await node.run("true")
    assert told.value.code == "not_running"


async def test_stopping_again_is_harmless(node: Node) -> None:
    await node.up()
    await node.runs.stop_run(WORKSPACE, FIRST)
    await node.runs.stop_run(WORKSPACE, FIRST, force=True)
    ended = await node.until(WORKSPACE, RunState.ENDED)
    assert await node.runs.stop_run(WORKSPACE, FIRST) == ended


async def test_a_newer_run_finds_the_content_of_the_one_before(node: Node) -> None:
    await node.up()
    assert (await node.run("sh", "-c", "echo kept >kept"))[0] == 0
    await node.down()
    await node.up(run=2)
    assert (await node.run("cat", "kept", run=2))[1] == b"kept\n"


async def test_commands_of_an_older_run_are_refused(node: Node) -> None:
    await node.up()
    await node.down()
    await node.up(run=2)
    for refused in (
        node.runs.start_run(WORKSPACE, node.request(1)),
        node.runs.stop_run(WORKSPACE, FIRST),
        node.runs.delete_volume(WORKSPACE, FIRST),
        node.run("true", run=1),
    ):
        with pytest.raises(Permanent) as told:
            await refused
        assert told.value.code == "stale_run"
    assert (await node.until(WORKSPACE, RunState.RUNNING)).run == SECOND


async def test_a_newer_run_waits_for_the_end_of_the_one_before(node: Node) -> None:
    await node.up()
    with pytest.raises(Temporary) as told:
        await node.runs.start_run(WORKSPACE, node.request(2))
    assert told.value.code == "run_alive"
    assert 0 < told.value.delay_s < 10
    await node.until(WORKSPACE, RunState.ENDED)
    assert (await node.up(run=2)).run == SECOND


async def test_a_volume_is_not_deleted_under_a_run(node: Node) -> None:
    await node.up()
    with pytest.raises(Permanent) as told:
        await node.runs.delete_volume(WORKSPACE, FIRST)
    assert told.value.code == "run_alive"


async def test_after_deleting_nothing_is_kept_but_the_fence(node: Node) -> None:
    await node.up()
    await node.down()
    for _ in range(2):
        await node.runs.delete_volume(WORKSPACE, FIRST)
        assert await node.runs.runs() == ()
    await node.restart()
    for late in (1, 2):
        with pytest.raises(Permanent) as told:
            await node.runs.start_run(WORKSPACE, node.request(late))
        assert told.value.code == "stale_run"


async def test_a_run_goes_on_through_a_restart_of_the_agent(node: Node) -> None:
    await node.up()
    await node.run("sh", "-c", "sleep 1000 >/dev/null 2>&1 & echo $! >pid")
    await node.restart()
    facts = await node.until(WORKSPACE, RunState.RUNNING)
    assert facts.run == FIRST
    assert (await node.run("sh", "-c", "kill -0 $(cat pid)"))[0] == 0
    with pytest.raises(Permanent) as told:
        await node.runs.delete_volume(WORKSPACE, FIRST)
    assert told.value.code == "run_alive"


async def test_an_ended_run_is_known_and_fenced_after_a_restart_of_the_agent(node: Node) -> None:
    await node.up(run=2)
    await node.down(run=2)
    await node.restart()
    assert [(each.run, each.state) for each in await node.runs.runs()] == [(SECOND, RunState.ENDED)]
    with pytest.raises(Permanent) as told:
        await node.runs.start_run(WORKSPACE, node.request(1))
    assert told.value.code == "stale_run"


async def test_stop_ends_every_process_of_the_workspace(node: Node) -> None:
    await node.up()
    _, out, _ = await node.run("sh", "-c", "setsid sh -c 'cd /; sleep 1000' >/dev/null 2>&1 & echo $!")
    pid = int(out)
    assert node.isolated or alive(pid)  # isolated, the pid is the workspace's own
    await node.down()
    assert node.isolated or not alive(pid)


async def test_a_process_that_ignores_the_signal_is_killed_after_the_grace(node: Node) -> None:
    await node.up()
    _, out, _ = await node.run("sh", "-c", "trap '' TERM HUP; (while :; do sleep 0.1; done) >/dev/null 2>&1 & echo $!")
    pid = int(out)
    await node.down()
    assert node.isolated or not alive(pid)


async def test_the_first_process_gets_its_environment_and_prints_to_the_log(node: Node) -> None:
    await node.up(command=("sh", "-c", "echo hello $GREETED; echo oops >&2"), environment=(("GREETED", "world"),))
    async with asyncio.timeout(WITHIN_S):
        log = b""
        while b"oops" not in log:
            log = b"".join([chunk async for chunk in node.access.logs(WORKSPACE, FIRST)])
    assert b"hello world\n" in log


async def test_a_followed_log_ends_with_the_run(node: Node) -> None:
    await node.up(command=("sh", "-c", "echo begun; exec sleep 1000"))
    followed = node.access.logs(WORKSPACE, FIRST, follow=True)
    async with asyncio.timeout(WITHIN_S):
        assert await anext(followed) == b"begun\n"
        await node.runs.stop_run(WORKSPACE, FIRST)
        assert [chunk async for chunk in followed] == []


async def test_a_command_that_does_not_exist_fails_the_run_with_its_reason(node: Node) -> None:
    ended = await node.up(command=("no-such-command",))
    assert (ended.state, ended.code) == (RunState.ENDED, "command_not_found")
    assert ended.failure is not None
    assert "no-such-command" in ended.failure


async def test_an_image_that_is_not_there_fails_the_run_with_its_reason(node: Node) -> None:
    ended = await node.up(image="registry.invalid/no/such:image")
    code = "no_such_registry" if node.isolated else "no_such_image"
    assert (ended.state, ended.code) == (RunState.ENDED, code)


async def test_the_repository_is_there_when_the_run_runs(node: Node, repository: Repository) -> None:
    facts = await node.up(source=repository.source("v1"))
    assert facts.state is RunState.RUNNING
    assert (await node.run("cat", "README.md"))[1] == b"first\n"
    assert (await node.run("git", "rev-parse", "HEAD"))[1].decode().strip() == repository.first


async def test_a_repository_that_cannot_be_cloned_fails_the_run_with_its_reason(
    node: Node, repository: Repository
) -> None:
    ended = await node.up(source=repository.source("nowhere"))
    assert (ended.state, ended.code) == (RunState.ENDED, "no_such_ref")


async def test_a_local_repository_needs_leave(node: Node, repository: Repository) -> None:
    with pytest.raises(Permanent) as told:
        await node.runs.start_run(WORKSPACE, node.request(1, local_allowed=False, source=repository.source()))
    assert told.value.code == "local_only"


async def test_changes_are_told_as_they_come(node: Node) -> None:
    changes = node.runs.changes()
    following = asyncio.ensure_future(anext(changes))
    await asyncio.wait({following}, timeout=0.2)  # listening begins
    await node.runs.start_run(WORKSPACE, node.request(1))
    seen = []
    async with asyncio.timeout(WITHIN_S):
        facts = await following
        seen.append(facts.state)
        while facts.state is not RunState.RUNNING:
            facts = await anext(changes)
            seen.append(facts.state)
    assert seen[0] is RunState.STARTING
    assert facts.workspace == WORKSPACE
    await node.runs.stop_run(WORKSPACE, FIRST, force=True)
    async with asyncio.timeout(WITHIN_S):
        assert any([(await anext(changes)).state is RunState.ENDED for _ in range(2)])


async def test_changes_end_when_the_agent_stops(node: Node) -> None:
    changes = node.runs.changes()
    following = asyncio.ensure_future(anext(changes))
    await asyncio.wait({following}, timeout=0.2)  # listening begins
    await node.stop()
    with pytest.raises((StopAsyncIteration, Temporary)):
        await asyncio.wait_for(following, WITHIN_S)
    await node.start()


def alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"
