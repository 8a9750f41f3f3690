"""What git asks of a credential helper, and the answer out of a run's secrets. Pure.

A credential goes to its own host only, by https; by http only where the person said so. The form is git's, see
gitcredentials(7): lines of `name=value`, an empty one at the end.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from fairwater.domain.workspaces.secrets import Credential, CredentialKind, RunSecrets

QUESTION_MAX = 16 * 1024
"""Bytes; the helper has room for as much."""
NOTHING = b""
"""git goes on to the next helper, or asks the person."""

_USUAL_PORTS = {"https": ":443", "http": ":80"}
_HOST = re.compile(r"[a-z0-9.:_\[\]-]+")
_ANY_USERNAME = "git"
"""Where there is a token only: hosts take it with any name but none."""


def answer_git(question: bytes, secrets: RunSecrets) -> bytes:
    """The answer to a `get`, or nothing."""
    asked = _attributes(question)
    protocol = asked.get("protocol", "")
    if protocol not in _USUAL_PORTS:
        return NOTHING
    host = asked.get("host", "").lower().removesuffix(_USUAL_PORTS[protocol])
    credential = secrets.token_for(host, plain_http=protocol == "http") if host else None
    if credential is None:
        return NOTHING
    username, password = credential.username or _ANY_USERNAME, credential.secret
    if not password or any(sign in username + password for sign in "\n\r\0"):
        return NOTHING  # it would be read as something else
    return f"username={username}\npassword={password}\n\n".encode(errors="surrogateescape")


def git_configuration(secrets: RunSecrets, helper: str) -> tuple[tuple[str, str], ...]:
    """git's settings that make `helper` one of those it asks.

    For hosts with a credential it is the only one: git tells *every* helper what has worked, and one that an image or a
    person has set up might write it to the disk. For all other hosts theirs are asked first, as they are used to.
    """
    settings = [("credential.helper", helper)]
    for origin in dict.fromkeys(origin for one in secrets.credentials for origin in _origins(one)):
        settings += [(f"credential.{origin}.helper", ""), (f"credential.{origin}.helper", helper)]
    return tuple(settings)


def as_environment(settings: Sequence[tuple[str, str]]) -> dict[str, str]:
    """git's settings as variables of the environment."""
    variables = {"GIT_CONFIG_COUNT": str(len(settings))}
    for number, (key, value) in enumerate(settings):
        variables |= {f"GIT_CONFIG_KEY_{number}": key, f"GIT_CONFIG_VALUE_{number}": value}
    return variables


def _origins(credential: Credential) -> tuple[str, ...]:
    if credential.kind is not CredentialKind.TOKEN or not _HOST.fullmatch(credential.host):
        return ()
    return tuple(f"{protocol}://{credential.host}" for protocol in ("https", "http")[: 1 + credential.plain_http])


def _attributes(question: bytes) -> dict[str, str]:
    """The last of each name counts, as in git."""
    lines = question.decode(errors="surrogateescape").partition("\n\n")[0].split("\n")
    return {name: value for name, equals, value in (line.partition("=") for line in lines) if equals}
