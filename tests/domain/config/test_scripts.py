"""The scripts of tasks, really run: by dash and by busybox, with bash there and without, and in a terminal."""

from __future__ import annotations

import json
import os
import pty
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest
from tests.domain.config.reading import devcontainer, gitpod

from fairwater.domain.workspaces.setup import Task, Wanted

pytestmark = pytest.mark.long

_TOOLS = ("mkdir", "cat", "ls", "sleep", "env", "sh", "rm", "touch", "printf")


@dataclass(frozen=True)
class Shell:
    """How a script is started, what is found on the way, and where `/workspace` is."""

    command: tuple[str, ...]
    path: Path
    workspace: Path

    def run(self, task: Task, **variables: str) -> subprocess.CompletedProcess[str]:
        script = task.script.replace("/workspace", str(self.workspace))
        environment = {"PATH": str(self.path), "HOME": str(self.workspace), **dict(task.environment), **variables}
        return subprocess.run(
            [*self.command, "-c", script],
            env=environment, cwd=self.workspace, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=30,
        )  # fmt: skip

    def lines(self, task: Task, **variables: str) -> list[str]:
        return [line for line in self.run(task, **variables).stdout.splitlines() if not line.startswith("---")]

    def log(self) -> list[str]:
        return (self.workspace / "shop" / "log").read_text().split()

    def marker(self, task: Task) -> Path:
        assert task.marker is not None
        return self.workspace / Path(task.marker).relative_to("/workspace")


@pytest.fixture(params=["dash", "busybox", "dash, then bash", "busybox, then bash"])
def shell(request: pytest.FixtureRequest, tmp_path: Path) -> Shell:
    name, _, bash = request.param.partition(", then ")
    tools = tmp_path / "bin"
    tools.mkdir()
    for tool in (*_TOOLS, *([bash] if bash else [])):
        place = shutil.which(tool)
        assert place
        (tools / tool).symlink_to(place)
    program = shutil.which(name)
    if program is None:
        pytest.skip(f"{name} is not installed")
    if name == "busybox":
        (tools / "sh").unlink()
        (tools / "sh").symlink_to(program)
    workspace = tmp_path / "workspace"
    (workspace / "shop").mkdir(parents=True)
    return Shell((program, "sh") if name == "busybox" else (program,), tools, workspace)


def one_task(wanted: Wanted) -> Task:
    (task,) = wanted.tasks
    return task


def of_devcontainer(**properties: object) -> Task:
    return one_task(devcontainer(json.dumps({"image": "x", **properties})))


def of_stages(**stages: str) -> Task:
    return one_task(gitpod(f"tasks: [{json.dumps(stages)}]"))


def test_stages_run_in_order_in_the_repository_and_init_once_only(shell: Shell) -> None:
    task = of_stages(command="echo command >>log", init="echo init >>log", before="echo before >>log")
    assert not shell.marker(task).exists()
    assert [shell.run(task).returncode for _ in range(3)] == [0, 0, 0]
    assert shell.log() == ["before", "init", "command", "before", "command", "before", "command"]
    assert shell.marker(task).is_file()


def test_exports_functions_and_folders_carry_over(shell: Shell) -> None:
    task = of_stages(
        before="export A='x y'; f() { echo f; }; mkdir d; cd d", init="B=$A-b", command='echo "$B"; f; ls ..'
    )
    assert shell.lines(task) == ["x y-b", "f", "d"]


@pytest.mark.parametrize(
    "failing", ["false", "(exit 3)", "if then", "exit 3", "nosuchcommand", "set -e; false; echo on"]
)
@pytest.mark.parametrize("stage", ["before", "init"])
def test_the_first_failure_stops_the_task_and_init_is_tried_again(shell: Shell, stage: str, failing: str) -> None:
    stages = {"before": "echo before >>log", "init": "echo init >>log", "command": "echo command >>log"}
    stages[stage] += f"\n{failing}"
    task = of_stages(**stages)
    assert [shell.run(task).returncode == 0 for _ in range(2)] == [False, False]
    run = ["before"] if stage == "before" else ["before", "init"]
    assert shell.log() == run * 2
    assert not shell.marker(task).exists()


def test_the_exit_status_is_the_commands_and_is_said(shell: Shell) -> None:
    done = shell.run(of_stages(command="(exit 41)"))
    assert (done.returncode, done.stderr) == (41, "--- command failed with exit status 41\n")
    assert shell.run(of_stages(command="exit 42")).returncode == 42


def test_the_stages_have_headings(shell: Shell) -> None:
    task = of_stages(before=":", init="echo x", command=":")
    assert shell.run(task).stdout.splitlines() == ["--- before", "--- init", "x", "--- command"]
    assert "--- init: went through before" in shell.run(task).stdout


@pytest.mark.parametrize(
    "text",
    ["}", ")", "'", '"', "`", "$(", "cat <<EOF\nx", "\\", "# comment", "exec 3>&1 }", "fi", "done", "-n", "; ;", "${",
     "$((", "esac\n}", "' ; touch escaped; '", "*/", "\\'"],
)  # fmt: skip
def test_what_is_not_closed_cannot_reach_out_of_its_stage(shell: Shell, text: str) -> None:
    shell.run(of_stages(init=text, command="touch command"))
    alone = subprocess.run(
        [*shell.command, "-c", f" {text}"], cwd=shell.workspace, env={"PATH": str(shell.path)}, capture_output=True
    )
    made = {path.name for path in (shell.workspace / "shop").iterdir()}
    assert made <= {"command"}
    if not (shell.path / "bash").exists():  # bash forgives other things than dash does
        assert ("command" in made) == (alone.returncode == 0)


def test_a_command_may_hold_anything_that_a_shell_takes(shell: Shell) -> None:
    command = "cat <<'EOF'\n\\ \" ' $x `y` é\nEOF\nprintf '%s\\n' \"it's\" \\\n  two # end"
    assert shell.lines(of_stages(command=command)) == ["\\ \" ' $x `y` é", "it's", "two"]


def test_bash_runs_it_where_there_is_one(shell: Shell) -> None:
    bash = (shell.path / "bash").exists()
    assert shell.lines(of_stages(command='echo "${BASH_VERSION:+bash}"')) == (["bash"] if bash else [""])
    if bash:
        assert shell.lines(of_stages(init="a=(1 2)", command='[[ ${#a[@]} == 2 ]] && echo "${a[1]}"')) == ["2"]


def test_nothing_of_the_glue_is_seen_by_what_a_person_runs(shell: Shell) -> None:
    seen = shell.run(of_stages(command='echo "$#"; env'), SHLVL="1").stdout
    assert "_fw_" not in seen.replace("_=", "")
    assert "\n0\n" in seen


def test_tasks_that_are_alike_have_a_marker_each_and_a_change_runs_init_again() -> None:
    first, second = gitpod("tasks: [{init: make}, {init: make}]").tasks
    (changed,) = gitpod("tasks: [{init: make all}]").tasks
    (same,) = gitpod("tasks: [{init: make, command: other}]").tasks
    assert len({first.marker, second.marker, changed.marker}) == 3
    assert same.marker == first.marker


def test_a_life_cycle_runs_in_order_and_what_creates_once_only(shell: Shell) -> None:
    task = of_devcontainer(
        postAttachCommand="echo attach >>log", postStartCommand="echo start >>log", postCreateCommand="echo post >>log",
        updateContentCommand="echo update >>log", onCreateCommand="echo create >>log",
    )  # fmt: skip
    assert [shell.run(task).returncode for _ in range(2)] == [0, 0]
    assert shell.log() == ["create", "update", "post", "start", "attach", "start", "attach"]


def test_a_stage_that_went_through_is_not_run_again_for_a_later_one_that_failed(shell: Shell) -> None:
    task = of_devcontainer(onCreateCommand="echo create >>log", postCreateCommand="echo post >>log; test -e ready")
    assert shell.run(task).returncode == 1
    assert not shell.marker(task).exists()
    (shell.workspace / "shop" / "ready").touch()
    assert shell.run(task).returncode == 0
    assert shell.log() == ["create", "post", "post"]
    assert shell.marker(task).exists()


def test_nothing_carries_over_between_the_life_cycles_commands(shell: Shell) -> None:
    task = of_devcontainer(onCreateCommand="A=1; export A; cd /; exit 0", postStartCommand='echo "[$A]"; ls')
    (shell.workspace / "shop" / "here").touch()
    assert shell.lines(task) == ["[]", "here"]


def test_the_words_of_a_list_are_one_command(shell: Shell) -> None:
    words = ["printf", "<%s>\n", "a b", "it's", "$HOME", "`x`", "*", "", "-n", "\\", 'q"', "é"]
    run = shell.run(of_devcontainer(postStartCommand=words))
    assert run.stdout.splitlines()[1:] == [f"<{word}>" for word in words[2:]]


def test_variables_of_the_container_are_put_in(shell: Shell) -> None:
    task = of_devcontainer(
        postCreateCommand="echo ${containerEnv:A} ${containerEnv:NO:none} ${containerWorkspaceFolderBasename}",
        postStartCommand=["printf", "<%s>\n", "a ${containerEnv:A} $A", "${containerEnv:NO:x y}"],
    )
    assert shell.lines(task, A="1 2") == ["1 2 none shop", "<a 1 2 $A>", "<x y>"]


def test_a_table_runs_side_by_side_and_all_must_succeed(shell: Shell) -> None:
    def meet(mine: str, other: str) -> str:
        wait = f"while [ ! -e {other} ] && [ $i -lt 200 ]; do sleep 0.05; i=$((i+1)); done"
        return f"i=0; touch {mine}; {wait}; [ -e {other} ]"

    task = of_devcontainer(
        postCreateCommand={"one": meet("a", "b"), "two": meet("b", "a")},
        postStartCommand={"good": "echo good >>log", "bad": ["sh", "-c", "exit 9"]},
        postAttachCommand="echo never >>log",
    )  # fmt: skip
    done = shell.run(task)
    assert (done.returncode, done.stderr) == (9, "--- postStartCommand failed with exit status 9\n")
    assert "--- postCreateCommand: one, two" in done.stdout
    assert shell.marker(task).exists()
    assert shell.log() == ["good"]


def _in_terminal(command: list[str], environment: dict[str, str], folder: Path) -> tuple[int, str]:
    child, master = pty.fork()
    if child == 0:
        os.chdir(folder)
        os.execvpe(command[0], command, environment)
    shown = b""
    try:
        while chunk := os.read(master, 4096):
            shown += chunk
    except OSError:
        pass  # Linux's way of saying that the other end has gone
    finally:
        os.close(master)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), shown.decode().replace("\r\n", "\n")


def test_in_a_terminal_the_persons_bashrc_counts_but_its_aliases_do_not_ask(tmp_path: Path) -> None:
    (tmp_path / "shop").mkdir()
    (tmp_path / ".bashrc").write_text("export TOOL=found\nalias touch='false'\ntool() { echo tool; }\n")
    task = one_task(
        gitpod(
            "tasks: [{before: 'touch x', init: 'echo $TOOL; tool; sleep 0.01 & wait', command: '[ -t 0 ] && exit 5'}]"
        )
    )
    script = task.script.replace("/workspace", str(tmp_path))
    environment = {"PATH": os.defpath, "HOME": str(tmp_path), "TERM": "dumb"}
    status, shown = _in_terminal(["sh", "-c", script], environment, tmp_path)
    assert status == 5
    assert "--- before\n--- init\nfound\ntool\n" in shown
    assert "--- command\n" in shown
    assert (tmp_path / "shop" / "x").exists()


def test_in_a_terminal_commands_side_by_side_end_and_say_nothing_of_jobs(tmp_path: Path) -> None:
    (tmp_path / "shop").mkdir()
    task = of_devcontainer(postCreateCommand={"a": "cat; echo a", "b": "cat; echo b"})
    script = task.script.replace("/workspace", str(tmp_path))
    environment = {"PATH": os.defpath, "HOME": str(tmp_path), "TERM": "dumb"}
    status, shown = _in_terminal(["sh", "-c", script], environment, tmp_path)
    assert status == 0
    assert sorted(shown.splitlines()) == ["--- postCreateCommand: a, b", "a", "b"]
