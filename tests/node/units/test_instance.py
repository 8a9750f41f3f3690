"""Which of the agents of a machine one is: its number stays with its data directory, and is nobody else's."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from fairwater.domain.failure import Permanent
from fairwater.node.instance import INSTANCES_MAX, Instance, claim_instance

Claim = Callable[[str], Instance]


@pytest.fixture
def claim(tmp_path: Path) -> Iterator[Claim]:
    """Claims for a data directory by name, which is made where it is not there."""
    claimed: list[Instance] = []

    def make(name: str) -> Instance:
        data = tmp_path / name
        data.mkdir(exist_ok=True)
        claimed.append(claim_instance(data, tmp_path / "registry"))
        return claimed[-1]

    yield make
    for instance in claimed:
        try:
            instance.release(forget=True)
        except OSError:
            continue  # the test has released it


def test_a_data_directory_gets_the_same_number_again(claim: Claim) -> None:
    first = claim("a")
    second = claim("b")
    for instance in (first, second):
        instance.release(forget=False)
    assert claim("b").number == second.number
    assert claim("a").number == first.number


def test_two_agents_get_different_numbers(claim: Claim) -> None:
    first, second = claim("a"), claim("b")
    assert first.number != second.number
    assert first.folder != second.folder


def test_a_second_agent_on_the_same_data_directory_is_refused(claim: Claim, tmp_path: Path) -> None:
    claim("a")
    with pytest.raises(Permanent, match=r"already runs on .*/a: stop it first") as refused:
        claim("a")
    assert refused.value.code == "agent_running"
    (tmp_path / "link").symlink_to(tmp_path / "a")
    with pytest.raises(Permanent, match="already runs"):
        claim_instance(tmp_path / "link", tmp_path / "registry")


def test_a_refused_agent_leaves_the_one_that_runs_its_number(claim: Claim) -> None:
    first = claim("a")
    with pytest.raises(Permanent):
        claim("a")
    first.release(forget=False)
    assert claim("a").number == first.number


def test_the_number_of_a_stopped_agent_is_kept_for_what_still_runs_of_it(claim: Claim) -> None:
    first = claim("a")
    first.release(forget=False)
    assert claim("b").number != first.number


def test_a_number_given_back_is_free(claim: Claim) -> None:
    first = claim("a")
    first.release(forget=True)
    assert claim("b").number == first.number


def test_the_number_of_an_owner_that_is_gone_is_free(claim: Claim, tmp_path: Path) -> None:
    first = claim("a")
    first.release(forget=False)
    (tmp_path / "a").rmdir()
    assert claim("b").number == first.number


def test_the_number_of_an_owner_that_is_gone_but_runs_is_not_free(claim: Claim, tmp_path: Path) -> None:
    first = claim("a")
    (tmp_path / "a").rmdir()
    assert claim("b").number != first.number


def test_a_claim_cut_off_before_its_owner_was_written_leaves_the_number_free(claim: Claim) -> None:
    first = claim("a")
    first.release(forget=False)
    (first.folder / "owner").write_text("")
    assert claim("b").number == first.number


def test_one_agent_more_than_there_can_be_is_refused(claim: Claim) -> None:
    numbers = {claim(f"data-{number}").number for number in range(INSTANCES_MAX)}
    assert numbers == set(range(INSTANCES_MAX))
    with pytest.raises(Permanent, match="16 agents are on this machine already") as refused:
        claim("one-too-many")
    assert refused.value.code == "too_many_agents"


def test_a_restarted_agent_gets_its_number_though_all_are_taken(claim: Claim) -> None:
    instances = [claim(f"data-{number}") for number in range(INSTANCES_MAX)]
    instances[7].release(forget=False)
    assert claim("data-7").number == instances[7].number


def test_the_folders_can_be_walked_through_but_not_listed(claim: Claim, tmp_path: Path) -> None:
    """A sandbox's root is entered by ids that own nothing of the way to it."""
    instance = claim("a")
    assert (tmp_path / "registry").stat().st_mode & 0o777 == 0o711
    assert instance.folder.stat().st_mode & 0o777 == 0o711
