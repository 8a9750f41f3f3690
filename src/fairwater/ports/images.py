"""What a sandbox's file system begins with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from fairwater.domain.workspaces.run import Progress
from fairwater.domain.workspaces.secrets import RunSecrets


@dataclass(frozen=True, slots=True)
class ImageUser:
    """Somebody whom an image knows, ids counted from 0; `groups` are the further ones."""

    name: str
    uid: int
    gid: int
    home: str
    shell: str = "/bin/sh"
    groups: tuple[int, ...] = ()


_IN_FOLDERS = ("oci:", "oci-archive:", "docker-archive:")


def is_local(reference: str) -> bool:
    """Whether the reference names a folder or file of the node's, as only the local administrator may."""
    return reference.startswith(_IN_FOLDERS)


ROOT = ImageUser("root", 0, 0, "/root")


@dataclass(frozen=True, slots=True)
class ImageRoot:
    """An image, ready to be used as a root file system.

    `reference` is as asked for, `digest` names the exact content. `layers` are folders, the uppermost first, ids on
    disk counted from 0, with overlayfs's marks in `user.overlay.*` where `user_xattrs`; `binds` are folders of the
    machine shown read-only at a path of the image. `user` is whom it runs as, `users` are all that it knows.
    `working_directory`, `entrypoint` and `command` are the image's own first process.
    """

    reference: str
    layers: tuple[Path, ...]
    binds: tuple[tuple[Path, str], ...] = ()
    environment: tuple[tuple[str, str], ...] = ()
    digest: str = ""
    user: ImageUser = ROOT
    users: tuple[ImageUser, ...] = ()
    working_directory: str = "/"
    entrypoint: tuple[str, ...] = ()
    command: tuple[str, ...] = ()
    user_xattrs: bool = False


class Images(Protocol):
    """Images by reference: `host`, or where they are offered OCI references, `oci:` folders and archives."""

    async def find(self, reference: str, secrets: RunSecrets = RunSecrets()) -> ImageRoot | None:
        """The image where it is here already and may be used with `secrets`; None where it must be brought in."""
        ...

    async def prepare(
        self,
        reference: str,
        secrets: RunSecrets = RunSecrets(),
        report: Callable[[Progress], None] = lambda _: None,
        *,
        local_allowed: bool = False,
    ) -> ImageRoot:
        """The image, brought in where it is not here yet. What is brought in for several is brought in once.

        Raises:
            Permanent: `no_such_image`, `image_denied`, `no_such_registry`, `wrong_architecture`, `image_damaged`,
                `image_too_large`, `bad_image`, `local_only`, `not_a_listed_root`; the message says what to do.
            Temporary: `registry_away`, `registry_stalled`, `disk_full`.
        """
        ...
