"""What a run is set up with: decided from what was asked for, what the repository's configuration says, and defaults.

Refuses to know how a configuration file is written (`config`), and how anything of it is done.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

from fairwater.domain.units import Bytes, format_bytes
from fairwater.domain.workspaces.classes import WorkspaceClass
from fairwater.domain.workspaces.notice import Level, Notice

SEARCHED = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
"""PATH where an image has none."""


class Visibility(StrEnum):
    PRIVATE = "private"
    TEAM = "team"
    PUBLIC = "public"


@dataclass(frozen=True, slots=True)
class Task:
    """Commands that run in a terminal of their own, in order, by `sh`.

    `number` counts from 0 in the order written. `marker`, where the task has commands that run only once in a
    workspace's life, is a file in the workspace that is there once they went through.
    """

    number: int
    name: str
    script: str
    environment: tuple[tuple[str, str], ...] = ()
    marker: str | None = None


@dataclass(frozen=True, slots=True)
class PortRule:
    """What is said of the ports from `first` to `last`. `on_open` is notify, open-browser, open-preview or ignore."""

    first: int
    last: int
    name: str = ""
    description: str = ""
    visibility: Visibility = Visibility.PRIVATE
    on_open: str = "notify"
    protocol: str = "http"


@dataclass(frozen=True, slots=True)
class AdditionalRepository:
    """`location` is a folder below `/workspace`, "" for the repository's own name."""

    url: str
    location: str = ""


@dataclass(frozen=True, slots=True)
class Requirements:
    """What the repository says it needs at least. Memory and storage in bytes."""

    cpu_cores: int | None = None
    memory: int | None = None
    storage: int | None = None


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a repository's configuration asks for. `file` is the one that was read, None where there is none.

    `user` is a name or number of the image's. `container_environment` is for every process, `remote_environment` for
    tasks and commands only; values may name `${containerEnv:NAME}`. `checkout` is where below `/workspace` the
    repository goes, "" for its own name; `folder` is where one begins: absolute, or below `/workspace`. `entrypoint`:
    the image's own first process is to run.
    """

    file: str | None = None
    image: str | None = None
    image_line: int | None = None
    user: str | None = None
    container_environment: tuple[tuple[str, str], ...] = ()
    remote_environment: tuple[tuple[str, str], ...] = ()
    tasks: tuple[Task, ...] = ()
    ports: tuple[PortRule, ...] = ()
    repositories: tuple[AdditionalRepository, ...] = ()
    checkout: str = ""
    folder: str = ""
    entrypoint: bool = False
    requirements: Requirements = field(default_factory=Requirements)
    notices: tuple[Notice, ...] = ()


@dataclass(frozen=True, slots=True)
class Brought:
    """What bringing in the content has led to. `repository` is the checkout's folder below `/workspace`, "" for none;
    `subfolder` is the folder in it that was asked for."""

    repository: str = ""
    subfolder: str = ""
    notices: tuple[Notice, ...] = ()


@dataclass(frozen=True, slots=True)
class Setup:
    """What a run got, and why. `digest` names the image's exact content; `user` is who commands run as; `folder` is
    where they begin, `repository` where the repository is, both absolute."""

    image: str
    image_why: str
    digest: str = ""
    file: str | None = None
    user: str | None = None
    home: str = ""
    folder: str = "/workspace"
    repository: str = "/workspace"
    container_environment: tuple[tuple[str, str], ...] = ()
    remote_environment: tuple[tuple[str, str], ...] = ()
    tasks: tuple[Task, ...] = ()
    ports: tuple[PortRule, ...] = ()
    entrypoint: bool = False
    notices: tuple[Notice, ...] = ()


def decide_setup(image: str, *, image_asked: bool, brought: Brought, wanted: Wanted, limits: WorkspaceClass) -> Setup:
    """`image` is the one asked for by a person (`image_asked`), which wins, or else the default."""
    if image_asked:
        chosen, why = image, "asked for when the workspace was created"
    elif wanted.image:
        place = f"{wanted.file}:{wanted.image_line}" if wanted.image_line else wanted.file
        chosen, why = wanted.image, f"asked for in {place}"
    else:
        chosen, why = image, "the default: the repository asks for none"
    repository = f"/workspace/{brought.repository}".rstrip("/")
    folder = wanted.folder if wanted.folder.startswith("/") else f"/workspace/{wanted.folder}".rstrip("/")
    if brought.subfolder:
        folder = f"{repository}/{brought.subfolder}"
    elif not wanted.folder:
        folder = repository
    return Setup(
        image=chosen,
        image_why=why,
        file=wanted.file,
        user=wanted.user,
        folder=folder,
        repository=repository,
        container_environment=wanted.container_environment,
        remote_environment=wanted.remote_environment,
        tasks=wanted.tasks,
        ports=wanted.ports,
        entrypoint=wanted.entrypoint,
        notices=(*brought.notices, *wanted.notices, *_unmet(wanted, limits)),
    )


def _unmet(wanted: Wanted, limits: WorkspaceClass) -> tuple[Notice, ...]:
    """What the repository says it needs, and the workspace's class does not give."""
    required = wanted.requirements
    pairs = (
        (required.cpu_cores, limits.cpu_cores, "{:g} cores".format),
        (required.memory, limits.memory, _memory),
        (required.storage, limits.disk, _disk),
    )
    return tuple(
        Notice(
            Level.WARNING,
            "class_too_small",
            f"the repository asks for {shown(need)}, the class '{limits.name}' gives {shown(has)}: choose a larger "
            "class",
            wanted.file,
        )
        for need, has, shown in pairs
        if need is not None and need > has
    )


def _memory(size: float) -> str:
    return f"{format_bytes(Bytes(int(size)))} of memory"


def _disk(size: float) -> str:
    return f"{format_bytes(Bytes(int(size)))} of disk space"
