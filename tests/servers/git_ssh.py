"""A real sshd that serves git, with a host key, a configuration and authorised keys of its own."""

from __future__ import annotations

import os
import pwd
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from tests.servers.address import free_port

_SSHD = Path("/usr/sbin/sshd")


@dataclass(frozen=True)
class SshServer:
    address: str
    port: int
    user: str
    key: str
    """The private key that is let in."""

    @property
    def host(self) -> str:
        return f"{self.address}:{self.port}"

    def url_of(self, bare: Path) -> str:
        return f"ssh://{self.user}@{self.host}{bare}"


def new_key(folder: Path, name: str) -> str:
    """A private key; the public one lies beside it in `folder`."""
    path = folder / name
    subprocess.run(("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", name, "-f", str(path)), check=True)
    return path.read_text()


@contextmanager
def ssh_server(folder: Path, address: str) -> Iterator[SshServer]:
    """Runs for as long as the block lasts, as this process's user, who alone may log in."""
    if not _SSHD.exists():
        pytest.skip("sshd is not installed (apt install openssh-server)")
    folder.mkdir(parents=True)
    new_key(folder, "host")
    key = new_key(folder, "client")
    port = free_port(address)
    if os.geteuid() == 0:
        Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)
    (folder / "config").write_text(
        f"ListenAddress {address}:{port}\nHostKey {folder}/host\nAuthorizedKeysFile {folder}/client.pub\n"
        f"PidFile none\nStrictModes no\nUsePAM no\nPasswordAuthentication no\nPermitRootLogin prohibit-password\n"
        "AuthenticationMethods publickey\n"
    )
    command = (str(_SSHD), "-D", "-e", "-f", str(folder / "config"))
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        said = ""
        while "Server listening" not in said:
            line = process.stderr.readline()
            assert line, f"sshd ended: {said}"
            said += line
        draining = threading.Thread(target=process.stderr.read, daemon=True)
        draining.start()
        try:
            yield SshServer(address, port, pwd.getpwuid(os.geteuid()).pw_name, key)
        finally:
            process.terminate()
            draining.join()
