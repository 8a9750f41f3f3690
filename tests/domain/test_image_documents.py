"""Manifests, configurations, users and skopeo's words, all of them hostile."""

from __future__ import annotations

import contextlib
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fairwater.domain.failure import Permanent, Temporary
from fairwater.domain.images.config import parse_config
from fairwater.domain.images.explain import explain_failure, last_words
from fairwater.domain.images.manifest import Index, Platform, choose, parse_manifest
from fairwater.domain.images.reference import parse_reference
from fairwater.domain.images.users import Accounts, User, home_of, parse_accounts, resolve_user

DIGEST = "sha256:" + "0" * 64
HERE = Platform("linux", "amd64")
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(
        ["schemaVersion", "layers", "config", "manifests", "digest", "size", "mediaType", "rootfs", "diff_ids", "os",
         "architecture", "platform", "Env", "User", "Cmd", "Entrypoint", "WorkingDir"]), inner, max_size=6),
    max_leaves=20,
)  # fmt: skip


@given(JSON)
def test_any_document_is_read_or_refused(document: Any) -> None:
    content = json.dumps(document).encode()
    for parse in (parse_manifest, parse_config):
        with contextlib.suppress(Permanent):
            parse(content)


@given(st.binary(max_size=400), st.binary(max_size=400))
def test_any_accounts_are_read(passwd: bytes, group: bytes) -> None:
    accounts = parse_accounts(passwd, group)
    assert all(0 <= user.uid < 65536 and 0 <= user.gid < 65536 for user in accounts.users)
    assert all(user.home.startswith("/") and user.home != "/" for user in accounts.users)


def entry(architecture: str, digest: str, variant: str = "") -> dict[str, object]:
    platform = {"os": "linux", "architecture": architecture, "variant": variant}
    return {"digest": "sha256:" + digest * 64, "size": 1, "platform": platform}


def index(*entries: dict[str, object]) -> Index:
    found = parse_manifest(json.dumps({"schemaVersion": 2, "manifests": entries}).encode())
    assert isinstance(found, Index)
    return found


def test_of_an_index_the_plainest_image_for_the_machine_is_chosen() -> None:
    found = index(entry("arm64", "1"), entry("amd64", "2", "v3"), entry("amd64", "3"))
    assert choose(found, HERE).digest == "sha256:" + "3" * 64


def test_an_index_without_an_image_for_the_machine_tells_which_there_are() -> None:
    with pytest.raises(Permanent, match="linux/arm64, linux/s390x") as failure:
        choose(index(entry("arm64", "1"), entry("s390x", "2")), HERE)
    assert failure.value.code == "wrong_architecture"


ACCOUNTS = parse_accounts(
    b"root:x:0:0:root:/root:/bin/bash\napp:x:1000:1000::/home/app:/bin/sh\nodd:x:7:7::/:/sbin/nologin\n"
    b"games:x:5:60::/usr/games:\nfar:x:70000:1::/home/far:/bin/sh\nbroken\n+::::::\napp:x:0:0::/root:/bin/sh\n",
    b"root:x:0:\nstaff:x:50:app,odd\napp:x:1000:\n",
)
APP = User("app", 1000, 1000, "/home/app", "/bin/sh", (50,))


def test_lines_that_make_no_sense_are_left_out_and_the_first_of_a_name_counts() -> None:
    assert [user.name for user in ACCOUNTS.users] == ["root", "app", "odd", "games"]
    assert ACCOUNTS.users[1] == APP


@pytest.mark.parametrize(
    ("spec", "user"),
    [
        ("", User("root", 0, 0, "/root", "/bin/bash")),
        ("0", User("root", 0, 0, "/root", "/bin/bash")),
        ("app", APP),
        ("1000", APP),
        ("app:staff", User("app", 1000, 50, "/home/app")),
        ("1000:50", User("app", 1000, 50, "/home/app")),
        ("app:1234", User("app", 1000, 1234, "/home/app")),
        ("4321", User("user4321", 4321, 0, "/home/user4321")),
        ("4321:50", User("user4321", 4321, 50, "/home/user4321")),
        ("odd", User("odd", 7, 7, "/home/odd", "/sbin/nologin", (50,))),
        ("games", User("games", 5, 60, "/home/games")),
    ],
)
def test_each_way_to_write_a_user_is_understood(spec: str, user: User) -> None:
    assert resolve_user(spec, ACCOUNTS) == user


@pytest.mark.parametrize("spec", ["nobody-here", "app:nobody-here", "70000", "-1", "1" * 5000, "app:99999999"])
def test_a_user_that_cannot_be_had_is_refused(spec: str) -> None:
    with pytest.raises(Permanent) as failure:
        resolve_user(spec, ACCOUNTS)
    assert failure.value.code == "bad_image"


def test_an_image_without_accounts_runs_as_root() -> None:
    assert resolve_user("", Accounts()) == User("root", 0, 0, "/root")


@pytest.mark.parametrize(
    ("home", "used"),
    [
        ("/home/x", "/home/x"),
        ("/srv/x/", "/srv/x"),
        ("/var/lib/x", "/var/lib/x"),
        ("/", "/home/x"),
        ("", "/home/x"),
        ("/usr/games", "/home/x"),
        ("/nonexistent", "/home/x"),
        ("/workspace", "/home/x"),
        ("/proc/self", "/home/x"),
        ("/home/../etc", "/home/x"),
        ("/home/a b", "/home/x"),
        ("relative", "/relative"),
    ],
)
def test_a_home_directory_is_never_one_that_holds_the_system(home: str, used: str) -> None:
    assert home_of("x", home) == used


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (
            'msg="Error initializing source docker://r/a:1: reading manifest 1 in r/a: manifest unknown"',
            "no_such_image",
        ),
        ("reading manifest 1 in r/a: name unknown: repository name not known to registry", "no_such_image"),
        ("unable to retrieve auth token: invalid username/password: unauthorized: authentication", "image_denied"),
        ("errors: denied: requested access to the resource is denied", "image_denied"),
        ("pinging container registry r: Get https://r/v2/: dial tcp: lookup r: no such host", "no_such_registry"),
        ("http: server gave HTTP response to HTTPS client", "no_such_registry"),
        ("x509: certificate signed by unknown authority", "no_such_registry"),
        ("Digest did not match, expected sha256:1, got sha256:2", "image_damaged"),
        ("dial tcp 1.2.3.4:443: connect: connection refused", "registry_away"),
        ("received unexpected HTTP status: 503 Service Unavailable", "registry_away"),
        ("toomanyrequests: You have reached your pull rate limit", "registry_away"),
        ("write /workspace/x: no space left on device", "disk_full"),
        ('no image found in manifest list for architecture amd64, variant "", OS linux', "wrong_architecture"),
        ("something new", "registry_away"),
    ],
)
def test_skopeos_words_are_explained(words: str, code: str) -> None:
    failure = explain_failure(words, parse_reference("r.example/a:1"))
    assert failure.code == code
    assert isinstance(failure, Temporary) == (code in {"registry_away", "disk_full"})


def test_what_is_told_of_a_failure_holds_no_credential() -> None:
    words = "Get https://ann:secret@r.example/blob?X-Amz-Signature=secret: something new\x1b[31m"
    failure = explain_failure(words, parse_reference("r.example/a:1"))
    assert "secret" not in failure.message
    assert failure.message.isprintable()


def test_words_of_skopeo_are_shown_without_the_marks_of_its_log() -> None:
    said = 'time="2026-01-05T09:00:00Z" level=fatal msg="Get \\"https://x/v2/\\": connection refused"'
    assert last_words(said) == 'Get "https://x/v2/": connection refused'
