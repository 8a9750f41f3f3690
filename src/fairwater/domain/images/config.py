"""What an image's configuration says of the machine it is for, its layers, and the first process.

It comes from a registry or a folder, and may be anything: what is not as the OCI image specification 1.0 has it is
refused with the place that is wrong.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from fairwater.domain.images.manifest import LAYERS_MAX, Platform, bad_image, is_digest, parse_object, parse_platform

_ENVIRONMENT_MAX = 1024
_WORDS_MAX = 1024
_TEXT_MAX = 128 * 1024
_PATH_MAX = 4096
_VARIABLE = re.compile(r"[^=\0]{1,256}")


@dataclass(frozen=True, slots=True)
class Config:
    """`diff_ids` are the digests of the layers unpacked, the lowest first; `user` is as written there."""

    platform: Platform
    diff_ids: tuple[str, ...]
    user: str = ""
    environment: tuple[tuple[str, str], ...] = ()
    working_directory: str = "/"
    entrypoint: tuple[str, ...] = ()
    command: tuple[str, ...] = ()


def parse_config(content: bytes) -> Config:
    """Raises Permanent: `bad_image`."""
    document = parse_object(content, "configuration")
    platform = parse_platform(document)
    if platform is None:
        raise bad_image("its configuration does not say which machine it is for ('os' and 'architecture')")
    rootfs = document.get("rootfs")
    diff_ids = rootfs.get("diff_ids") if isinstance(rootfs, dict) else None
    if not isinstance(diff_ids, list) or len(diff_ids) > LAYERS_MAX or not all(map(is_digest, diff_ids)):
        raise bad_image("its configuration does not name its layers ('rootfs.diff_ids')")
    settings = document.get("config") or {}
    if not isinstance(settings, dict):
        raise bad_image("'config' in its configuration is not an object")
    user = settings.get("User") or ""
    folder = settings.get("WorkingDir") or "/"
    if not isinstance(user, str) or len(user) > 256 or not user.isprintable():
        raise bad_image("'User' in its configuration is not a name")
    if not isinstance(folder, str) or len(folder) > _PATH_MAX or "\0" in folder:
        raise bad_image("'WorkingDir' in its configuration is not a path")
    return Config(
        platform,
        tuple(diff_ids),
        user,
        _environment(settings.get("Env")),
        "/" + "/".join(part for part in folder.split("/") if part not in {"", "."}),
        _words(settings.get("Entrypoint"), "Entrypoint"),
        _words(settings.get("Cmd"), "Cmd"),
    )


def _environment(found: object) -> tuple[tuple[str, str], ...]:
    if found is None:
        return ()
    if not isinstance(found, list) or len(found) > _ENVIRONMENT_MAX:
        raise bad_image(f"'Env' in its configuration is not a list of at most {_ENVIRONMENT_MAX} variables")
    variables: dict[str, str] = {}
    for entry in found:
        name, equals, value = entry.partition("=") if isinstance(entry, str) else ("", "", "")
        if not equals or not _VARIABLE.fullmatch(name) or "\0" in value or len(value) > _TEXT_MAX or not _utf8(entry):
            raise bad_image("an entry of 'Env' in its configuration is not NAME=VALUE")
        variables[name] = value
    if sum(len(name) + len(value) for name, value in variables.items()) > _TEXT_MAX:
        raise bad_image("'Env' in its configuration is larger than a process can take")
    return tuple(variables.items())


def _words(found: object, key: str) -> tuple[str, ...]:
    if found is None:
        return ()
    if isinstance(found, str):  # as some old tools wrote it
        found = [found]
    if (
        not isinstance(found, list)
        or len(found) > _WORDS_MAX
        or not all(isinstance(word, str) and "\0" not in word and _utf8(word) for word in found)
        or sum(map(len, found)) > _TEXT_MAX
    ):
        raise bad_image(f"{key!r} in its configuration is not a list of words")
    return tuple(found)


def _utf8(text: str) -> bool:
    """JSON can write halves of signs, which no process can be given."""
    return not any("\ud800" <= sign <= "\udfff" for sign in text)
