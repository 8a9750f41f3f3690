from __future__ import annotations

import base64
import hashlib
import textwrap
import time

import pytest
from cryptography.hazmat.primitives.asymmetric import dsa, ec, ed448, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from fairwater.domain.failure import Permanent
from fairwater.domain.workspaces.ssh_key import parse_ssh_key

WITH_A_PASSPHRASE = """\
-----BEGIN OPENSSH PRIVATE KEY-----
b3BlbnNzaC1rZXktdjEAAAAACmFlczI1Ni1jdHIAAAAGYmNyeXB0AAAAGAAAABBustZ1Rh
xDLiK3rWRMpShfAAAAEAAAAAEAAAAzAAAAC3NzaC1lZDI1NTE5AAAAIEsAVmI74fQgwqUT
at1dbE9zqd1002PjKkqecI1VieXhAAAAkDaPCnsRJD/T4qd1anAB+FgNeC+BvsVtAH1MhH
O0fh5JTDzn07EFucFTP2pp2Auon3bJOl3ga8pVXXfMb39i2RzPVLpbmtTdJxLOD+odZtEj
OfNEpXle5U/0KbSsUBQRK+F3ZOPkVcqLTANj3Sd/WboxF550rJ99e9fqTl/dQVZOTNOkQC
jg8qNO0pimdWRapw==
-----END OPENSSH PRIVATE KEY-----
"""
RSA = rsa.generate_private_key(65537, 2048)
KEYS: dict[str, rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey] = {
    "ed25519": ed25519.Ed25519PrivateKey.generate(),
    "ecdsa": ec.generate_private_key(ec.SECP256R1()),
    "rsa": RSA,
}


@pytest.mark.parametrize("form", [PrivateFormat.OpenSSH, PrivateFormat.PKCS8, PrivateFormat.TraditionalOpenSSL])
@pytest.mark.parametrize("kind", KEYS)
def test_a_key_in_each_usual_form_has_the_fingerprint_of_its_public_half(kind: str, form: PrivateFormat) -> None:
    key = KEYS[kind]
    if kind == "ed25519" and form is PrivateFormat.TraditionalOpenSSL:
        form = PrivateFormat.PKCS8
    text = key.private_bytes(Encoding.PEM, form, NoEncryption()).decode()
    public = key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).split()[1]
    digest = base64.b64encode(hashlib.sha256(base64.b64decode(public)).digest()).decode().rstrip("=")
    assert parse_ssh_key(text) == (text, f"SHA256:{digest}")
    assert parse_ssh_key(f"\n{text.replace(chr(10), chr(13) + chr(10))}  ") == (text, f"SHA256:{digest}")


def refused(text: str) -> str:
    with pytest.raises(Permanent) as caught:
        parse_ssh_key(text)
    assert caught.value.code == "bad_ssh_key"
    return caught.value.message


def pem(key: rsa.RSAPrivateKey | dsa.DSAPrivateKey | ec.EllipticCurvePrivateKey | ed448.Ed448PrivateKey) -> str:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "does not begin with"),
        ("ssh-ed25519 AAAAC3NzaC1lZDI1NTE5 me", "public half"),
        ("-----BEGIN OPENSSH PRIVATE KEY-----\nnonsense\n-----END OPENSSH PRIVATE KEY-----", "cannot be read"),
        ("-----BEGIN RSA PRIVATE KEY-----\nAAAA\n-----END RSA PRIVATE KEY-----", "cannot be read"),
        ("-----BEGIN PRIVATE KEY-----" + "A" * 5000, "more than 4 KiB"),
        (WITH_A_PASSPHRASE, "passphrase"),
        (WITH_A_PASSPHRASE[:200] + "\n-----END OPENSSH PRIVATE KEY-----", "cannot be read"),
        (pem(rsa.generate_private_key(65537, 1024)), "less than 2048 bits"),
        (pem(dsa.generate_private_key(1024)), "DSA"),
        (pem(ed448.Ed448PrivateKey.generate()), "SSH does not know"),
        (pem(ec.generate_private_key(ec.SECP256K1())), "SSH does not know"),
    ],
)
def test_what_cannot_be_used_is_refused_with_the_reason(text: str, said: str) -> None:
    assert said in refused(text)


def test_a_refused_key_is_not_repeated() -> None:
    assert WITH_A_PASSPHRASE.splitlines()[2][:20] not in refused(WITH_A_PASSPHRASE)


def der(tag: int, *parts: bytes) -> bytes:
    content = b"".join(parts)
    size = len(content).to_bytes((len(content).bit_length() + 7) // 8, "big")
    return bytes([tag]) + (size if len(content) < 128 else bytes([0x80 | len(size)]) + size) + content


def number(value: int) -> bytes:
    return der(2, value.to_bytes(value.bit_length() // 8 + 1, "big"))


def block(kind: str, content: bytes) -> str:
    body = "\n".join(textwrap.wrap(base64.b64encode(content).decode(), 64))
    return f"-----BEGIN {kind}-----\n{body}\n-----END {kind}-----\n"


LARGE_PRIME = 2**9689 - 1
"""To find out that it is one takes a minute."""


def diffie_hellman() -> bytes:
    parameters = der(0x30, der(6, bytes.fromhex("2a864886f70d010301")), der(0x30, number(LARGE_PRIME), number(2)))
    return der(0x30, number(0), parameters, der(4, number(5)))


@pytest.mark.parametrize(
    "text",
    [
        block("RSA PRIVATE KEY", der(0x30, *map(number, (0, 15, 65537, 3, LARGE_PRIME, 3, 1, 1, 1)))),
        block("RSA PRIVATE KEY", der(0x30, *map(number, (0, LARGE_PRIME * 3, 65537, 3, LARGE_PRIME, 3, 1, 1, 1)))),
        block("RSA PRIVATE KEY", der(0x30, *map(number, (0, 2**4000 + 1, 65537, 3, LARGE_PRIME, 3, 1, 1, 1)))),
        block("PRIVATE KEY", diffie_hellman()),
        block("EC PRIVATE KEY", b"") + block("PRIVATE KEY", diffie_hellman()),
        block("SOME PRIVATE KEY", b"") + block("PRIVATE KEY", diffie_hellman()),
    ],
)
def test_no_large_prime_is_looked_for_while_everybody_waits(text: str) -> None:
    assert len(text) < 4096
    began = time.process_time()
    refused(text)
    assert time.process_time() - began < 2


def test_an_rsa_key_whose_numbers_do_not_belong_together_is_refused() -> None:
    found = RSA.private_numbers()
    wrong = rsa.RSAPrivateNumbers(
        found.p, found.q, found.d + 2, found.dmp1, found.dmq1, found.iqmp, found.public_numbers
    ).private_key(unsafe_skip_rsa_key_validation=True)
    assert "numbers" in refused(pem(wrong))
