"""What the agent keeps of a run's secrets in memory."""

from __future__ import annotations

import json
import stat
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from fairwater.domain.failure import Permanent
from fairwater.domain.ids import WorkspaceId
from fairwater.domain.workspaces.secrets import RunSecrets
from fairwater.node.secrets import FileSecrets

from .conftest import SECRET, WORKSPACE, ssh_key, token

ALL = RunSecrets(
    (token("example.org"), token("10.0.0.1:8080", plain_http=True), ssh_key("-----BEGIN\nx\n-----END\n")),
    (("TOKEN", "a\nb\0c\udcff"), ("EMPTY", "")),
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "below" / "secrets"


def test_what_is_put_is_had_again_by_another_agent(folder: Path) -> None:
    FileSecrets(folder).put(WORKSPACE, ALL)
    assert FileSecrets(folder).get(WORKSPACE) == ALL


def test_putting_replaces_and_forgetting_may_be_repeated(folder: Path) -> None:
    secrets = FileSecrets(folder)
    assert secrets.get(WORKSPACE) == RunSecrets()
    secrets.put(WORKSPACE, ALL)
    secrets.put(WORKSPACE, RunSecrets())
    assert secrets.get(WORKSPACE) == RunSecrets()
    for _ in range(2):
        secrets.forget(WORKSPACE)
    assert list(folder.iterdir()) == []


def test_only_its_owner_can_read_it(folder: Path) -> None:
    folder.mkdir(parents=True, mode=0o755)
    FileSecrets(folder).put(WORKSPACE, ALL)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    [file] = folder.iterdir()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600


def test_an_interrupted_put_leaves_what_was_there(folder: Path) -> None:
    secrets = FileSecrets(folder)
    secrets.put(WORKSPACE, ALL)
    (folder / f"{WORKSPACE}.new").write_text('{"credentials": [{"kind"')
    assert secrets.get(WORKSPACE) == ALL
    secrets.put(WORKSPACE, RunSecrets())
    assert [file.name for file in folder.iterdir()] == [f"{WORKSPACE}.json"]


WHOLE = {"kind": "token", "host": "h", "username": "u", "secret": SECRET, "plain_http": False}


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff\xfe",
        SECRET.encode(),
        b"[" * 100_000,
        b"[]",
        b"null",
        json.dumps({"credentials": [WHOLE]}).encode(),
        json.dumps({"credentials": [WHOLE | {"kind": SECRET}], "environment": []}).encode(),
        json.dumps({"credentials": [WHOLE | {"secret": 7}], "environment": []}).encode(),
        json.dumps({"credentials": [], "environment": [[SECRET]]}).encode(),
        json.dumps({"credentials": [], "environment": [["A", None]]}).encode(),
        json.dumps({"credentials": 1, "environment": []}).encode(),
    ],
)
def test_a_broken_file_counts_as_none_and_is_told_without_its_content(folder: Path, content: bytes) -> None:
    secrets = FileSecrets(folder)
    (folder / f"{WORKSPACE}.json").write_bytes(content)
    with capture_logs() as logs:
        assert secrets.get(WORKSPACE) == RunSecrets()
    assert [(line["event"], line["workspace"]) for line in logs] == [("secrets_unreadable", WORKSPACE)]
    assert SECRET not in repr(logs)


@pytest.mark.parametrize("name", ["../../etc/passwd", "", "abc", "abcdefgh234/", "ABCDEFGH2345"])
def test_what_is_no_id_names_no_file(folder: Path, name: str) -> None:
    with pytest.raises(Permanent) as failure:
        FileSecrets(folder).put(WorkspaceId(name), ALL)
    assert failure.value.code == "bad_id"


def test_secrets_are_in_no_repr() -> None:
    assert SECRET not in repr(ALL)
    assert "BEGIN" not in repr(ALL)
