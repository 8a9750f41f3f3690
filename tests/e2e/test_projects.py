"""Three public projects, brought as they are: their own image, their configuration, their own tests.

On SQLite and on PostgreSQL, from `fairwater up` to the end of each project's own test suite inside its workspace.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from tests.e2e import projects
from tests.e2e.conftest import Installation, until
from tests.e2e.projects import Project
from tests.servers.address import free_port, own_address
from tests.servers.registry import docker_registry

pytestmark = pytest.mark.root
TASKS_WITHIN_S = 240.0

GITPOD_PYTHON = """\
# What a Python project brings.
image: {registry}/team/python:3.11
tasks:
  - name: tests
    env:
      PIP_NO_INPUT: "1"
    before: export PYTHONDONTWRITEBYTECODE=1
    init: |
      python3 -m venv .venv
      .venv/bin/pip install --quiet --editable . pytest freezegun
    command: echo "bytecode ${{PYTHONDONTWRITEBYTECODE}}"; .venv/bin/python -m pytest -q
ports:
  - port: 8000
    onOpen: ignore
    visibility: public
"""
DEVCONTAINER = """\
// For the development container.
{{
  "name": "idna",
  "image": "{registry}/team/python:3.11",
  "remoteUser": "coder", /* not root */
  "containerEnv": {{ "PIP_NO_INPUT": "1" }},
  "remoteEnv": {{ "PATH": "${{containerEnv:PATH}}:/workspace/idna/.venv/bin" }},
  "onCreateCommand": "python3 -m venv .venv",
  "postCreateCommand": [".venv/bin/pip", "install", "--quiet", "--editable", ".", "pytest"],
  "postStartCommand": {{ "one": "echo started", "two": "pytest --version" }},
  "forwardPorts": [3000],
}}
"""
GITPOD_C = """\
image: {registry}/team/c:12
tasks:
  - init: ./configure && make -j2
    command: make test
"""


@dataclass
class Brought:
    """The projects' repositories, and where their images are served."""

    folder: Path
    address: str
    registry: str
    projects: tuple[Project, ...]


@pytest.fixture(scope="module")
def brought(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Brought]:
    folder = tmp_path_factory.mktemp("projects")
    layout = projects.debian_image(folder)
    projects.configured(layout, "python", "--config.env", "LANG=C.UTF-8", "--config.workingdir", "/srv")
    projects.configured(layout, "c", "--config.user", "coder", "--config.env", "CFLAGS=-O2")
    with own_address() as address, docker_registry(address, free_port(address)) as served:
        registry = served.host
        projects.push(layout, "python", f"{registry}/team/python:3.11")
        projects.push(layout, "c", f"{registry}/team/c:12")
        found = (
            Project(
                "itsdangerous", projects.from_pypi("itsdangerous==2.2.0", folder),
                {".gitpod.yml": GITPOD_PYTHON.format(registry=registry)}, ".venv/bin/python -m pytest -q",
            ),
            Project(
                "idna", projects.from_pypi("idna==3.10", folder),
                {".devcontainer/devcontainer.json": DEVCONTAINER.format(registry=registry)}, "pytest -q tests",
            ),
            Project(
                "zlib", projects.from_debian("zlib", folder),
                {".gitpod.yml": GITPOD_C.format(registry=registry)}, "make test",
            ),
        )  # fmt: skip
        origin = folder / "origin"
        origin.mkdir()
        for project in found:
            project.commit(origin)
        yield Brought(origin, address, registry, found)


@pytest.fixture(params=["sqlite", "postgresql"])
def database(request: pytest.FixtureRequest) -> dict[str, str]:
    """The settings that name the database."""
    if request.param == "sqlite":
        return {}
    return {"FAIRWATER_SERVER_DATABASE_URL": request.getfixturevalue("postgres_url")}


def test_three_public_projects_pass_their_own_tests_in_their_own_image(
    brought: Brought, database: dict[str, str], installation: Installation
) -> None:
    host, port = brought.registry.split(":")
    installation.settings |= database | {
        "FAIRWATER_NODE_GIT_FILE_ROOTS": str(brought.folder),
        "FAIRWATER_NETWORK_ALLOW": f"{host}/32:{port}",
        "FAIRWATER_IMAGES_INSECURE_REGISTRIES": brought.registry,
        "FAIRWATER_CLASSES_STANDARD_DISK": "3GiB",
    }
    installation.start()
    for project in brought.projects:
        done = installation.run("ws", "create", f"file://{brought.folder}/{project.name}", "--wait", within_s=240)
        assert done.returncode == 0, done.stdout + done.stderr
    for project in brought.projects:
        tasks(installation, project)
        shown = installation.json("ws", "show", project.name)
        assert shown["setup"]["image"].startswith(brought.registry), shown
        assert not [notice for notice in shown["setup"]["notices"] if notice["level"] == "error"], shown
        done = installation.run("ws", "exec", project.name, "--", "bash", "-c", project.check, within_s=240)
        assert done.returncode == 0, done.stdout + done.stderr
    users = [installation.exec(project.name, "id -un; stat -c %U .").split() for project in brought.projects]
    assert users == [["root", "root"], ["coder", "coder"], ["coder", "coder"]]
    assert installation.exec("idna", "cat ~/.from-image; pwd") == "kept\n/workspace/idna\n"
    # What runs once does not run again, what runs on every start does; edits are there.
    installation.exec("zlib", "echo mine > ~/mine; touch -d 2001-01-01 configure.log")
    assert installation.run("ws", "stop", "zlib", "--wait").returncode == 0
    assert installation.run("ws", "start", "zlib", "--wait").returncode == 0
    tasks(installation, brought.projects[2])
    assert installation.exec("zlib", "cat ~/mine; stat -c %y configure.log").split()[:2] == ["mine", "2001-01-01"]
    assert installation.interrupt() == 0


def tasks(installation: Installation, project: Project) -> list[dict[str, Any]]:
    """The project's tasks once all of them have ended, which they must well."""
    found: list[dict[str, Any]] = []

    def ended() -> bool:
        found[:] = installation.json("ws", "tasks", project.name)
        return bool(found) and all(task["exit_status"] is not None for task in found)

    def output() -> str:
        said = [installation.run("ws", "logs", project.name, "--task", str(task["number"])).stdout for task in found]
        return json.dumps(found, indent=2) + "\n".join(said)

    until(ended, output, TASKS_WITHIN_S)
    assert all(task["state"] == "succeeded" for task in found), output()
    return found
