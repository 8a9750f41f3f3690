"""`devcontainer.json`: what each property leads to, and where the line and column of what is wrong are."""

from __future__ import annotations

import json

import pytest
from tests.domain.config.reading import devcontainer, messages, noticed

from fairwater.domain.workspaces.config import expand
from fairwater.domain.workspaces.setup import PortRule, Requirements


def test_image_user_and_variables_are_taken() -> None:
    wanted = devcontainer(
        """{
          // the usual
          "name": "Shop",
          "image": "mcr.microsoft.com/devcontainers/python:3.12",
          "remoteUser": "vscode",
          "containerEnv": {"A": "1", "B": "${containerWorkspaceFolder}/x"},
          "remoteEnv": {"PATH": "${containerEnv:PATH}:/opt/bin", "ID": "${devcontainerId}",},
        }"""
    )
    assert (wanted.image, wanted.image_line) == ("mcr.microsoft.com/devcontainers/python:3.12", 4)
    assert wanted.user == "vscode"
    assert wanted.container_environment == (("A", "1"), ("B", "/workspace/shop/x"))
    assert wanted.remote_environment[0] == ("PATH", "${containerEnv:PATH}:/opt/bin")
    assert len(wanted.remote_environment[1][1]) == 52
    assert (wanted.folder, wanted.entrypoint, wanted.notices) == ("", False, ())


def test_variables_of_the_local_machine_are_their_default_and_are_told() -> None:
    wanted = devcontainer(
        '{"image": "x", "containerEnv": {"A": "${localEnv:HOME:/root}", "B": "[${localEnv:TOKEN}]",\n'
        '"C": "${localWorkspaceFolderBasename}|${localWorkspaceFolder}|${shell:x}|$HOME|${HOME}",\n'
        '"D": "${containerWorkspaceFolderBasename}", "E": "${env:USER:http://a}"}}'
    )
    assert dict(wanted.container_environment) == {
        "A": "/root", "B": "[]", "C": "shop|/workspace/shop|${shell:x}|$HOME|${HOME}", "D": "shop", "E": "http://a",
    }  # fmt: skip
    assert [(one[0], one[1]) for one in noticed(wanted)] == [("info", "no_local_machine")] * 3


@pytest.mark.parametrize(
    ("value", "environment", "expected"),
    [("${containerEnv:PATH}:/x", {"PATH": "/bin"}, "/bin:/x"), ("${containerEnv:NO:d}", {}, "d"),
     ("${containerEnv:NO}", {}, ""), ("${containerEnv:A}", {"A": "${containerEnv:B}", "B": "x"}, "${containerEnv:B}"),
     ("${containerEnv:E:d}", {"E": ""}, ""), ("$A ${A} ${containerEnv:}", {"A": "1"}, "$A ${A} ${containerEnv:}"),
     ("${containerEnv:A:http://x}", {}, "http://x")],
)  # fmt: skip
def test_expand_replaces_what_the_container_has_once(value: str, environment: dict[str, str], expected: str) -> None:
    assert expand(value, environment) == expected


def test_expand_does_not_grow_without_bound() -> None:
    assert len(expand("${containerEnv:A}" * 1000, {"A": "x" * 100_000})) <= 128 * 1024


def test_the_remote_user_counts_and_another_container_user_is_told() -> None:
    wanted = devcontainer('{"image": "x",\n "containerUser": "root",\n "remoteUser": "1000"}')
    assert wanted.user == "1000"
    assert noticed(wanted) == [("info", "one_user", 2, 2)]
    assert devcontainer('{"image": "x", "containerUser": "node"}').user == "node"


@pytest.mark.parametrize("user", ["a b", "-x", "../x", "a\\nb", "é"])
def test_a_user_that_cannot_be_one_is_refused(user: str) -> None:
    wanted = devcontainer(f'{{"image": "x", "remoteUser": "{user}"}}')
    assert (wanted.user, noticed(wanted)) == (None, [("error", "bad_value", 1, 30)])


@pytest.mark.parametrize(
    ("properties", "folder", "codes"),
    [
        ({"workspaceFolder": "/workspaces/shop"}, "", ["mapped"]),
        ({"workspaceFolder": "/workspaces/${localWorkspaceFolderBasename}/api/"}, "/workspace/shop/api", ["mapped"]),
        ({"workspaceFolder": "/workspace"}, "", ["mapped"]),
        ({"workspaceFolder": "/workspace/shop/web"}, "/workspace/shop/web", []),
        ({"workspaceFolder": "/workspace/shop"}, "", []),
        ({"workspaceFolder": "/app", "workspaceMount": "source=${localWorkspaceFolder},target=/app"}, "", ["mapped"]),
        ({"workspaceFolder": "/app/x", "workspaceMount": "target=/app"}, "/workspace/shop/x", ["mapped"]),
        ({"workspaceFolder": "/workspace/x", "workspaceMount": "target=/workspace"}, "/workspace/shop/x", ["mapped"]),
        ({"workspaceFolder": "/home/me"}, "", ["mapped"]),
        ({"workspaceFolder": "/workspaces/shop/../../etc"}, "", ["bad_folder"]),
        ({"workspaceFolder": "/workspace/../etc"}, "", ["bad_folder"]),
        ({"workspaceMount": "target=/app"}, "", ["not_supported"]),
        ({"workspaceMount": ""}, "", []),
    ],
)  # fmt: skip
def test_the_workspace_folder_is_where_the_repository_is(
    properties: dict[str, str], folder: str, codes: list[str]
) -> None:
    wanted = devcontainer(json.dumps({"image": "x", **properties}))
    assert (wanted.folder, [notice.code for notice in wanted.notices]) == (folder, codes)


def test_ports_take_what_their_attributes_say() -> None:
    wanted = devcontainer(
        json.dumps({
            "image": "x",
            "forwardPorts": [3000, "localhost:4000", "db:5432", "6000", 8080],
            "appPort": ["9000:9001"],
            "portsAttributes": {
                "3000": {"label": "Shop", "onAutoForward": "openPreview", "requireLocalPort": True},
                "4000-4100": {"label": "Range", "onAutoForward": "silent", "protocol": "https"},
                "7000": {"onAutoForward": "openBrowserOnce"},
                ".+/server.js": {"label": "x"},
            },
        })
    )  # fmt: skip
    assert wanted.ports == (
        PortRule(3000, 3000, "Shop", on_open="open-preview"),
        PortRule(4000, 4000, "Range", on_open="ignore", protocol="https"),
        PortRule(6000, 6000),
        PortRule(8080, 8080),
        PortRule(9001, 9001),
        PortRule(7000, 7000, on_open="open-browser"),
        PortRule(4000, 4100, "Range", on_open="ignore", protocol="https"),
    )
    assert sorted(notice.code for notice in wanted.notices) == ["not_supported"] * 3


@pytest.mark.parametrize("port", ["0", "70000", '"a:b"', "true", "1.5", "[1]", '"1-5"'])
def test_what_is_no_port_is_an_error_with_its_place(port: str) -> None:
    wanted = devcontainer(f'{{"image": "x",\n "forwardPorts": [{port}, 1]}}')
    assert [rule.first for rule in wanted.ports] == [1]
    assert [(one[0], one[2], one[3]) for one in noticed(wanted)] == [("error", 2, 19)]


def test_requirements_are_parsed() -> None:
    wanted = devcontainer(
        '{"image": "x", "hostRequirements": {"cpus": 4, "memory": "8gb", "storage": "32GB", "gpu": "optional"}}'
    )
    assert wanted.requirements == Requirements(4, 8 << 30, 32 << 30)
    assert [(one[0], one[1]) for one in noticed(wanted)] == [("info", "not_supported")]


@pytest.mark.parametrize(
    "text",
    ['{"cpus": 0}', '{"cpus": "4"}', '{"memory": "many"}', '{"memory": "99999999999tb"}', '{"storage": []}', "[4]"],
)
def test_a_bad_requirement_is_an_error_and_left_out(text: str) -> None:
    wanted = devcontainer(f'{{"image": "x", "hostRequirements": {text}}}')
    assert wanted.requirements == Requirements()
    assert [str(notice.level) for notice in wanted.notices] == ["error"]


def test_the_images_own_process_runs_where_the_command_is_not_overridden() -> None:
    assert devcontainer('{"image": "x", "overrideCommand": false}').entrypoint
    assert not devcontainer('{"image": "x", "overrideCommand": true}').entrypoint


@pytest.mark.parametrize(
    ("key", "value", "level"),
    [("build", {"dockerfile": "Dockerfile"}, "error"), ("dockerFile", "Dockerfile", "error"),
     ("features", {"ghcr.io/devcontainers/features/git:1": {}}, "error"), ("dockerComposeFile", "c.yml", "error"),
     ("service", "app", "warning"), ("runServices", ["a"], "warning"), ("initializeCommand", "rm -rf /", "warning"),
     ("waitFor", "postCreateCommand", "info"), ("otherPortsAttributes", {"onAutoForward": "ignore"}, "info"),
     ("shutdownAction", "none", "info"), ("customizations", {"vscode": {}}, "warning"), ("runArgs", ["-x"], "warning"),
     ("mounts", ["x"], "warning"), ("privileged", True, "warning"), ("capAdd", ["ALL"], "warning"),
     ("securityOpt", ["x"], "warning"), ("secrets", {"A": {}}, "info"), ("updateRemoteUserUID", True, "info"),
     ("userEnvProbe", "loginShell", "info"), ("overrideFeatureInstallOrder", ["x"], "warning"),
     ("extensions", ["x"], "warning"), ("settings", {"a": 1}, "warning")],
)  # fmt: skip
def test_what_is_not_supported_yet_is_told_and_never_dropped_in_silence(key: str, value: object, level: str) -> None:
    wanted = devcontainer(f'{{"image": "x",\n  "{key}": {json.dumps(value)}}}')
    assert noticed(wanted) == [(level, "not_supported", 2, 3)]
    assert messages(wanted).partition(": ")[2].startswith(key)
    assert wanted.image == "x"


@pytest.mark.parametrize(
    "properties", ['"features": {}', '"privileged": false', '"runArgs": []', '"customizations": {}', '"init": true']
)
def test_a_property_that_asks_for_nothing_is_not_told(properties: str) -> None:
    assert devcontainer(f'{{"image": "x", {properties}}}').notices == ()


def test_an_unknown_property_is_told_with_the_nearest_known_one() -> None:
    wanted = devcontainer('{"image": "x",\n "postCreateComand": "x"}')
    assert noticed(wanted) == [("warning", "unknown_key", 2, 2)]
    assert "did you mean 'postCreateCommand'?" in messages(wanted)


def test_no_image_is_told_unless_something_else_makes_one() -> None:
    assert [one[1] for one in noticed(devcontainer("{}"))] == ["no_image"]
    assert [one[1] for one in noticed(devcontainer('{"build": {"dockerfile": "D"}}'))] == ["not_supported"]


def test_commands_become_one_task_and_the_life_cycle_is_told_where_it_differs() -> None:
    wanted = devcontainer(
        '{"image": "x", "onCreateCommand": "a", "postStartCommand": ["b", "c"],\n "postAttachCommand": {"w": "d"}}'
    )
    (task,) = wanted.tasks
    assert (task.number, task.name, task.marker is not None) == (0, "devcontainer", True)
    assert noticed(wanted) == [("info", "runs_at_start", 2, 2)]
    assert devcontainer('{"image": "x", "postCreateCommand": "", "postStartCommand": []}').tasks == ()
    assert devcontainer('{"image": "x", "postStartCommand": "a"}').tasks[0].marker is None


@pytest.mark.parametrize("command", ["3", "true", '["a", ["b"]]', '{"a": {"b": "c"}}', '"a\\u0000b"'])
def test_a_command_of_a_wrong_type_is_an_error_and_does_not_run(command: str) -> None:
    wanted = devcontainer(f'{{"image": "x",\n "postCreateCommand": {command}}}')
    assert wanted.tasks == ()
    assert [(one[0], one[2]) for one in noticed(wanted)] == [("error", 2)]
