"""Whether a text is a private SSH key that a machine can use, and the fingerprint of its public half.

Nothing of the key is in any message. The key is kept as written: it is not for Fairwater to change it.
"""

from __future__ import annotations

import base64
import hashlib
import re

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import dsa, ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_pem_private_key,
    load_ssh_private_key,
)

from fairwater.domain.failure import Permanent

KEY_BYTES_MAX = 4 * 1024
"""An RSA key of 4096 bits has 3.3 KiB, and is checked in 0.3 s; one of 16384 bits takes 30 s."""
_RSA_BITS_MIN = 2048
_BEGIN = re.compile(r"-----BEGIN ([A-Z0-9 ]*PRIVATE KEY)-----")


def parse_ssh_key(text: str) -> tuple[str, str]:
    """The key with one line end behind it, and its fingerprint as `ssh-keygen -l` prints it: `SHA256:…`.

    Raises:
        Permanent: `bad_ssh_key`.
    """
    key = text.replace("\r\n", "\n").strip() + "\n"
    if len(key) > KEY_BYTES_MAX:
        raise _bad(f"it has more than {KEY_BYTES_MAX // 1024} KiB: make one with ssh-keygen -t ed25519")
    if key.startswith(("ssh-", "ecdsa-", "sk-", "---- BEGIN SSH2")):
        raise _bad("it is the public half: give the private one, such as ~/.ssh/id_ed25519")
    begin = _BEGIN.match(key)
    if begin is None:
        raise _bad("it does not begin with '-----BEGIN … PRIVATE KEY-----'")
    load = load_ssh_private_key if begin[1] == "OPENSSH PRIVATE KEY" else load_pem_private_key
    try:
        private = load(key.encode(), password=None)
    except TypeError:
        raise _bad("it has a passphrase, which nobody could type: make a key without one for Fairwater") from None
    except (ValueError, UnsupportedAlgorithm):
        locked = "ENCRYPTED" in key
        raise _bad("it has a passphrase: make a key without one" if locked else "it cannot be read") from None
    if isinstance(private, dsa.DSAPrivateKey):
        raise _bad("it is a DSA key, which servers no longer take: make one with ssh-keygen -t ed25519")
    if isinstance(private, rsa.RSAPrivateKey) and private.key_size < _RSA_BITS_MIN:
        raise _bad(f"it is an RSA key of less than {_RSA_BITS_MIN} bits: make one with ssh-keygen -t ed25519")
    if not isinstance(private, (rsa.RSAPrivateKey, ec.EllipticCurvePrivateKey, ed25519.Ed25519PrivateKey)):
        raise _bad("it is of a kind that SSH does not know: make one with ssh-keygen -t ed25519")
    try:
        public = private.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH)
    except ValueError:  # a curve that SSH has no name for
        raise _bad("it is of a kind that SSH does not know: make one with ssh-keygen -t ed25519") from None
    digest = hashlib.sha256(base64.b64decode(public.split()[1])).digest()
    return key, "SHA256:" + base64.b64encode(digest).decode().rstrip("=")


def _bad(why: str) -> Permanent:
    return Permanent(f"this is no private SSH key that can be used: {why}", code="bad_ssh_key")
