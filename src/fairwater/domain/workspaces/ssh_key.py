"""Whether a text is a private SSH key that a machine can use, and the fingerprint of its public half.

Nothing of the key is in any message. The key is kept as written: it is not for Fairwater to change it.

Whoever has an account may send anything here, and the libraries look for primes among the numbers of a key, for as long
as that takes and with the whole process waiting: they are given only numbers and kinds of keys that take a moment.
"""

from __future__ import annotations

import base64
import binascii
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
"""An RSA key of 4096 bits has 3.3 KiB."""
_RSA_BITS_MIN, _RSA_BITS_MAX = 2048, 4096
_OPENSSH, _PKCS8 = "OPENSSH PRIVATE KEY", "PRIVATE KEY"
_FORM = re.compile(
    r"-----BEGIN ((?:OPENSSH |RSA |EC |DSA |ENCRYPTED )?PRIVATE KEY)-----\n([^-]*(?:-(?!----)[^-]*)*)-----END \1-----\n"
)
_ALGORITHM = re.compile(
    rb"\x30(?:[^\x80-\xff]|\x81.|\x82..)\x02\x01.\x30(?:[^\x80-\xff]|\x81.|\x82..)\x06(.)", re.DOTALL
)
"""Where a PKCS #8 key (RFC 5208) says what it is: an object identifier, of as many bytes as the group holds."""
_ALGORITHMS = frozenset(
    bytes.fromhex(identifier)
    for identifier in ("2a864886f70d010101", "2a8648ce380401", "2a8648ce3d0201", "2b656e", "2b656f", "2b6570", "2b6571")
)
"""RSA, DSA, elliptic curves, X25519, X448, Ed25519, Ed448: to load one of these, no prime is looked for."""


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
    if not key.startswith("-----BEGIN ") or "PRIVATE KEY-----" not in key.partition("\n")[0]:
        raise _bad("it does not begin with '-----BEGIN … PRIVATE KEY-----'")
    private = _loaded(key)
    if isinstance(private, dsa.DSAPrivateKey):
        raise _bad("it is a DSA key, which servers no longer take: make one with ssh-keygen -t ed25519")
    if isinstance(private, rsa.RSAPrivateKey):
        _check_rsa(private)
    elif not isinstance(private, (ec.EllipticCurvePrivateKey, ed25519.Ed25519PrivateKey)):
        raise _bad("it is of a kind that SSH does not know: make one with ssh-keygen -t ed25519")
    try:
        public = private.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH)
    except ValueError:  # a curve that SSH has no name for
        raise _bad("it is of a kind that SSH does not know: make one with ssh-keygen -t ed25519") from None
    digest = hashlib.sha256(base64.b64decode(public.split()[1])).digest()
    return key, "SHA256:" + base64.b64encode(digest).decode().rstrip("=")


def _loaded(key: str) -> object:
    form = _FORM.fullmatch(key)
    if form is None:
        raise _bad("it cannot be read: a key is one block, from BEGIN to END, and nothing else")
    if form[1] == _PKCS8 and not _is_usual(form[2]):
        raise _bad("it is of a kind that SSH does not know: make one with ssh-keygen -t ed25519")
    load = load_ssh_private_key if form[1] == _OPENSSH else load_pem_private_key
    try:
        return load(key.encode(), password=None, unsafe_skip_rsa_key_validation=True)  # `_check_rsa` does it
    except TypeError:
        raise _bad("it has a passphrase, which nobody could type: make a key without one for Fairwater") from None
    except (ValueError, UnsupportedAlgorithm):
        locked = "ENCRYPTED" in key
        raise _bad("it has a passphrase: make a key without one" if locked else "it cannot be read") from None


def _is_usual(body: str) -> bool:
    """Whether a PKCS #8 key, in base64, is of `_ALGORITHMS`."""
    try:
        content = base64.b64decode("".join(body.split()), validate=True)
    except (binascii.Error, ValueError):
        return False
    found = _ALGORITHM.match(content)
    return found is not None and content[found.end() : found.end() + found[1][0]] in _ALGORITHMS


def _check_rsa(private: rsa.RSAPrivateKey) -> None:
    """All that makes the numbers a key, but for whether the two factors are prime: who gives others has no key that
    works, and no more."""
    if private.key_size < _RSA_BITS_MIN:
        raise _bad(f"it is an RSA key of less than {_RSA_BITS_MIN} bits: make one with ssh-keygen -t ed25519")
    if private.key_size > _RSA_BITS_MAX:
        raise _bad(f"it is an RSA key of more than {_RSA_BITS_MAX} bits: make one with ssh-keygen -t ed25519")
    numbers = private.private_numbers()
    p, q, d, public = numbers.p, numbers.q, numbers.d, numbers.public_numbers
    # As every tool makes them: each factor has half of the bits. What tests a longer one for being prime takes minutes.
    if max(p.bit_length(), q.bit_length()) > (private.key_size + 1) // 2 or p * q != public.n or min(p, q) < 3:
        raise _bad("its numbers are not those of an RSA key")
    right = (
        (d * public.e - 1) % (p - 1) == (d * public.e - 1) % (q - 1) == 0
        and numbers.dmp1 == d % (p - 1)
        and numbers.dmq1 == d % (q - 1)
        and numbers.iqmp * q % p == 1
    )
    if not right:
        raise _bad("its numbers are not those of an RSA key")


def _bad(why: str) -> Permanent:
    return Permanent(f"this is no private SSH key that can be used: {why}", code="bad_ssh_key")
