"""What a person writes to name an image, and what is meant."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fairwater.domain.failure import Permanent
from fairwater.domain.images.reference import Kind, parse_reference

DIGEST = "sha256:" + "ab" * 32


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("host", "host"),
        ("debian", "docker.io/library/debian:latest"),
        ("debian:12", "docker.io/library/debian:12"),
        ("gitpod/workspace-full", "docker.io/gitpod/workspace-full:latest"),
        ("index.docker.io/library/debian:12", "docker.io/library/debian:12"),
        ("docker.io/debian:12", "docker.io/library/debian:12"),
        (f"ghcr.io/org/app@{DIGEST}", f"ghcr.io/org/app@{DIGEST}"),
        (f"ghcr.io/org/app:v1@{DIGEST}", f"ghcr.io/org/app@{DIGEST}"),
        ("localhost:5000/x", "localhost:5000/x:latest"),
        ("localhost/x", "localhost/x:latest"),
        ("GHCR.io/org/app", "ghcr.io/org/app:latest"),
        ("docker://ghcr.io/org/app:1", "ghcr.io/org/app:1"),
        ("[::1]:5000/x:1", "[::1]:5000/x:1"),
        ("  debian:12 ", "docker.io/library/debian:12"),
        ("oci:/srv/images/app", "oci:/srv/images/app"),
        ("oci:/srv//images/app/:v1", "oci:/srv/images/app:v1"),
        ("oci-archive:/srv/app.tar:v1", "oci-archive:/srv/app.tar:v1"),
        ("docker-archive:/srv/app.tar:app:v1", "docker-archive:/srv/app.tar:app:v1"),
    ],
)
def test_references_are_read_as_docker_reads_them(written: str, meant: str) -> None:
    found = parse_reference(written)
    assert str(found) == meant
    assert parse_reference(meant) == found


@pytest.mark.parametrize(
    ("written", "what"),
    [
        ("", "empty"),
        ("Debian", "lower case"),
        ("debian:", "not a tag"),
        ("debian:a b", "space"),
        ("debian:\x00", "control character"),
        ("ghcr.io/app@sha256:12", "64 hexadecimal digits"),
        ("ghcr.io/app@md5:" + "a" * 64, "64 hexadecimal digits"),
        ("https://ghcr.io/app", "address of the web"),
        ("ghcr.io:99999/app", "65535"),
        ("-x/../y", "repository"),
        ("a" * 2000, "longer"),
        ("oci:relative", "absolute"),
        ("oci:/srv/../etc", "real path"),
        ("oci:/", "whole machine"),
        ("oci-archive:/srv/a.tar:a b", "space"),
        ("--flag", "repository"),
    ],
)
def test_what_is_wrong_with_a_reference_is_said(written: str, what: str) -> None:
    with pytest.raises(Permanent, match=what) as failure:
        parse_reference(written)
    assert failure.value.code == "bad_image"


@given(st.text(max_size=200))
def test_any_text_is_a_reference_or_refused_and_never_an_option_of_a_program(written: str) -> None:
    try:
        found = parse_reference(written)
    except Permanent:
        return
    assert parse_reference(str(found)) == found
    assert not str(found).startswith("-")
    assert found.kind is not Kind.REGISTRY or (found.tag or found.digest)
