"""Looking into an image holds on to nothing but that image."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from tests.node.images.laboratory import a_folder

from fairwater.domain.ids import WorkspaceId
from fairwater.domain.units import MIB, Bytes
from fairwater.domain.workspaces.run import VolumeState
from fairwater.node.images.view import merged, opened_in_image, read_in
from fairwater.node.volumes import BtrfsVolumes
from fairwater.ports.images import ImageRoot

pytestmark = pytest.mark.root

WORKSPACE = WorkspaceId("beside0view00")
QUOTA = Bytes(256 * MIB)


@contextmanager
def two_layers(folder: Path) -> Iterator[tuple[Path, Path]]:
    """The upper and the lower of an image with a file in /etc, and a home below a link."""
    upper, lower = folder / "upper", folder / "lower"
    for layer, name in ((upper, "new"), (lower, "old")):
        (layer / "etc").mkdir(parents=True)
        (layer / "etc" / name).write_text(name)
    (lower / "usr/home/app").mkdir(parents=True)
    (upper / "home").symlink_to("/usr/../usr/home")
    yield upper, lower


async def test_a_volume_is_released_while_an_image_is_looked_into() -> None:
    with a_folder() as folder, two_layers(folder) as layers:
        volumes = BtrfsVolumes(folder / "volumes")
        volumes.prepare()
        await volumes.create(WORKSPACE, QUOTA)
        await volumes.attach(WORKSPACE, QUOTA)
        with merged(layers, user_xattrs=True) as root:
            await volumes.detach(WORKSPACE)
            assert (await volumes.find(WORKSPACE)).state is VolumeState.DETACHED
            assert read_in(root, "/etc/new", 10) == b"new"
            assert read_in(root, "/etc/old", 10) == b"old"
        await volumes.delete(WORKSPACE)


def test_links_are_followed_inside_an_image_and_never_out_of_it() -> None:
    with a_folder() as folder, two_layers(folder) as layers:
        image = ImageRoot("app:1", layers)
        with opened_in_image(image, "/home/app") as home:
            assert home is not None
        (layers[0] / "out").symlink_to("/proc/self/root")
        (layers[0] / "up").symlink_to("../../../../../../etc")
        with merged(layers, user_xattrs=False) as root:
            assert read_in(root, "/out/etc/passwd", 10) is None
            assert read_in(root, "/up/old", 10) == b"old"
            assert read_in(root, "/up/passwd", 10) is None
