from __future__ import annotations

import pytest

from fairwater.domain.failure import Permanent
from fairwater.domain.workspaces.credential_host import parse_credential_host
from fairwater.domain.workspaces.secrets import CredentialKind

TOKEN, KEY = CredentialKind.TOKEN, CredentialKind.SSH_KEY


@pytest.mark.parametrize(
    ("text", "kind", "plain", "host"),
    [
        ("GitHub.com", TOKEN, False, "github.com"),
        ("https://github.com/org/repo", TOKEN, False, "github.com"),
        ("github.com:443", TOKEN, False, "github.com"),
        ("registry.example:5000", TOKEN, False, "registry.example:5000"),
        ("registry.example:080", TOKEN, True, "registry.example"),
        ("registry.example:443", TOKEN, True, "registry.example:443"),
        ("ssh://git@git.example:22/x", KEY, False, "git.example"),
        ("git.example:2222", KEY, False, "git.example:2222"),
        ("index.docker.io", TOKEN, False, "docker.io"),
        ("[::1]:8443", TOKEN, False, "[::1]:8443"),
    ],
)
def test_a_host_is_kept_in_one_way_however_it_is_written(
    text: str, kind: CredentialKind, plain: bool, host: str
) -> None:
    assert parse_credential_host(text, kind, plain_http=plain) == host
    assert parse_credential_host(host, kind, plain_http=plain) == host


@pytest.mark.parametrize(
    "text", ["", "/", "a b", "-x", "host:0", "host:65536", "host:x", "*.example.org", "a..b", "x" * 300, "ä.de"]
)
def test_what_is_no_host_is_refused(text: str) -> None:
    with pytest.raises(Permanent) as caught:
        parse_credential_host(text, TOKEN, plain_http=False)
    assert caught.value.code == "bad_host"
