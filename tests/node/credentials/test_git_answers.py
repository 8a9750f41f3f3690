"""Which credential git is given, and how git is told to ask."""

from __future__ import annotations

import pytest

from fairwater.domain.workspaces.secrets import Credential, RunSecrets
from fairwater.node.credential_git import answer_git, as_environment, git_configuration

from .conftest import SECRET, ssh_key, token

KEPT = RunSecrets(
    (
        ssh_key("key", host="git.example.org"),
        token("git.example.org", "one"),
        token("git.example.org:8443", "two"),
        token("plain.example.org", "three", plain_http=True),
        token("plain.example.org:8080", "four", plain_http=True),
        token("[2001:db8::1]:3000", "five"),
    )
)


@pytest.mark.parametrize(
    ("question", "username"),
    [
        ("protocol=https\nhost=git.example.org\n", "one"),
        ("protocol=https\nhost=git.example.org\n\n", "one"),
        ("protocol=https\nhost=GIT.Example.ORG\n", "one"),
        ("protocol=https\nhost=git.example.org:443\npath=a/b.git\nusername=git\n", "one"),
        ("capability[]=authtype\nprotocol=https\nhost=git.example.org:8443\nwwwauth[]=Basic realm=x\n", "two"),
        ("protocol=http\nhost=plain.example.org\n", "three"),
        ("protocol=http\nhost=plain.example.org:80\n", "three"),
        ("protocol=https\nhost=plain.example.org\n", "three"),
        ("protocol=http\nhost=plain.example.org:8080\n", "four"),
        ("protocol=https\nhost=[2001:DB8::1]:3000\n", "five"),
        ("host=other.example.org\nprotocol=https\nhost=git.example.org\n", "one"),
    ],
)
def test_a_host_gets_its_own_credential(question: str, username: str) -> None:
    assert answer_git(question.encode(), KEPT) == f"username={username}\npassword={SECRET}\n\n".encode()


@pytest.mark.parametrize(
    "question",
    [
        "",
        "\n",
        "protocol=https\n",
        "host=git.example.org\n",
        "protocol=https\nhost=\n",
        "protocol=https\nhost=example.org\n",
        "protocol=https\nhost=evil-git.example.org\n",
        "protocol=https\nhost=git.example.org.evil.net\n",
        "protocol=https\nhost=git.example.org:444\n",
        "protocol=https\nhost=git.example.org:80\n",
        "protocol=https\nhost=git.example.org@evil.net\n",
        "protocol=https\nhost=git.example.org \n",
        "protocol=https\nhost=git.example.org\0\n",
        "protocol=https\nhost=git.example.org\r\n",
        "protocol=http\nhost=git.example.org\n",
        "protocol=http\nhost=git.example.org:443\n",
        "protocol=http\nhost=plain.example.org:443\n",
        "protocol=ssh\nhost=git.example.org\n",
        "protocol=ftp\nhost=git.example.org\n",
        "protocol=HTTPS\nhost=git.example.org\n",
        "\n\nprotocol=https\nhost=git.example.org\n",
        "protocol=https\n\nhost=git.example.org\n",
        "PROTOCOL=https\nHOST=git.example.org\n",
        "junk",
    ],
)
def test_no_other_host_and_no_other_way_gets_any(question: str) -> None:
    assert answer_git(question.encode(), KEPT) == b""


@pytest.mark.parametrize("secret", ["", "a\nhost=evil", "a\rb", "a\0b"])
def test_a_secret_that_git_would_read_as_something_else_is_not_given(secret: str) -> None:
    kept = RunSecrets((token("git.example.org", secret=secret),))
    assert answer_git(b"protocol=https\nhost=git.example.org\n", kept) == b""


def test_a_token_without_a_name_is_given_with_one_that_hosts_take() -> None:
    kept = RunSecrets((token("git.example.org", ""),))
    assert answer_git(b"protocol=https\nhost=git.example.org\n", kept).startswith(b"username=git\n")


def test_bytes_that_are_no_text_are_no_question() -> None:
    assert answer_git(b"\xff\xfe=\xff\nprotocol=https\nhost=\xff\n", KEPT) == b""


def test_git_asks_the_helper_everywhere_and_no_other_where_there_is_a_credential() -> None:
    kept: tuple[Credential, ...] = (
        token("a.org"),
        token("a.org", "again"),
        token("b.org:81", plain_http=True),
        ssh_key("k"),
    )
    assert git_configuration(RunSecrets(kept), "/h") == (
        ("credential.helper", "/h"),
        ("credential.https://a.org.helper", ""),
        ("credential.https://a.org.helper", "/h"),
        ("credential.https://b.org:81.helper", ""),
        ("credential.https://b.org:81.helper", "/h"),
        ("credential.http://b.org:81.helper", ""),
        ("credential.http://b.org:81.helper", "/h"),
    )
    assert git_configuration(RunSecrets((token("a b\nc"),)), "/h") == (("credential.helper", "/h"),)
    assert as_environment((("k", "v"), ("l", "")))["GIT_CONFIG_COUNT"] == "2"
