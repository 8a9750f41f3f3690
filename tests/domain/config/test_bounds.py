"""What a repository's configuration may cost those who read it: time, and the size of what is passed on."""

from __future__ import annotations

import json
import time
from dataclasses import asdict

import pytest

from fairwater.domain.workspaces.config import FILE_BYTES_MAX, expand, expand_all, read_configuration
from fairwater.domain.workspaces.setup import Wanted

DEVCONTAINER, GITPOD = ".devcontainer.json", ".gitpod.yml"
NEVER_CLOSED = "${localEnv:"


def read(file: str, content: str) -> Wanted:
    assert len(content.encode()) <= FILE_BYTES_MAX
    return read_configuration({file: content.encode()}, "repository")


@pytest.mark.parametrize("opened", [NEVER_CLOSED, "${containerEnv:A", "${containerEnv:A:"])
def test_variables_that_are_never_closed_are_read_in_no_time(opened: str) -> None:
    text = opened * (FILE_BYTES_MAX // 3 // len(opened))
    commands = {"postCreateCommand": text, "containerEnv": {"A": text[:30_000]}, "postStartCommand": [text]}
    began = time.process_time()
    read(DEVCONTAINER, json.dumps(commands))
    expand(text, {})
    assert time.process_time() - began < 5


def test_a_default_may_hold_the_beginning_of_another_variable() -> None:
    assert expand("${containerEnv:A:${b}-${containerEnv:B}-${containerEnv:", {"B": "there"}) == (
        "${b-there-${containerEnv:"
    )


@pytest.mark.parametrize("sign", ["x", "'", '"', "\x01"])
def test_what_a_configuration_asks_for_is_never_large(sign: str) -> None:
    """It travels in one line from the node to the server, at each change of the run."""
    text = sign * (3900 // (len(json.dumps(sign)) - 2))
    tasks = [{"name": f"t{number}", "init": text, "env": {"A": text}} for number in range(32)]
    wanted = read(GITPOD, json.dumps({"tasks": tasks}))  # JSON is YAML
    assert len(json.dumps(asdict(wanted), default=str)) < 1024 * 1024
    assert wanted.tasks


def test_aliases_do_not_make_variables_larger_than_a_command_can_take() -> None:
    variables = ", ".join(f'V{number}: "{"x" * 900}"' for number in range(64))
    content = f"variables: &all {{{variables}}}\ntasks:\n" + "- {init: make, env: *all}\n" * 8
    wanted = read(GITPOD, content)
    assert [notice.code for notice in wanted.notices].count("too_long") == 8
    assert all(sum(len(k) + len(v) for k, v in task.environment) < 48 * 1024 for task in wanted.tasks)


def test_variables_that_name_a_large_one_again_and_again_stay_as_they_are_written() -> None:
    large = {"LARGE": "x" * 30_000}
    variables = [(f"V{number}", "${containerEnv:LARGE}" * 4) for number in range(256)]
    expanded = expand_all([("SMALL", "${containerEnv:NAME}!"), *variables], {**large, "NAME": "me"})
    assert expanded[0] == ("SMALL", "me!")
    assert sum(len(value) for _, value in expanded) < 128 * 1024
    assert expanded[-1] == ("V255", "${containerEnv:LARGE}" * 4)
