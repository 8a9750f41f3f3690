"""Why an image could not be brought in, from what skopeo said, and what to do about it.

A registry's own words are in there, and may be anything: they choose a code only where skopeo itself quotes them.
"""

from __future__ import annotations

import re
from urllib.parse import urlsplit

from fairwater.domain.failure import Permanent, Temporary
from fairwater.domain.images.reference import Kind, Reference

# The first that is found decides; what is more telling comes first.
_SIGNS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("disk_full", ("no space left on device", "disk quota exceeded")),
    (
        "image_damaged",
        (
            "digest did not match", "does not match expected digest", "did not match", "size mismatch",
            "does not match manifest digest", "unexpected digest", "invalid checksum",
        ),
    ),
    ("wrong_architecture", ("no image found in manifest list", "no image found in image index")),
    ("no_such_registry", ("no such host", "name or service not known", "server misbehaving")),
    (
        "plain_http",
        ("server gave http response to https client", "first record does not look like a tls handshake"),
    ),
    ("bad_certificate", ("x509:", "certificate signed by unknown authority", "tls: failed to verify")),
    (
        "registry_away",
        (
            "toomanyrequests", "too many requests", "status code 429", "status: 429", "http status: 5", "status 50",
            "received unexpected http status: 5", "status code 50", "internal server error", "bad gateway",
            "service unavailable", "gateway timeout",
        ),
    ),
    (
        "image_denied",
        (
            "unauthorized", "authentication required", "requested access to the resource is denied", "denied:",
            "invalid username/password", "status code 401", "status code 403", "status: 401", "status: 403",
            "forbidden", "unable to retrieve auth token",
        ),
    ),
    (
        "no_such_image",
        (
            "manifest unknown", "name unknown", "repository name not known", "not found", "status code 404",
            "status: 404", "no such file or directory", "no image found", "more than one image", "no descriptor found",
            "reference is invalid", "blob unknown",
        ),
    ),
    (
        "registry_away",
        (
            "connection refused", "no route to host", "network is unreachable", "i/o timeout", "deadline exceeded",
            "connection reset", "unexpected eof", "tls handshake timeout", "operation timed out", "broken pipe",
            "connection timed out", "eof",
        ),
    ),
    ("bad_image", ("unsupported manifest", "unsupported media type", "invalid character", "error parsing",
                   "unexpected end of json")),
)  # fmt: skip


def explain_failure(stderr: str, reference: Reference) -> Permanent | Temporary:
    """The codes are those of `ports.images.Images.prepare`."""
    lowered = stderr.lower()
    code = next((code for code, signs in _SIGNS if any(sign in lowered for sign in signs)), "")
    return _failure(code, reference, last_words(stderr))


def _failure(code: str, reference: Reference, words: str) -> Permanent | Temporary:
    where = _place(reference)
    match code:
        case "disk_full":
            return Temporary(
                f"there is no room for {reference} on this node: stop workspaces of other images, or ask the operator "
                "for more (images.disk)",
                code="disk_full",
                delay_s=10,
            )
        case "image_damaged":
            return damaged(reference, words)
        case "wrong_architecture":
            return Permanent(
                f"{reference} is not made for this machine ({words}): choose another tag, or build one",
                code="wrong_architecture",
            )
        case "no_such_registry":
            return Permanent(
                f"there is no registry {where!r}: check the spelling of {reference}", code="no_such_registry"
            )
        case "plain_http":
            return Permanent(
                f"the registry {where} speaks no TLS: an operator can list it in images.insecure_registries",
                code="no_such_registry",
            )
        case "bad_certificate":
            return Permanent(
                f"the certificate of the registry {where} is not trusted on this node: the operator can install its "
                f"authority, or list the registry in images.insecure_registries ({words})",
                code="no_such_registry",
            )
        case "image_denied":
            return Permanent(
                f"{reference} cannot be read without the right credentials, or is not there: check its name, and "
                f"where it is private add a token, or replace one that may have expired, with 'fairwater credential "
                f"add {where}' (--plain-http for a registry without TLS)",
                code="image_denied",
            )
        case "no_such_image" if reference.local:
            return Permanent(f"{reference.path} has no such image ({words}): check the path and tag", code=code)
        case "no_such_image":
            return Permanent(f"{where} has no image {reference}: check its name and tag", code=code)
        case "bad_image":
            return Permanent(f"{reference} is not an image that can be read: {words}", code=code)
        case "registry_away":
            return Temporary(f"the registry {where} does not answer as it should: {words}", code=code, delay_s=5)
        case _:
            return Temporary(f"{reference} could not be brought in: {words}", code="registry_away", delay_s=5)


def damaged(reference: Reference, what: str) -> Permanent:
    """Bytes that are not those which their digest names."""
    return Permanent(
        f"{reference} is damaged: {what}; its registry or folder does not hold what it says it does: push it again",
        code="image_damaged",
    )


def stalled(reference: Reference, stall_s: float) -> Temporary:
    return Temporary(
        f"no byte of {reference} came for {stall_s:.0f} s: the registry {_place(reference)} has stalled; it is tried "
        "again",
        code="registry_stalled",
        delay_s=5,
    )


def local_only(reference: Reference) -> Permanent:
    return Permanent(
        f"{reference} is on the machine's own disk, which only its local administrator may name: push it to a registry",
        code="local_only",
    )


def _place(reference: Reference) -> str:
    return reference.host if reference.kind is Kind.REGISTRY else reference.path


_LOG_LINE = re.compile(r'time="[^"]*" level=\w+ msg=')
_SECRET_IN_URL = re.compile(r"(https?://)[^/\s\"']*@")
_URL = re.compile(r"https?://[^\s\"']+")


def last_words(stderr: str) -> str:
    """The last line of what skopeo said, without control characters, credentials or queries, at most 300 signs."""
    lines = [line.strip() for line in re.split(r"[\r\n]+", stderr) if line.strip()]
    line = _LOG_LINE.sub("", lines[-1] if lines else "it gave no reason").strip('"').replace('\\"', '"')
    line = _SECRET_IN_URL.sub(r"\1", line)
    line = _URL.sub(lambda found: _without_query(found[0]), line)
    return "".join(sign if sign.isprintable() else "?" for sign in line)[:300]


def _without_query(url: str) -> str:
    """Registries hand out addresses that open a blob to whoever has them."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return "an address"
    return f"{parts.scheme}://{parts.netloc}{parts.path}"
