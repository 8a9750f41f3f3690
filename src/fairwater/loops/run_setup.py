"""What a run is set up with, on its way from the repository's configuration to a sandbox.

Joins the domain's decision (`decide_setup`) with the image that it names; falls back to the default image where the
one that the repository names cannot be had, so that its owner can still get in and mend it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

from fairwater.domain.failure import Permanent, Temporary
from fairwater.domain.workspaces.config import expand_all, read_configuration
from fairwater.domain.workspaces.home import home_directory
from fairwater.domain.workspaces.notice import Level, Notice
from fairwater.domain.workspaces.run import Progress
from fairwater.domain.workspaces.setup import SEARCHED, Setup, Wanted, decide_setup
from fairwater.loops.journal import Entry
from fairwater.ports.content import Content
from fairwater.ports.images import ImageRoot, Images, ImageUser, is_local
from fairwater.ports.sandboxes import Admission
from fairwater.ports.secrets import SecretKeeper

_ROOT_VARIABLES = ("FAIRWATER_REPO_ROOT", "GITPOD_REPO_ROOT")


class RunSetup:
    def __init__(self, images: Images, content: Content, secrets: SecretKeeper) -> None:
        self._images = images
        self._content = content
        self._secrets = secrets

    def configure(self, entry: Entry) -> Callable[[Mapping[str, bytes]], Wanted]:
        """How to read this run's configuration files."""
        source = entry.spec.source
        return partial(_read, source.name if source else "")

    async def decide(self, entry: Entry, volume: Path) -> Setup:
        """From what is on the volume now. Raises Temporary, where its content is not there."""
        brought = self._content.brought(volume)
        if brought is None:
            raise Temporary(f"the content of {entry.workspace} is not there", code="content_missing", delay_s=0.1)
        files = await self._content.config_files(volume, brought.repository) if brought.repository else {}
        spec = entry.spec
        # The largest files that are read take some tenths of a second.
        wanted = await asyncio.to_thread(_read, brought.repository, files)
        setup = decide_setup(
            spec.image, image_asked=spec.image_asked, brought=brought, wanted=wanted, limits=spec.limits
        )
        if not await self._content.has_folder(volume, setup.folder):
            message = f"there is no folder {setup.folder}: commands begin in {setup.repository}"
            setup = replace(
                setup,
                folder=setup.repository,
                notices=(*setup.notices, Notice(Level.WARNING, "no_such_folder", message, wanted.file)),
            )
        return setup

    async def prepare(self, entry: Entry, report: Callable[[Progress], None]) -> Setup:
        """Brings in the image; the setup as it is then.

        Raises:
            Permanent, Temporary: those of `Images.prepare`, where there is no other image to fall back to.
        """
        setup, spec = _setup_of(entry), entry.spec
        secrets = self._secrets.get(entry.workspace)
        try:
            # A person's own wish for a folder of the machine was judged when the run was accepted.
            await self._images.prepare(setup.image, secrets, report, local_allowed=spec.image_asked)
        except Permanent as failure:
            if spec.image_asked or setup.image == spec.image:
                raise
            notice = Notice(
                Level.ERROR,
                failure.code,
                f"{failure.message}. The workspace has the image '{spec.image}' instead, and its tasks were not run",
                setup.file,
            )
            return replace(
                setup, image=spec.image, image_why="the one asked for cannot be had", user=None, tasks=(),
                notices=(*setup.notices, notice),
            )  # fmt: skip
        return setup

    async def image(self, entry: Entry) -> ImageRoot | None:
        """The run's image, where it is here and may be used: a folder of the node only by a person's own wish."""
        if is_local(_setup_of(entry).image) and not entry.spec.image_asked:
            return None
        try:
            return await self._images.find(_setup_of(entry).image, self._secrets.get(entry.workspace))
        except Permanent:
            return None  # what is wrong with it, `prepare` tells

    async def present(self, entry: Entry) -> ImageRoot:
        """Raises Temporary, where the image is not here (any more): plan anew."""
        image = await self.image(entry)
        if image is None:
            raise Temporary(f"the image {_setup_of(entry).image} is gone again", code="image_missing", delay_s=0.1)
        return image

    def admission(self, entry: Entry, image: ImageRoot, volume: Path) -> Admission:
        setup, secrets = _setup_of(entry), self._secrets.get(entry.workspace)
        given = dict(entry.spec.environment)
        given |= {name: setup.repository for name in _ROOT_VARIABLES if name in given}
        environment = {**dict(setup.container_environment), **dict(secrets.environment), **given}
        user = find_user(image, setup.user) or image.user
        seen = {"PATH": SEARCHED, **dict(image.environment), "HOME": user.home, "USER": user.name, **environment}
        return Admission(
            limits=entry.spec.limits,
            volume=volume,
            environment=environment,
            cwd=setup.folder,
            user=user,
            remote_environment=dict(expand_all(setup.remote_environment, seen)),
        )

    def first_command(self, entry: Entry, image: ImageRoot) -> tuple[str, ...] | None:
        """The first process: what a person asked for, by way of the image's entry point, as OCI runtimes do; else the
        image's own, where the configuration says so, or where a person chose the image and nothing else is said."""
        setup, spec = _setup_of(entry), entry.spec
        if spec.command is not None:
            return (*image.entrypoint, *spec.command)
        if setup.entrypoint or (spec.image_asked and setup.file is None):
            return (*image.entrypoint, *image.command) or None
        return None


def with_user(setup: Setup, image: ImageRoot) -> Setup:
    """`setup` with the image's exact content and the user that everything runs as."""
    if setup.user is not None and find_user(image, setup.user) is None:
        message = f"the image {setup.image} has no user {setup.user!r}: commands run as {image.user.name!r}"
        notice = Notice(Level.ERROR, "no_such_user", message, setup.file)
        setup = replace(setup, user=None, notices=(*setup.notices, notice))
    user = find_user(image, setup.user) or image.user
    home = home_directory(user.home, user.name)
    return replace(setup, user=user.name, home=home, digest=image.digest)


def find_user(image: ImageRoot, name: str | None) -> ImageUser | None:
    """By name, or by number as the image counts; None for the image's own."""
    if name is None:
        return None
    return next((user for user in (image.user, *image.users) if name in {user.name, str(user.uid)}), None)


def _read(repository: str, files: Mapping[str, bytes]) -> Wanted:
    return read_configuration(files, repository)


def _setup_of(entry: Entry) -> Setup:
    if entry.setup is None:
        raise Temporary(f"the run of {entry.workspace} is not set up yet", code="not_configured", delay_s=0.1)
    return entry.setup
