"""The part of the SSH agent protocol that a workspace needs: which keys there are, and signatures by them.

Nothing can be added, removed, locked or read out. The form is draft-ietf-sshm-ssh-agent's. Keys are parsed, and
signatures made, where they may take their time: these calls block.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import structlog

from fairwater.domain.ids import WorkspaceId
from fairwater.domain.workspaces.secrets import Credential

if TYPE_CHECKING:
    from asyncssh import SSHKey

MESSAGE_MAX = 64 * 1024
"""Bytes: far beyond what is signed to log in, or of a commit, of which the digest is signed."""

FAILURE = b"\x05"
_LIST, _IDENTITIES, _SIGN, _SIGNATURE = 11, 12, 13, 14
_RSA = b"ssh-rsa"
_RSA_ALGORITHMS = ((4, b"rsa-sha2-512"), (2, b"rsa-sha2-256"))
"""By the flag of the request; without one it would be SHA-1, which is refused."""
_OTHERS = (b"ssh-ed25519", b"ecdsa-sha2-nistp256", b"ecdsa-sha2-nistp384", b"ecdsa-sha2-nistp521")


@dataclass(frozen=True, slots=True)
class Identity:
    """A private key with the name it is listed by."""

    blob: bytes
    comment: str
    key: SSHKey = field(repr=False)

    def sign(self, data: bytes, flags: int) -> bytes | None:
        """A signature with its algorithm; None where none is made in the way that was asked for."""
        algorithm: bytes | None = self.key.algorithm
        if algorithm == _RSA:
            algorithm = next((name for flag, name in _RSA_ALGORITHMS if flags & flag), None)
        try:
            return None if algorithm is None else self.key.sign(data, algorithm)
        except ValueError:  # a key too small for the digest
            return None


def load_identities(credentials: Sequence[Credential], workspace: WorkspaceId) -> tuple[Identity, ...]:
    """The usable keys; of the others a line in the log says which host they are for, and nothing of their content."""
    import asyncssh  # takes half a second, and few nodes ever need it

    log = structlog.get_logger().bind(part="credentials", workspace=workspace)
    identities = []
    for credential in credentials:
        try:
            key = asyncssh.import_private_key(credential.secret)
        except asyncssh.KeyEncryptionError:
            log.warning("ssh_key_unusable", host=credential.host, reason="it has a passphrase")
            continue
        except (ValueError, TypeError, OverflowError) as error:
            reason = "it has a passphrase" if "assphrase" in str(error) else "it is no private key"
            log.warning("ssh_key_unusable", host=credential.host, reason=reason)
            continue
        if key.algorithm not in (_RSA, *_OTHERS):
            log.warning("ssh_key_unusable", host=credential.host, reason="neither RSA, ECDSA nor Ed25519")
            continue
        comment = f"{credential.username}@{credential.host}" if credential.username else credential.host
        identities.append(Identity(key.public_data, comment, key))
    return tuple(identities)


def is_question(message: bytes) -> bool:
    """Whether it takes the keys to answer; all else is a failure."""
    return message[:1] in (bytes([_LIST]), bytes([_SIGN]))


def answer_agent(message: bytes, identities: Sequence[Identity]) -> bytes:
    """The answer to one message; both without the length in front."""
    if message == bytes([_LIST]):
        listed = b"".join(_string(one.blob) + _string(one.comment.encode(errors="replace")) for one in identities)
        return struct.pack(">BI", _IDENTITIES, len(identities)) + listed
    if message[:1] != bytes([_SIGN]):
        return FAILURE
    try:
        blob, rest = _take_string(message[1:])
        data, rest = _take_string(rest)
        (flags,) = struct.unpack(">I", rest)
    except struct.error:
        return FAILURE
    identity = next((one for one in identities if one.blob == blob), None)
    signature = identity.sign(data, flags) if identity else None
    return bytes([_SIGNATURE]) + _string(signature) if signature else FAILURE


def _string(value: bytes) -> bytes:
    return struct.pack(">I", len(value)) + value


def _take_string(data: bytes) -> tuple[bytes, bytes]:
    """Raises struct.error where there is none."""
    (size,) = struct.unpack_from(">I", data)
    if len(data) < 4 + size:
        raise struct.error("a string goes beyond its message")
    return data[4 : 4 + size], data[4 + size :]
