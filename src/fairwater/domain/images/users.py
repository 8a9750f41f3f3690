"""Who an image knows: its `/etc/passwd` and `/etc/group`, and whom its `USER` means.

What is read here comes from an image, and may be anything. Lines that make no sense are left out, as the C library
does; ids beyond those that a sandbox has cannot be had.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace

from fairwater.domain.failure import Permanent

IDS = 65536
"""How many user and group ids a sandbox has."""
USERS_MAX = 4096
_NAME = re.compile(r"[A-Za-z0-9_.][A-Za-z0-9_.@-]{0,63}\$?")
_GROUPS_MAX = 64


@dataclass(frozen=True, slots=True)
class User:
    """Somebody whom the image knows, ids counted from 0; `groups` are the further ones."""

    name: str
    uid: int
    gid: int
    home: str
    shell: str = "/bin/sh"
    groups: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Accounts:
    """`groups` are group ids by name."""

    users: tuple[User, ...] = ()
    groups: tuple[tuple[str, int], ...] = ()


def parse_accounts(passwd: bytes, group: bytes) -> Accounts:
    """From the text of the two files; of a name that comes twice, the first counts."""
    groups: dict[str, int] = {}
    members: dict[str, list[int]] = {}
    for fields in _lines(group, 4):
        gid = _ident(fields[2])
        if gid is None or fields[0] in groups:
            continue
        groups[fields[0]] = gid
        for name in fields[3].split(","):
            if len(members.setdefault(name.strip(), [])) < _GROUPS_MAX:
                members[name.strip()].append(gid)
    users: dict[str, User] = {}
    for fields in _lines(passwd, 7):
        uid, gid = _ident(fields[2]), _ident(fields[3])
        name = fields[0]
        if uid is None or gid is None or name in users:
            continue
        further = tuple(sorted({ident for ident in members.get(name, []) if ident != gid}))
        shell = fields[6] if fields[6].startswith("/") else "/bin/sh"
        users[name] = User(name, uid, gid, home_of(name, fields[5]), shell, further)
    return Accounts(tuple(users.values())[:USERS_MAX], tuple(groups.items()))


def _lines(content: bytes, count: int) -> list[list[str]]:
    """The fields of each line that has at least `count` of them and begins with a possible name."""
    lines = content.decode("utf-8", "replace").split("\n")
    parted = (line.rstrip("\r").split(":") for line in lines if line and not line.startswith(("#", "+", "-")))
    return [
        fields
        for fields in parted
        if len(fields) >= count and _NAME.fullmatch(fields[0]) and "\0" not in "".join(fields)
    ]


def _ident(text: str) -> int | None:
    # Bounded before it is read as a number: Python refuses numbers of thousands of digits, slowly.
    if not text.isascii() or not text.isdecimal() or len(text) > 10:
        return None
    return int(text) if int(text) < IDS else None


_UNUSABLE = frozenset({"/nonexistent", "/var", "/var/run", "/var/tmp"})  # noqa: S108
_HOME = re.compile(r"/[A-Za-z0-9_.@+-]+(?:/[A-Za-z0-9_.@+-]+)*")
_HOME_MAX = 256


def home_of(name: str, home: str) -> str:
    """`home` where a volume can be put there, else `/home/NAME`, or `/root` for root.

    The home directory is kept between runs, so it must not be one that holds the system: `/`, `/usr/games`.
    """
    home = "/" + "/".join(part for part in home.split("/") if part)
    names = home.split("/")[1:]
    usable = (
        len(home) <= _HOME_MAX
        and _HOME.fullmatch(home) is not None
        and not any(part in {".", ".."} for part in names)
        and home not in _UNUSABLE
        and (names[0] not in _SYSTEM or home == "/root")
    )
    if usable:
        return home
    return "/root" if name == "root" else f"/home/{name.strip('$.') or 'user'}"


_SYSTEM = frozenset(
    {"bin", "boot", "dev", "etc", "lib", "lib32", "lib64", "libx32", "proc", "run", "sbin", "sys", "tmp", "usr",
     "workspace"}
)  # fmt: skip


def resolve_user(spec: str, accounts: Accounts) -> User:
    """Whom `USER spec` means: "", `name`, `uid`, `name:group`, `uid:gid` and the mixed forms.

    A number that the image does not know is somebody without a name of its own, whose group is root's, as OCI runtimes
    have it.

    Raises:
        Permanent: `bad_image`, where it names a user or a group that the image does not have.
    """
    who, colon, group = spec.strip().partition(":")
    user = _user_of(who, accounts)
    if not colon or not group:
        return user
    gid = dict(accounts.groups).get(group)
    if gid is None:
        gid = _ident(group)
    if gid is None:
        raise Permanent(f"the image runs as {spec[:80]!r}, but has no group {group[:40]!r}", code="bad_image")
    return replace(user, gid=gid, groups=())


def _user_of(who: str, accounts: Accounts) -> User:
    by_name: Mapping[str, User] = {user.name: user for user in accounts.users}
    if not who:
        return next((user for user in accounts.users if user.uid == 0), User("root", 0, 0, "/root"))
    if who in by_name:
        return by_name[who]
    uid = _ident(who)
    if uid is None:
        known = f"; ids go up to {IDS - 1}" if who.isdecimal() else ""
        raise Permanent(f"the image runs as {who[:40]!r}, but has no such user{known}", code="bad_image")
    known_as = next((user for user in accounts.users if user.uid == uid), None)
    if known_as is not None:
        return known_as
    return User("root", 0, 0, "/root") if uid == 0 else User(f"user{uid}", uid, 0, f"/home/user{uid}")
