"""Images that put something else where a sandbox's own folders and files must go: it comes up, or says why not."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.node.workspace.laboratory import wait_for
from tests.node.workspace.sandbox_laboratory import BUSYBOX, SandboxLab, busybox_layer, image_of, layer, user

from fairwater.domain.failure import Permanent

pytestmark = [
    pytest.mark.root,
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.skipif(not BUSYBOX.exists(), reason="needs busybox-static"),
]
APP = user("app", 1001)


Spoil = Callable[[Path], object]
"""Does something to an image's layer."""


def link(path: str, target: str) -> Spoil:
    return lambda root: (root / path.lstrip("/")).symlink_to(target)


def file(path: str) -> Spoil:
    return lambda root: (root / path.lstrip("/")).write_text("a file\n")


def pipe(path: str) -> Spoil:
    return lambda root: os.mkfifo(root / path.lstrip("/"))


def folder(path: str) -> Spoil:
    return lambda root: (root / path.lstrip("/")).mkdir(parents=True)


def moved(path: str) -> Spoil:
    return lambda root: (root / path.lstrip("/")).rename(root / f"{path.lstrip('/')}.moved")


def first(*steps: Spoil) -> Spoil:
    return lambda root: [step(root) for step in steps]


MENDED = {
    "run-to-etc": link("/run", "/etc"),
    "run-to-the-machine": link("/run", "../../../../../../../run"),
    "run-in-a-circle": link("/run", "/run"),
    "run-is-a-file": file("/run"),
    "workspace-to-proc": link("/workspace", "/proc"),
    "workspace-to-the-machine": link("/workspace", "../../../../../../var/tmp"),
    "workspace-to-home": link("/workspace", "/home/app"),
    "workspace-is-a-file": file("/workspace"),
    "workspace-is-a-pipe": pipe("/workspace"),
    "workspace-to-nowhere": link("/workspace", "/not/there"),
    "proc-to-tmp": link("/proc", "/tmp"),
    "proc-is-a-file": file("/proc"),
    "sys-to-etc": link("/sys", "etc"),
    "dev-to-usr": link("/dev", "/usr/dev"),
    "tmp-to-var": link("/tmp", "/var/tmp"),
    "tmp-to-root": link("/tmp", "/"),
    "resolv-conf-to-run": link("/etc/resolv.conf", "../run/systemd/resolve/stub-resolv.conf"),
    "resolv-conf-to-passwd": link("/etc/resolv.conf", "passwd"),
    "hosts-to-the-machine": link("/etc/hosts", "../../../../../../etc/shadow"),
    "hosts-is-a-pipe": pipe("/etc/hosts"),
    "hostname-is-an-empty-folder": folder("/etc/hostname"),
    "home-is-a-file": first(folder("/home"), file("/home/app")),
    "home-to-workspace": first(folder("/home"), link("/home/app", "/workspace")),
    "homes-are-elsewhere": first(folder("/var/home"), link("/home", "var/home")),
}
REFUSED = {
    "etc-is-a-file": first(moved("/etc"), file("/etc")),
    "etc-in-a-circle": first(moved("/etc"), link("/etc", "etc")),
    "hosts-is-a-folder-with-something-in-it": folder("/etc/hosts/deep"),
    "homes-are-a-file": file("/home"),
    "homes-are-nowhere": link("/home", "/not/there"),
}


def made(place: Path, spoil: Spoil) -> Path:
    root = busybox_layer(place, APP)
    spoil(root)
    return root


@pytest.mark.parametrize("name", MENDED)
async def test_what_an_image_puts_in_the_way_gives_way(boxes: SandboxLab, data_dir: Path, name: str) -> None:
    root = made(data_dir / "hostile" / name, MENDED[name])
    sandbox = await boxes.start(image_of([root], user=APP, users=(APP,)))
    checks = (
        "echo w > /workspace/w && echo h > /home/app/h && echo t > /tmp/t && test ! -e /workspace/h && "
        "cat /proc/self/comm >/dev/null && test -c /dev/null && test -d /sys/class && test ! -e /run/passwd && "
        "grep -q nameserver /etc/resolv.conf && grep -q localhost /etc/hosts && cat /etc/hostname && "
        "grep -q app /etc/passwd && id -un"
    )
    status, words = await boxes.sh(sandbox, checks)
    assert (status, words) == (0, f"{sandbox.tenant.workspace}\napp\n")
    volume = (await boxes.volumes.find(sandbox.tenant.workspace)).root
    assert volume is not None
    assert (volume / "workspace/w").read_text() == "w\n"
    assert (volume / "home/h").read_text() == "h\n"


@pytest.mark.parametrize("name", REFUSED)
async def test_an_image_that_leaves_no_place_is_refused_with_the_path(
    boxes: SandboxLab, data_dir: Path, name: str
) -> None:
    root = made(data_dir / "hostile" / name, REFUSED[name])
    with pytest.raises(Permanent, match=r"/etc|/home/app") as refused:
        await boxes.start(image_of([root], user=APP, users=(APP,)))
    assert refused.value.code == "bad_image"


async def test_a_home_directory_that_leads_into_another_file_system_is_refused(
    boxes: SandboxLab, data_dir: Path
) -> None:
    """The image's own user has another; a home chosen later is looked for when /proc is there."""
    root = busybox_layer(data_dir / "hostile/late", APP)
    (root / "late").symlink_to("/proc/1")
    with pytest.raises(Permanent) as refused:
        await boxes.start(image_of([root], user=APP), user=user("late", 1002, home="/late/root"))
    assert refused.value.code == "bad_image"


async def test_nothing_of_the_machine_is_touched_by_what_gives_way(boxes: SandboxLab, data_dir: Path) -> None:
    aim = data_dir / "hostile-aim"
    aim.mkdir()
    (aim / "resolv.conf").write_text("the machine's own\n")
    root = layer(data_dir / "hostile/aim")
    (root / "etc").symlink_to(aim)
    (root / "workspace").symlink_to(aim)
    with pytest.raises(Permanent):
        await boxes.start(image_of([root]))
    assert [path.name for path in aim.iterdir()] == ["resolv.conf"]
    assert (aim / "resolv.conf").read_text() == "the machine's own\n"
    assert (root / "workspace").is_symlink(), "the layer itself stays as it is"


async def test_an_image_that_cannot_come_up_leaves_nothing_behind(boxes: SandboxLab, data_dir: Path) -> None:
    root = made(data_dir / "hostile/left", REFUSED["etc-in-a-circle"])
    with pytest.raises(Permanent):
        await boxes.start(image_of([root]))

    async def cleared() -> bool:
        used = {sandbox.id.split("-")[0] for sandbox in boxes.sandboxes.claimed()}
        used |= {str(slot.number) for slot in boxes.sandboxes._pool.parked}
        return {path.name for path in boxes.slots_folder.iterdir()} == used

    await wait_for(cleared, "the slot to be cleared")
