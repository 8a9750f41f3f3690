"""Hands a person's credentials to git as a plain process: in memory, never on a disk, in a command line or a variable.

Files without a name (memfd_create(2)) hold them; git and ssh open them through `/proc/PID/fd/N` of this process, which
only its own user may, and are gone when they are closed. Each credential serves its own host alone: git's own store
and ssh's own configuration see to that.
"""

from __future__ import annotations

import contextlib
import os
import re
import shlex
from collections.abc import Mapping
from urllib.parse import quote

from fairwater.domain.workspaces.git import SSH
from fairwater.domain.workspaces.secrets import Credential, CredentialKind, RunSecrets

_HOST = re.compile(r"[A-Za-z0-9.-]+(:[0-9]+)?|\[[0-9A-Fa-f:.]+\](:[0-9]+)?")


class HandedOver:
    """A context manager; the credentials are there for as long as it lasts."""

    def __init__(self, secrets: RunSecrets) -> None:
        self._secrets = secrets
        self._held = contextlib.ExitStack()
        self._tokens: str | None = None
        self._ssh: str | None = None

    def __enter__(self) -> HandedOver:
        with contextlib.ExitStack() as held:
            usable = [each for each in self._secrets.credentials if _HOST.fullmatch(each.host)]
            tokens = [line for each in usable for line in _store_lines(each)]
            if tokens:
                self._tokens = _in_memory(held, "".join(tokens))
            keys = [_host_section(each, _in_memory(held, _key_text(each))) for each in usable if _is_key(each)]
            if keys:
                # Without the last section ssh would go on to this user's own keys.
                self._ssh = _in_memory(held, "".join(keys) + "Host *\n\tIdentityFile none\n")
            self._held = held.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._held.close()

    def environment(self, given: Mapping[str, str]) -> dict[str, str]:
        """The variables of a clone, with what lets git sign in."""
        variables = dict(given)
        if self._tokens is not None:
            store = f"git credential-store --file={shlex.quote(self._tokens)} get"
            variables |= {
                "GIT_CONFIG_COUNT": "1",
                "GIT_CONFIG_KEY_0": "credential.helper",
                # It is asked only: nothing is to be kept or erased there.
                "GIT_CONFIG_VALUE_0": f'!f() {{ test "$1" = get && {store}; }}; f',
            }
        if self._ssh is not None:
            ssh = SSH.replace("-F none", f"-F {shlex.quote(self._ssh)}", 1)
            variables["GIT_SSH_COMMAND"] = f"{ssh} -o IdentitiesOnly=yes -o IdentityAgent=none"
        return variables


def _in_memory(held: contextlib.ExitStack, text: str) -> str:
    """The path of a file that holds `text`, in memory, and is readable by this user alone."""
    descriptor = os.memfd_create("fairwater", os.MFD_CLOEXEC)
    held.callback(os.close, descriptor)
    os.fchmod(descriptor, 0o600)
    rest = memoryview(text.encode())
    while rest:
        rest = rest[os.write(descriptor, rest) :]
    return f"/proc/{os.getpid()}/fd/{descriptor}"


def _is_key(credential: Credential) -> bool:
    return credential.kind is CredentialKind.SSH_KEY


def _store_lines(credential: Credential) -> list[str]:
    if credential.kind is not CredentialKind.TOKEN:
        return []
    who = f"{quote(credential.username, safe='')}:{quote(credential.secret, safe='')}"
    schemes = ("https", "http") if credential.plain_http else ("https",)
    return [f"{scheme}://{who}@{credential.host}\n" for scheme in schemes]


def _host_section(credential: Credential, path: str) -> str:
    host = credential.host.removeprefix("[").partition("]")[0] if credential.host.startswith("[") else None
    name = host or credential.host.partition(":")[0]
    return f'Host "{name}"\n\tIdentityFile {path}\n'


def _key_text(credential: Credential) -> str:
    return credential.secret.rstrip("\n") + "\n"
