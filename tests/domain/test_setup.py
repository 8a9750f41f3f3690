"""What a run is set up with: who decides about the image, where one begins, what the class does not give."""

from __future__ import annotations

from dataclasses import replace

import pytest

from fairwater.domain.units import GIB, Bytes
from fairwater.domain.workspaces.classes import STANDARD
from fairwater.domain.workspaces.notice import Level, Notice
from fairwater.domain.workspaces.setup import Brought, Requirements, Setup, Wanted, decide_setup


def decide(wanted: Wanted = Wanted(), brought: Brought = Brought("repo"), *, image_asked: bool = False) -> Setup:
    return decide_setup("host", image_asked=image_asked, brought=brought, wanted=wanted, limits=STANDARD)


def test_an_image_that_a_person_named_wins_over_the_repositorys() -> None:
    setup = decide(Wanted(".gitpod.yml", image="debian:12", image_line=3), image_asked=True)
    assert (setup.image, setup.image_why) == ("host", "asked for when the workspace was created")


def test_the_repositorys_image_wins_over_the_default_and_says_where_it_stands() -> None:
    setup = decide(Wanted(".gitpod.yml", image="debian:12", image_line=3))
    assert (setup.image, setup.image_why) == ("debian:12", "asked for in .gitpod.yml:3")


def test_without_a_word_the_default_image_is_used() -> None:
    assert decide().image == "host"


@pytest.mark.parametrize(
    ("wanted", "brought", "folder"),
    [
        (Wanted(), Brought("repo"), "/workspace/repo"),
        (Wanted(), Brought(""), "/workspace"),
        (Wanted(folder="repo/src"), Brought("repo"), "/workspace/repo/src"),
        (Wanted(folder="/opt/app"), Brought("repo"), "/opt/app"),
        (Wanted(folder="elsewhere"), Brought("repo", "docs"), "/workspace/repo/docs"),
    ],
)
def test_one_begins_where_the_url_says_else_the_configuration_else_in_the_repository(
    wanted: Wanted, brought: Brought, folder: str
) -> None:
    setup = decide(wanted, brought)
    assert setup.folder == folder
    assert setup.repository == f"/workspace/{brought.repository}".rstrip("/")


def test_a_class_that_gives_less_than_the_repository_needs_is_told() -> None:
    asked = Requirements(cpu_cores=8, memory=Bytes(4 * GIB), storage=Bytes(64 * GIB))
    notices = decide(Wanted("devcontainer.json", requirements=asked)).notices
    assert [notice.code for notice in notices] == ["class_too_small", "class_too_small"]
    assert "8 cores, the class 'standard' gives 4 cores" in notices[0].message
    assert "64 GiB of disk space" in notices[1].message


def test_every_notice_is_kept_in_the_order_in_which_it_came_up() -> None:
    brought, read = Notice(Level.WARNING, "a", "first"), Notice(Level.ERROR, "b", "second", "f", 1, 2)
    setup = decide(Wanted("f", notices=(read,)), replace(Brought("repo"), notices=(brought,)))
    assert setup.notices == (brought, read)
    assert str(read) == "f:1:2: second"
    assert str(brought) == "first"
