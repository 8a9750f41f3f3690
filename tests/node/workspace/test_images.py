"""Sandboxes of images of all kinds, on this machine's kernel."""

from __future__ import annotations

import asyncio
import os
import shutil
import stat
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from tests.node.workspace.laboratory import wait_for
from tests.node.workspace.sandbox_laboratory import BUSYBOX, SandboxLab, busybox_layer, image_of, layer, user

from fairwater.domain.failure import Permanent, Temporary
from fairwater.domain.workspaces.setup import Task
from fairwater.node.files import VolumeFiles
from fairwater.node.root import LAYERS_MAX
from fairwater.ports.images import ROOT, ImageRoot, ImageUser
from fairwater.ports.sandboxes import Sandbox

pytestmark = [
    pytest.mark.root,
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.skipif(not BUSYBOX.exists(), reason="needs busybox-static"),
]
APP = user("app", 33333, groups=(44, 55))
DEV = user("dev", 1000)
WWW = user("www", 33, 1000, "/var/www")


@pytest.fixture(scope="module")
def image(data_dir: Path) -> ImageRoot:
    """A shell and little else, for the user 33333."""
    below = busybox_layer(data_dir / "made/basic", APP, DEV, WWW)
    return image_of(
        [below],
        user=APP,
        users=(ROOT, APP, DEV, WWW),
        environment=(("PATH", "/opt/bin:/bin"), ("FROM", "image"), ("HOME", "/of/the/image")),
        working_directory="/srv/app",
    )


async def root_of(boxes: SandboxLab, sandbox: Sandbox) -> Path:
    root = (await boxes.volumes.find(sandbox.tenant.workspace)).root
    assert root is not None
    return root


def owner(path: Path) -> tuple[int, int]:
    info = path.stat()
    return info.st_uid, info.st_gid


# --- users ------------------------------------------------------------------------------------------------------------


async def test_commands_run_as_the_image_s_user_with_its_groups(boxes: SandboxLab, image: ImageRoot) -> None:
    sandbox = await boxes.start(image)
    assert await boxes.sh(sandbox, "id -u; id -g; id -G") == (0, "33333\n33333\n33333 44 55\n")


@pytest.mark.parametrize(
    "chosen",
    [APP, DEV, WWW, ROOT, user("nobody-knows", 45678), user("shared", 1000, 0), user("swapped", 0, 1000)],
    ids=lambda known: f"{known.uid}:{known.gid}",
)
async def test_on_the_volume_files_are_the_person_s_whoever_the_image_s_user_is(
    boxes: SandboxLab, image: ImageRoot, chosen: ImageUser
) -> None:
    sandbox = await boxes.start(image, user=chosen)
    root = await root_of(boxes, sandbox)
    await VolumeFiles(root).write_file("/workspace/from-outside", _chunks(b"hello\n"))
    status, words = await boxes.sh(
        sandbox, "cat from-outside && echo more >>from-outside && touch mine && stat -c %u:%g from-outside mine"
    )
    assert (status, words) == (0, "hello\n" + f"{chosen.uid}:{chosen.gid}\n" * 2)
    assert owner(root / "workspace/mine") == owner(root / "workspace/from-outside") == (1000, 1000)


async def test_files_of_others_are_others_on_the_volume_too_and_no_two_of_them_are_mixed_up(
    boxes: SandboxLab, image: ImageRoot
) -> None:
    sandbox = await boxes.start(image)
    root = await root_of(boxes, sandbox)
    ids = "0 33 999 1000 1001 33332 33333 33334 65535"
    made = f"cd /workspace; for u in {ids}; do touch $u; chown $u:$u $u; done"
    assert (await boxes.sh(sandbox, made, user="root"))[0] == 0
    on_disk = {path.name: owner(path) for path in (root / "workspace").iterdir()}
    exchanged = {"33333": 1000, "1000": 33333}
    assert on_disk == {name: (exchanged.get(name, int(name)),) * 2 for name in on_disk}
    assert len(on_disk) == 9
    _, seen = await boxes.sh(sandbox, "cd /workspace; for f in *; do stat -c %n:%u:%g $f; done")
    assert sorted(seen.split()) == sorted(f"{name}:{name}:{name}" for name in on_disk)


async def test_what_was_written_in_one_image_belongs_to_the_user_of_the_next(
    boxes: SandboxLab, image: ImageRoot
) -> None:
    first = await boxes.start(image)
    await boxes.sh(first, "echo from the first > /workspace/kept; echo home > ~/kept")
    await boxes.sandboxes.remove(first)
    host = await boxes.images.prepare("host")
    second = await boxes.start(host, workspace=first.tenant.workspace, run=2)
    assert await boxes.sh(second, "stat -c %U /workspace/kept; cat ~/kept; rm /workspace/kept") == (0, "dev\nhome\n")


async def test_root_means_root_inside_and_its_home_is_its_own(boxes: SandboxLab, image: ImageRoot) -> None:
    sandbox = await boxes.start(image)
    assert await boxes.sh(sandbox, "id -u; echo $HOME $USER", user="root") == (0, "0\n/root root\n")
    uid_map = (await boxes.sh(sandbox, "cat /proc/self/uid_map", user="root"))[1].split()
    assert int(uid_map[1]) >= 0x7000_0000


async def test_root_as_the_image_s_user_has_the_volume_s_home(boxes: SandboxLab, image: ImageRoot) -> None:
    sandbox = await boxes.start(image, user=ROOT)
    assert await boxes.sh(sandbox, "echo kept > ~/kept; pwd; echo $HOME; id -u") == (0, "/workspace\n/root\n0\n")
    assert (await root_of(boxes, sandbox) / "home/kept").read_text() == "kept\n"


@pytest.mark.parametrize(
    ("home", "seen"),
    [("/var/www", "/var/www"), ("/", "/home/app"), ("/proc/1", "/home/app"), ("/workspace", "/home/app"),
     ("relative", "/home/app"), ("/a/../etc", "/home/app"), ("/usr", "/home/app"), ("/srv//x/./y/", "/srv/x/y")],
)  # fmt: skip
async def test_the_home_directory_is_where_the_image_has_it_unless_nothing_can_be_there(
    boxes: SandboxLab, image: ImageRoot, home: str, seen: str
) -> None:
    sandbox = await boxes.start(image, user=user("app", 33333, home=home))
    assert await boxes.sh(sandbox, "echo kept > ~/kept; echo $HOME") == (0, f"{seen}\n")
    assert (await root_of(boxes, sandbox) / "home/kept").exists()


async def test_a_user_beyond_the_sandbox_s_ids_is_refused(boxes: SandboxLab, image: ImageRoot) -> None:
    far = user("openshift", 1_000_620_000)
    with pytest.raises(Permanent) as refused:
        await boxes.start(image, user=far)
    assert refused.value.code == "bad_user"
    with pytest.raises(Permanent) as refused:
        await boxes.start(image_of([image.layers[0]], digest="sha256:far", user=far))
    assert refused.value.code == "bad_user"


# --- environment ------------------------------------------------------------------------------------------------------


async def test_later_variables_win_and_what_is_for_commands_is_not_the_first_process_s(
    boxes: SandboxLab, image: ImageRoot
) -> None:
    workspace, root = await boxes.volume()
    sandbox = await boxes.start(
        image,
        workspace=workspace,
        environment={"FROM": "admission", "BOTH": "all"},
        remote_environment={"BOTH": "commands", "ONLY": "commands"},
    )
    _, words = await boxes.sh(sandbox, "echo $PATH $HOME $USER $LOGNAME $SHELL $FROM $BOTH $ONLY")
    assert words == "/opt/bin:/bin /home/app app app /bin/sh admission commands commands\n"
    again = await boxes.sandboxes.claim(sandbox.tenant, image)
    assert again.id == sandbox.id
    await boxes.sandboxes.remove(sandbox)
    sandbox = await boxes.start_with(
        image, workspace, ("sh", "-c", "echo [$BOTH] [$ONLY]; pwd"), cwd="/srv/app", remote_environment={"ONLY": "x"}
    )

    async def said() -> str:
        return (root / "state/run-1.log").read_text()

    assert "[] []\n/srv/app\n" in await wait_for(said, "the first process to say it")


async def test_an_image_without_a_path_gets_the_usual_one(boxes: SandboxLab, image: ImageRoot) -> None:
    sandbox = await boxes.start(image_of(image.layers, digest="sha256:no-path"))
    assert (await boxes.sh(sandbox, "echo $PATH"))[1].startswith("/usr/local/sbin:")


# --- kinds of images --------------------------------------------------------------------------------------------------


async def test_an_image_without_a_shell_runs_its_programs_and_says_why_it_runs_no_tasks(
    boxes: SandboxLab, data_dir: Path
) -> None:
    program = layer(data_dir / "made/distroless")
    (program / "app").mkdir()
    shutil.copy(BUSYBOX, program / "app/echo")
    sandbox = await boxes.start(image_of([program], user=user("nonroot", 65532)))
    assert await boxes.run(sandbox, "/app/echo", "works") == (0, "works\n")
    with pytest.raises(Permanent) as refused:
        await boxes.run(sandbox, "sh", "-c", "true")
    assert refused.value.code == "command_not_found"
    root = await root_of(boxes, sandbox)
    with pytest.raises(Permanent) as refused:
        await boxes.sandboxes.start_task(sandbox, Task(0, "build", "true"), root / "state/log", root / "state/status")
    assert refused.value.code == "no_shell"


async def test_tasks_run_with_the_environment_of_commands_and_leave_output_and_status(
    boxes: SandboxLab, image: ImageRoot
) -> None:
    sandbox = await boxes.start(image, remote_environment={"ONLY": "commands"})
    root = await root_of(boxes, sandbox)
    task = Task(0, "build", "echo $ONLY $OWN; id -u; touch made; exit 3", (("OWN", "task"),))
    log, status = root / "state/t.log", root / "state/t.status"
    for _ in range(2):
        await boxes.sandboxes.start_task(sandbox, task, log, status)

    async def ended() -> str:
        return status.read_text()

    assert await wait_for(ended, "the task to end") == "3\n"
    assert log.read_text().split() == ["commands", "task", "33333"]
    assert owner(root / "workspace/made") == (1000, 1000)


async def test_an_image_that_is_nothing_but_an_empty_layer_comes_up(boxes: SandboxLab, data_dir: Path) -> None:
    sandbox = await boxes.start(image_of([layer(data_dir / "made/empty")]))
    with pytest.raises(Permanent) as refused:
        await boxes.run(sandbox, "anything")
    assert refused.value.code == "command_not_found"


async def test_layers_hide_what_is_below_them(boxes: SandboxLab, data_dir: Path) -> None:
    below = busybox_layer(data_dir / "made/below")
    for name in ("gone/file", "kept/file", "opaque/below"):
        (below / name).parent.mkdir()
        (below / name).write_text("below\n")
    above = layer(data_dir / "made/above")
    (above / "kept").mkdir()
    (above / "kept/file").write_text("above\n")
    os.mknod(above / "gone", stat.S_IFCHR, os.makedev(0, 0))
    (above / "opaque").mkdir()
    (above / "opaque/above").write_text("above\n")
    os.setxattr(above / "opaque", "user.overlay.opaque", b"y")
    sandbox = await boxes.start(image_of([above, below], user_xattrs=True))
    assert await boxes.sh(sandbox, "cat /kept/file; test -e /gone || echo gone; ls /opaque") == (
        0,
        "above\ngone\nabove\n",
    )
    changes = "rm -r /kept && mkdir /kept && ls /kept && rm -r /opaque && mkdir /opaque && ls /opaque && echo x > /gone"
    assert await boxes.sh(sandbox, changes, user="root") == (0, "")


@pytest.mark.parametrize("count", [2, 128, LAYERS_MAX])
async def test_an_image_may_have_very_many_layers(boxes: SandboxLab, data_dir: Path, count: int) -> None:
    layers = [busybox_layer(data_dir / f"made/many-{count}" / ("deep-" * 20 + "0"))]
    for number in range(1, count):
        layers.insert(0, layer(data_dir / f"made/many-{count}" / ("deep-" * 20 + str(number))))
        (layers[0] / f"file-{number}").write_text(f"{number}\n")
        (layers[0] / "last").write_text(f"{number}\n")
    sandbox = await boxes.start(image_of(layers))
    assert await boxes.sh(sandbox, f"cat /last; cat /file-1; cat /file-{count - 1}") == (
        0,
        f"{count - 1}\n1\n{count - 1}\n",
    )
    mounts = Path("/proc/self/mountinfo").read_text()
    assert f"slots/{sandbox.id.split('-')[0]}/layers" not in mounts, "the layers' own mounts are not kept"


async def test_an_image_with_more_layers_than_can_be_merged_is_refused(boxes: SandboxLab, data_dir: Path) -> None:
    one = layer(data_dir / "made/again")
    with pytest.raises(Permanent, match="fewer") as refused:
        await boxes.start(image_of([one] * (LAYERS_MAX + 1)))
    assert refused.value.code == "bad_image"


async def test_an_image_that_is_gone_from_the_disk_is_said_to_be_gone(boxes: SandboxLab, data_dir: Path) -> None:
    with pytest.raises(Temporary) as failed:
        await boxes.start(image_of([data_dir / "made/never"]))
    assert failed.value.code == "image_missing"


async def test_set_user_id_programs_and_devices_of_an_image_give_nothing(boxes: SandboxLab, data_dir: Path) -> None:
    below = busybox_layer(data_dir / "made/setuid", APP)
    shutil.copy(below / "bin/busybox", below / "bin/busybox-suid")  # by this name busybox still takes a command
    (below / "bin/busybox-suid").chmod(0o4755)
    os.mknod(below / "disk", stat.S_IFBLK | 0o666, os.makedev(254, 0))
    sandbox = await boxes.start(image_of([below], user=APP))
    assert (await boxes.run(sandbox, "/bin/busybox-suid", "id", "-u"))[1] == "33333\n"
    assert await boxes.sh(sandbox, "cat /disk", user="root") == (1, "cat: can't open '/disk': Permission denied\n")


async def test_the_layers_stay_as_they_are(boxes: SandboxLab, image: ImageRoot) -> None:
    before = described(image.layers[0])
    sandbox = await boxes.start(image)
    await boxes.sh(sandbox, "rm -r /bin/ls /etc; echo x > /bin/cat; chown 7:7 /bin/busybox", user="root")
    assert described(image.layers[0]) == before


def described(folder: Path) -> dict[str, tuple[int, ...]]:
    """Everything of each file but when it was last read."""
    infos = {str(path): path.lstat() for path in (folder, *folder.rglob("*"))}
    return {name: (i.st_mode, i.st_uid, i.st_gid, i.st_size, i.st_mtime_ns, i.st_ctime_ns) for name, i in infos.items()}


async def test_a_helper_has_the_machine_s_programs_whatever_the_image(boxes: SandboxLab, image: ImageRoot) -> None:
    sandbox = await boxes.start(image, role="content")
    assert (await boxes.sh(sandbox, "command -v git python3 >/dev/null; id -un"))[1] == "dev\n"


async def test_the_service_s_folder_is_seen_and_cannot_be_written_to(boxes: SandboxLab, image: ImageRoot) -> None:
    sandbox = await boxes.start(image)
    folder = boxes.slots_folder / sandbox.id.split("-")[0] / "service"
    (folder / "greeting").write_text("hello\n")
    assert await boxes.sh(sandbox, "cat /run/fairwater/service/greeting") == (0, "hello\n")
    assert (await boxes.sh(sandbox, "touch /run/fairwater/service/x", user="root"))[0] != 0
    assert (await boxes.sh(sandbox, "test -x /run/fairwater/git-credential-fairwater", user="workspace"))[0] == 0


async def test_many_commands_at_once_see_the_same_user(boxes: SandboxLab, image: ImageRoot) -> None:
    sandbox = await boxes.start(image)
    answers = await asyncio.gather(*(boxes.sh(sandbox, "id -u") for _ in range(10)))
    assert set(answers) == {(0, "33333\n")}


async def _chunks(data: bytes) -> AsyncIterator[bytes]:
    yield data
