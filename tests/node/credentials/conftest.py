"""A credential service in this process, and a view of it as a workspace has it."""

from __future__ import annotations

import asyncio
import os
import subprocess
import tempfile
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from tests.node.init.program import build_init

from fairwater.domain.ids import WorkspaceId
from fairwater.domain.workspaces.secrets import Credential, CredentialKind, RunSecrets
from fairwater.node.credential_service import CredentialService
from fairwater.node.secrets import FileSecrets

WORKSPACE = WorkspaceId("abcdefgh2345")
SECRET = "ghp-the-secret-that-nobody-may-see"
_ENTER = """
set -e
mount -t tmpfs none /run
mkdir -p /run/fairwater/service
mount --bind -o ro "$0" /run/fairwater/service
mount -o remount,bind,ro /run/fairwater/service
cp "$1" /run/fairwater/git-credential-fairwater
chmod 711 /run/fairwater/git-credential-fairwater
shift
exec setpriv --reuid 1000 --regid 1000 --clear-groups --inh-caps=-all --bounding-set=-all --no-new-privs "$@"
"""


def token(host: str, username: str = "person", *, plain_http: bool = False, secret: str = SECRET) -> Credential:
    return Credential(CredentialKind.TOKEN, host, username, secret, plain_http)


def ssh_key(secret: str, host: str = "git.example.org", username: str = "") -> Credential:
    return Credential(CredentialKind.SSH_KEY, host, username, secret)


@dataclass
class Served:
    """The service for one workspace; `folder` is what the sandbox sees, `home` its user's."""

    service: CredentialService
    secrets: FileSecrets
    folder: Path
    home: Path
    program: Path
    extra: dict[str, str] = field(default_factory=dict)

    def give(self, *credentials: Credential) -> None:
        self.secrets.put(WORKSPACE, RunSecrets(credentials))

    async def run(self, *command: str, stdin: bytes = b"") -> tuple[int, str, str]:
        """Runs a command as the workspace's user, in a namespace where everything is at its place."""
        environment = {
            "PATH": os.environ["PATH"],
            "HOME": str(self.home),
            "GIT_TERMINAL_PROMPT": "0",
            **self.service.environment(WORKSPACE),
            **self.extra,
        }
        process = await asyncio.create_subprocess_exec(
            "unshare", "--mount", "sh", "-c", _ENTER, self.folder, self.program, *command,
            env=environment, cwd="/", stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip
        out, err = await asyncio.wait_for(process.communicate(stdin), 60)
        assert process.returncode is not None
        return process.returncode, out.decode(), err.decode()

    async def helper(self, *arguments: str, stdin: bytes = b"") -> tuple[int, str, str]:
        return await self.run("/run/fairwater/git-credential-fairwater", *arguments, stdin=stdin)


@pytest.fixture(scope="session")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_init(tmp_path_factory.mktemp("helper"))


@pytest.fixture
def home() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="fairwater-home-") as name:
        os.chown(name, 1000, 1000)
        yield Path(name)


@pytest.fixture
def short() -> Iterator[Path]:
    """A folder whose path leaves room for a socket's name."""
    with tempfile.TemporaryDirectory(prefix="fw") as name:
        Path(name).chmod(0o755)
        yield Path(name)


@pytest.fixture
async def served(short: Path, home: Path, tmp_path: Path, program: Path) -> AsyncIterator[Served]:
    secrets = FileSecrets(tmp_path / "secrets")
    service = CredentialService(secrets, message_within_s=0.5)
    await service.open(short, WORKSPACE)
    yield Served(service, secrets, short, home, program)
    await service.close(short)
