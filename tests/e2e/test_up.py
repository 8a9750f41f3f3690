"""`fairwater up` as its user meets it: started, used, killed in every way, stopped; and nothing left but data."""

from __future__ import annotations

import os
import pwd
import signal
import subprocess
from pathlib import Path

import pytest
from tests.e2e.conftest import Installation, free_port, until

pytestmark = pytest.mark.root


def traces(installation: Installation) -> list[str]:
    """What of this installation can be found on the machine beside its data."""
    found = [line for line in Path("/proc/mounts").read_text().splitlines() if str(installation.data_dir) in line]
    found += [
        str(backing)
        for backing in Path("/sys/block").glob("loop*/loop/backing_file")
        if str(installation.data_dir) in backing.read_text()
    ]
    for process in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if str(installation.data_dir).encode() in process.read_bytes():
                found.append(str(process))
        except (FileNotFoundError, ProcessLookupError):
            continue
    owners = list(Path("/run/fairwater").glob("*/owner"))
    found += [str(owner) for owner in owners if owner.read_text() == str(installation.data_dir)]
    return found


def numbers() -> frozenset[str]:
    """The folders of the agents of this machine."""
    return frozenset(path.name for path in Path("/run/fairwater").glob("[0-9]*"))


def test_a_workspace_from_up_to_ctrl_c(installation: Installation) -> None:
    before = numbers()
    installation.start(f"file://{installation.repository}")
    assert "workspace project is running" in installation.said()
    [workspace] = installation.json("ws", "list")
    assert (workspace["name"], workspace["phase"], workspace["class"]) == ("project", "running", "standard")
    assert installation.exec("project", "cat README; id -un; hostname") == f"hello\ndev\n{workspace['id']}\n"
    installation.exec("project", "echo edited > README; echo mine > ~/.mine")
    assert installation.run("ws", "stop", "project", "--wait").returncode == 0
    assert installation.run("ws", "start", "project", "--wait").returncode == 0
    assert installation.exec(workspace["id"][:6], "cat README ~/.mine") == "edited\nmine\n"
    assert installation.interrupt() == 0
    until(lambda: not traces(installation), lambda: "\n".join(traces(installation)), 10)
    assert numbers() <= before, "a number is given back with its folder"
    # Data stays: the next one finds it.
    installation.start()
    assert installation.json("ws", "show", "project")["phase"] == "stopped"
    assert installation.run("ws", "start", "project", "--wait").returncode == 0
    assert installation.exec("project", "cat README") == "edited\n"


def test_the_server_is_unprivileged_and_the_agent_its_own_process(installation: Installation) -> None:
    installation.start()
    server = Path(f"/proc/{installation.part('server')}/status").read_text()
    fields = dict(line.split(":\t", 1) for line in server.splitlines() if ":\t" in line)
    uid = pwd.getpwnam("fairwater").pw_uid
    assert {int(number) for number in fields["Uid"].split()} == {uid}
    assert int(fields["CapEff"], 16) == 0
    assert fields["Groups"].split() in ([], [str(pwd.getpwnam("fairwater").pw_gid)])
    assert Path(f"/proc/{installation.part('node')}").stat().st_uid == 0
    assert installation.part("node") != installation.part("server")


@pytest.mark.parametrize("parts", [("server",), ("node",), ("server", "node")], ids="+".join)
def test_killed_parts_come_back_and_the_workspace_never_noticed(
    installation: Installation, parts: tuple[str, ...]
) -> None:
    installation.start(f"file://{installation.repository}")
    installation.exec("project", "(sleep 1000 >/dev/null 2>&1 &) ; echo here > /tmp/only-in-this-run")
    old = {part: installation.part(part) for part in parts}
    for pid in old.values():
        os.kill(pid, signal.SIGKILL)

    def back() -> bool:
        done = installation.run("ws", "exec", "project", "--", "sh", "-c", "cat /tmp/only-in-this-run; pgrep -c sleep")
        return done.returncode == 0 and done.stdout == "here\n1\n"

    until(back, "the workspace was not reachable again", 30)
    assert all(installation.part(part) != pid for part, pid in old.items())
    assert installation.json("ws", "show", "project")["run"] == 1


def test_a_killed_supervisor_leaves_runs_that_the_next_one_adopts(installation: Installation) -> None:
    installation.start(f"file://{installation.repository}")
    installation.exec("project", "echo here > /tmp/only-in-this-run")
    assert installation.up is not None
    installation.up.kill()
    installation.up.wait()
    installation.start()
    assert installation.exec("project", "cat /tmp/only-in-this-run") == "here\n"


def test_a_second_up_on_the_data_directory_is_refused_and_harms_nothing(installation: Installation) -> None:
    installation.start(f"file://{installation.repository}")
    second = installation.run("up", "--listen", f"127.0.0.1:{free_port()}")
    assert second.returncode == 1
    assert str(installation.data_dir) in second.stderr
    assert installation.exec("project", "echo fine") == "fine\n"


def test_a_volume_copied_into_another_mount_namespace_does_not_keep_the_workspace_from_stopping(
    installation: Installation,
) -> None:
    """As any service of systemd's with a mount namespace of its own does: it once held volumes, and lost edits."""
    installation.start(f"file://{installation.repository}")
    installation.exec("project", "echo edited > README")
    holder = subprocess.Popen(["unshare", "--mount", "--propagation", "private", "sleep", "60"])
    try:
        assert installation.run("ws", "stop", "project", "--wait").returncode == 0
        assert installation.run("ws", "start", "project", "--wait").returncode == 0
        assert installation.exec("project", "cat README") == "edited\n"
    finally:
        holder.kill()
        holder.wait()


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("https://no-such-host.invalid/org/repo", "no host"),
        ("file://{origin}/nothing", "not a git repository"),
        ("file:///etc", "not below a folder listed"),
        ("file://{origin}/project#no-such-branch", "no branch, tag or commit"),
        ("https://user:secret@example.org/a/b", "must not carry a user name or password"),
        ("file://{origin}/project#--upload-pack=touch", "not the name of a branch"),
        ("ext::sh%20-c%20id", "does not begin with"),
    ],
)
def test_a_wrong_url_says_what_is_wrong_and_leaves_nothing(installation: Installation, url: str, words: str) -> None:
    origin = installation.repository.parent
    installation.start("--file-root", str(origin))
    done = installation.run("ws", "create", url.format(origin=origin), "--name", "wrong", "--wait")
    assert done.returncode in {1, 2}
    assert words in done.stderr.replace("\n", " ")
    assert "secret" not in done.stdout + installation.said()
    for workspace in installation.json("ws", "list"):
        assert workspace["phase"] == "failed"
        assert installation.run("ws", "delete", workspace["id"], "--yes", "--wait").returncode == 0
    images = installation.data_dir / "node/volumes/images"
    until(lambda: not list(images.iterdir()), "the volume was not deleted", 10)


def test_the_log_tells_what_cloning_and_the_first_process_said(installation: Installation) -> None:
    installation.start(f"file://{installation.repository}")
    log = installation.run("ws", "logs", "project").stdout
    assert "Cloning into" in log
    installation.run("ws", "stop", "project", "--wait")
    assert "Cloning into" in installation.run("ws", "logs", "project").stdout


def test_files_go_in_and_out(installation: Installation) -> None:
    installation.start(f"file://{installation.repository}")
    done = installation.run(
        "ws", "exec", "project", "--", "sh", "-c", "cat > in.bin; sha256sum < in.bin", stdin=bytes(range(256)) * 4096
    )
    digest = done.stdout.split()[0]
    local = installation.repository / "out.bin"
    assert installation.run("ws", "files", "get", "project", "/workspace/project/in.bin", str(local)).returncode == 0
    assert subprocess.run(["sha256sum", local], capture_output=True, text=True, check=True).stdout.split()[0] == digest
    assert installation.run("ws", "files", "put", "project", str(local), "/workspace/project/back.bin").returncode == 0
    assert installation.exec("project", "sha256sum < back.bin; stat -c %U back.bin").split()[::2] == [digest, "dev"]
    outside = installation.run("ws", "files", "get", "project", "/etc/shadow", str(local))
    assert outside.returncode == 1


def test_a_restored_backup_takes_the_place_of_the_database_and_ctrl_c_still_stops_all(
    installation: Installation, tmp_path: Path
) -> None:
    installation.start(f"file://{installation.repository}")
    kept = tmp_path / "backup"
    assert installation.run("admin", "backup", str(kept)).returncode == 0
    assert kept.stat().st_mode & 0o777 == 0o600
    created = installation.run("ws", "create", f"file://{installation.repository}", "--name", "later", "--wait")
    assert created.returncode == 0, created.stderr
    restored = installation.run("admin", "restore", str(kept), "--yes")
    assert restored.returncode == 0, restored.stderr
    assert [workspace["name"] for workspace in installation.json("ws", "list")] == ["project"]
    assert installation.exec("project", "cat README") == "hello\n", "what ran before the restore runs on"
    assert installation.interrupt() == 0
    assert "the database does not know" in installation.said()
    until(lambda: not traces(installation), lambda: "\n".join(traces(installation)), 10)
