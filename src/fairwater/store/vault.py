"""Seals what nobody may read in the database, its backups and its disk: AES-256-GCM with keys that are elsewhere.

What is sealed is bound to the place it stands in (`Place`): moved to another row, or with a changed host beside it, it
cannot be opened. Refuses to know where the keys come from (`vault_keys`) and what is sealed (`secrets`).

A sealed value is one byte of format (1), 8 bytes that name the key, a nonce of 12 bytes, then the ciphertext with its
tag of 16 bytes (NIST SP 800-38D; with random nonces good for 2**32 values under one key).
"""

from __future__ import annotations

import hashlib
import hmac
import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from fairwater.domain.failure import Permanent

_FORMAT = b"\x01"
_ID_BYTES = 8
_NONCE_BYTES = 12
_HEAD_BYTES = 1 + _ID_BYTES + _NONCE_BYTES
_PROOF = b"fairwater"


@dataclass(frozen=True, slots=True)
class Place:
    """Where a sealed value stands: the table, whose it is, and all beside it that must not be changed."""

    table: str
    owner: str
    names: tuple[str, ...] = ()

    def data(self) -> bytes:
        """Each part with its length before it, so that no two places have the same."""
        parts = [part.encode("utf-8", "surrogatepass") for part in (self.table, self.owner, *self.names)]
        return b"".join(len(part).to_bytes(4, "big") + part for part in parts)


class Vault:
    """`keys` are of 32 bytes: the first seals, every one opens."""

    def __init__(self, keys: Collection[bytes]) -> None:
        if not keys or any(len(key) != 32 for key in keys):
            raise ValueError("a vault needs keys of 32 bytes")
        self._ciphers = {_name_of(key): AESGCM(key) for key in keys}
        self._sealing = next(iter(self._ciphers))

    def __repr__(self) -> str:
        return f"Vault({', '.join(self._ciphers)})"

    @property
    def key_id(self) -> str:
        """The name of the key that seals, which says nothing of the key."""
        return self._sealing

    def seal(self, value: bytes, place: Place) -> bytes:
        nonce = os.urandom(_NONCE_BYTES)
        sealed = self._ciphers[self._sealing].encrypt(nonce, value, place.data())
        return _FORMAT + bytes.fromhex(self._sealing) + nonce + sealed

    def open(self, sealed: bytes, place: Place) -> bytes:
        """What was sealed for `place`.

        Raises:
            Permanent: `wrong_master_key`, where its key is not among these; `sealed_damaged`, where it was changed.
        """
        if len(sealed) < _HEAD_BYTES or sealed[:1] != _FORMAT:
            raise _damaged(place)
        cipher = self._ciphers.get(key_of(sealed))
        if cipher is None:
            raise wrong_master_key(key_of(sealed), self._ciphers)
        try:
            return cipher.decrypt(sealed[1 + _ID_BYTES : _HEAD_BYTES], sealed[_HEAD_BYTES:], place.data())
        except InvalidTag:
            raise _damaged(place) from None

    def proof(self) -> bytes:
        """To be kept in the database: who can open it has the key."""
        return self.seal(_PROOF, _proof_place(self._sealing))

    def check(self, proofs: Mapping[str, bytes]) -> None:
        """That every key with a proof, by its name, is among these.

        Raises:
            Permanent: `wrong_master_key`.
        """
        for name, proof in proofs.items():
            if name not in self._ciphers:
                raise wrong_master_key(name, self._ciphers)
            self.open(proof, _proof_place(name))


def key_of(sealed: bytes) -> str:
    """The name of the key that `sealed` was sealed with."""
    return sealed[1 : 1 + _ID_BYTES].hex()


def wrong_master_key(needed: str, there: Collection[str]) -> Permanent:
    return Permanent(
        f"the secrets in this database are sealed with master key {needed}, and this server has {', '.join(there)}: "
        "put back the key that was used before (server.master_key, or the file that server.master_key_file names, by "
        "default server/master.key in the data directory). Where it is lost, so are the secrets: see "
        "docs/configuration.md",
        code="wrong_master_key",
    )


def _name_of(key: bytes) -> str:
    return hmac.new(key, b"fairwater vault key", hashlib.sha256).digest()[:_ID_BYTES].hex()


def _proof_place(name: str) -> Place:
    return Place("vault_keys", name)


def _damaged(place: Place) -> Permanent:
    return Permanent(
        f"a sealed value of {place.owner} in the table '{place.table}' was changed outside of Fairwater, or belongs "
        "elsewhere: remove it and add it again",
        code="sealed_damaged",
    )
