"""The SSH agent in a workspace, asked by OpenSSH's own programs."""

from __future__ import annotations

import asyncio
import os
import struct
import subprocess
from collections.abc import Callable
from pathlib import Path

import asyncssh
import pytest
from structlog.testing import capture_logs

from fairwater.domain.workspaces.secrets import RunSecrets
from fairwater.node.credential_agent import FAILURE, answer_agent, load_identities
from fairwater.node.credential_service import CredentialService
from fairwater.node.secrets import FileSecrets

from .conftest import WORKSPACE, Served, ssh_key, token

KINDS = {
    "rsa": ("-t", "rsa", "-b", "2048"),
    "rsa-pem": ("-t", "rsa", "-b", "2048", "-m", "PEM"),
    "ed25519": ("-t", "ed25519"),
    "ecdsa-256": ("-t", "ecdsa", "-b", "256"),
    "ecdsa-384": ("-t", "ecdsa", "-b", "384", "-m", "PKCS8"),
    "ecdsa-521": ("-t", "ecdsa", "-b", "521"),
}


@pytest.fixture(scope="session")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    folder = tmp_path_factory.mktemp("keys")

    def make(kind: str) -> Path:
        path = folder / kind
        if not path.exists():
            subprocess.run(["ssh-keygen", "-q", *KINDS[kind], "-N", "", "-f", path], check=True)
        return path

    return make


async def run(served: Served, *command: str | Path, cwd: Path, stdin: bytes = b"") -> tuple[int, str]:
    process = await asyncio.create_subprocess_exec(
        *command,
        env={"PATH": os.environ["PATH"], "SSH_AUTH_SOCK": str(served.folder / "ssh-agent"), "HOME": str(cwd)},
        cwd=cwd,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    out, _ = await asyncio.wait_for(process.communicate(stdin), 30)
    assert process.returncode is not None
    return process.returncode, out.decode()


async def test_the_keys_are_listed_by_the_hosts_they_are_for(
    served: Served, keys: Callable[[str], Path], tmp_path: Path
) -> None:
    assert await run(served, "ssh-add", "-l", cwd=tmp_path) == (1, "The agent has no identities.\n")
    served.give(
        token("git.example.org"),
        ssh_key(keys("ed25519").read_text(), "git.example.org", "git"),
        ssh_key(keys("rsa").read_text(), "other.example.org"),
    )
    status, out = await run(served, "ssh-add", "-L", cwd=tmp_path)
    assert status == 0
    wanted = [
        [*keys(kind).with_suffix(".pub").read_text().split()[:2], name]
        for kind, name in (("ed25519", "git@git.example.org"), ("rsa", "other.example.org"))
    ]
    assert [line.split() for line in out.splitlines()] == wanted


@pytest.mark.parametrize("kind", KINDS)
async def test_ssh_keygen_signs_with_a_key_that_it_cannot_read(
    served: Served, keys: Callable[[str], Path], tmp_path: Path, kind: str
) -> None:
    served.give(ssh_key(keys(kind).read_text()))
    public = tmp_path / "key.pub"
    public.write_bytes((keys(kind).parent / f"{kind}.pub").read_bytes())
    status, out = await run(served, "ssh-keygen", "-Y", "sign", "-n", "file", "-f", public, cwd=tmp_path, stdin=b"text")
    assert status == 0, out
    (tmp_path / "signature").write_text(out[out.index("-----BEGIN") :])
    (tmp_path / "allowed").write_text(f"person {public.read_text()}")
    check = ("ssh-keygen", "-Y", "verify", "-n", "file", "-f", "allowed", "-I", "person", "-s", "signature")
    status, out = await run(served, *check, cwd=tmp_path, stdin=b"text")
    assert status == 0, out
    assert (await run(served, *check, cwd=tmp_path, stdin=b"changed"))[0] != 0


@pytest.mark.root
@pytest.mark.parametrize("kind", ["rsa", "ed25519", "ecdsa-256"])
async def test_ssh_logs_in_at_a_real_server(served: Served, keys: Callable[[str], Path], home: Path, kind: str) -> None:
    served.give(ssh_key(keys("rsa-pem").read_text()), ssh_key(keys(kind).read_text()))
    host_key = ("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", home / "host")
    assert (await run(served, *host_key, cwd=home))[0] == 0
    (home / "authorized").write_bytes((keys(kind).parent / f"{kind}.pub").read_bytes())
    Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)  # sshd's own, which Debian makes at boot
    (home / "config").write_text(
        f"HostKey {home}/host\nAuthorizedKeysFile {home}/authorized\nPasswordAuthentication no\n"
        "KbdInteractiveAuthentication no\nUsePAM no\nStrictModes no\nPermitRootLogin yes\nPrintMotd no\n"
    )
    server = f"/usr/sbin/sshd -i -f {home}/config -E {home}/log"
    status, out = await run(
        served, "ssh", "-F", "none", "-o", f"ProxyCommand={server}", "-o", "StrictHostKeyChecking=no",
        "-o", "UserKnownHostsFile=/dev/null", "-o", "BatchMode=yes", "-o", "LogLevel=ERROR", "root@example",
        "echo", "in", cwd=home,
    )  # fmt: skip
    assert (status, out) == (0, "in\n"), (home / "log").read_text()


async def test_nothing_can_be_added_removed_or_locked(
    served: Served, keys: Callable[[str], Path], tmp_path: Path
) -> None:
    served.give(ssh_key(keys("ed25519").read_text()))
    for command in (("ssh-add", str(keys("rsa"))), ("ssh-add", "-D"), ("ssh-add", "-d", str(keys("ed25519")))):
        assert (await run(served, *command, cwd=tmp_path))[0] != 0
    for kind in range(256):
        if kind not in (11, 13):
            assert answer_agent(bytes([kind]) + b"\0" * 64, ()) == FAILURE
    status, out = await run(served, "ssh-add", "-l", cwd=tmp_path)
    assert status == 0
    assert len(out.splitlines()) == 1


BROKEN = {
    "nothing": "",
    "no key": "junk that is the person's secret",
    "cut off": "-----BEGIN OPENSSH PRIVATE KEY-----\nb3BlbnNzaC1r\n-----END OPENSSH PRIVATE KEY-----\n",
    "not base 64": "-----BEGIN OPENSSH PRIVATE KEY-----\n!!!!\n-----END OPENSSH PRIVATE KEY-----\n",
    "pem of nothing": "-----BEGIN RSA PRIVATE KEY-----\nAAAA\n-----END RSA PRIVATE KEY-----\n",
    "no ascii": "-----BEGIN ÖPENSSH\udcff",
    "a public key": "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJ9kF0kQ4zv5yOa2bNn0n3cM5s2Nq7l9a9l0n3cM5s2N person",
}


@pytest.mark.parametrize("name", BROKEN)
async def test_a_broken_key_is_passed_over_and_told_without_its_content(
    served: Served, keys: Callable[[str], Path], tmp_path: Path, name: str
) -> None:
    served.give(ssh_key(BROKEN[name], "bad.example.org"), ssh_key(keys("ed25519").read_text()))
    with capture_logs() as logs:
        for _ in range(2):
            status, out = await run(served, "ssh-add", "-l", cwd=tmp_path)
            assert (status, len(out.splitlines())) == (0, 1)
    assert logs == [
        {
            "event": "ssh_key_unusable",
            "host": "bad.example.org",
            "log_level": "warning",
            "part": "credentials",
            "reason": "it is no private key",
            "workspace": WORKSPACE,
        }
    ]


@pytest.mark.parametrize("form", [(), ("-m", "PEM"), ("-m", "PKCS8")])
def test_a_key_with_a_passphrase_is_passed_over_and_said_to_have_one(tmp_path: Path, form: tuple[str, ...]) -> None:
    path = tmp_path / "key"
    subprocess.run(["ssh-keygen", "-q", "-t", "rsa", "-b", "2048", *form, "-N", "sesame", "-f", path], check=True)
    with capture_logs() as logs:
        assert load_identities((ssh_key(path.read_text()),), WORKSPACE) == ()
    assert [line["reason"] for line in logs] == ["it has a passphrase"]


def test_a_key_of_another_kind_is_passed_over() -> None:
    key = asyncssh.generate_private_key("ssh-ed448").export_private_key().decode()
    with capture_logs() as logs:
        assert load_identities((ssh_key(key),), WORKSPACE) == ()
    assert [line["reason"] for line in logs] == ["neither RSA, ECDSA nor Ed25519"]


def string(value: bytes) -> bytes:
    return struct.pack(">I", len(value)) + value


def test_rsa_signs_by_sha_2_only(keys: Callable[[str], Path]) -> None:
    [identity] = load_identities((ssh_key(keys("rsa").read_text()),), WORKSPACE)
    for flags, algorithm in ((2, b"rsa-sha2-256"), (4, b"rsa-sha2-512"), (6, b"rsa-sha2-512")):
        request = b"\x0d" + string(identity.blob) + string(b"data") + struct.pack(">I", flags)
        answer = answer_agent(request, (identity,))
        assert answer[0] == 14
        assert string(algorithm) in answer
    for flags in (0, 1, 8):
        request = b"\x0d" + string(identity.blob) + string(b"data") + struct.pack(">I", flags)
        assert answer_agent(request, (identity,)) == FAILURE


def test_a_key_that_is_not_there_and_a_malformed_request_are_failures(keys: Callable[[str], Path]) -> None:
    identities = load_identities((ssh_key(keys("ed25519").read_text()),), WORKSPACE)
    blob = identities[0].blob
    whole = b"\x0d" + string(blob) + string(b"data") + struct.pack(">I", 0)
    assert answer_agent(whole, identities)[0] == 14
    for length in range(len(whole)):
        assert answer_agent(whole[:length], identities) == FAILURE
    for message in (
        whole + b"\0",
        b"\x0d" + string(blob[:-1] + b"x") + string(b"data") + struct.pack(">I", 0),
        b"\x0d" + struct.pack(">I", 2**32 - 1) + blob,
        b"\x0b\x0b",
        b"",
    ):
        assert answer_agent(message, identities) == FAILURE


async def test_a_key_given_later_is_there_and_one_taken_back_is_gone(
    served: Served, keys: Callable[[str], Path], tmp_path: Path
) -> None:
    for kinds in (("rsa",), ("rsa", "ed25519"), ("ed25519",), ()):
        served.give(*(ssh_key(keys(kind).read_text()) for kind in kinds))
        _, out = await run(served, "ssh-add", "-L", cwd=tmp_path)
        assert out.count("ssh-") == len(kinds)


async def test_a_socket_far_down_is_served(tmp_path: Path, keys: Callable[[str], Path]) -> None:
    folder = tmp_path / ("d" * 60) / ("e" * 60)
    folder.mkdir(parents=True)
    assert len(str(folder)) > 108
    secrets = FileSecrets(tmp_path / "secrets")
    secrets.put(WORKSPACE, RunSecrets((ssh_key(keys("ed25519").read_text()),)))
    service = CredentialService(secrets)
    await service.open(folder, WORKSPACE)
    way = os.open(folder, os.O_PATH)
    reader, writer = await asyncio.open_unix_connection(f"/proc/self/fd/{way}/ssh-agent")
    os.close(way)
    writer.write(b"\0\0\0\x01\x0b")
    size = int.from_bytes(await reader.readexactly(4), "big")
    assert (await reader.readexactly(size))[:5] == b"\x0c\0\0\0\x01"
    writer.close()
    await writer.wait_closed()
    await service.close(folder)
    assert list(folder.iterdir()) == []
