"""Where the server is, and as whom to speak to it.

Decides between the flags, the environment, the login kept by `fairwater login`, and the unix socket of a Fairwater that
runs on this machine, in that order. A kept token goes only to the server it was made for.
"""

from __future__ import annotations

import json
import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from fairwater.data_dir import DataDir, default_data_dirs
from fairwater.domain.failure import Permanent


@dataclass(frozen=True, slots=True)
class Target:
    """A server: by `url`, or by the unix socket at `socket`, where the kernel says who we are."""

    url: str
    socket: Path | None = None
    token: str | None = field(default=None, repr=False)

    def __str__(self) -> str:
        return str(self.socket) if self.socket else self.url


@dataclass(frozen=True, slots=True)
class Login:
    """What `fairwater login` kept."""

    server: str
    token: str = field(repr=False)
    user: str = ""


def find_target(
    server: str | None = None,
    token: str | None = None,
    data_dir: Path | None = None,
    environment: Mapping[str, str] | None = None,
) -> Target:
    """The server to speak to.

    Raises:
        Permanent: `bad_server`: the address is none; `bad_credentials`: the kept login cannot be read.
    """
    environment = os.environ if environment is None else environment
    server = server or environment.get("FAIRWATER_URL") or None
    token = token or environment.get("FAIRWATER_TOKEN") or None
    directory = data_dir or (Path(environment["FAIRWATER_DATA_DIR"]) if environment.get("FAIRWATER_DATA_DIR") else None)
    if server is not None:
        target = parse_server(server, token)
        if target.token is None and target.socket is None:
            login = kept_login(environment)
            if login and login.server == target.url:
                return Target(target.url, token=login.token)
        return target
    if directory is not None:
        return Target("http://fairwater", DataDir(directory).server_socket, token)
    login = kept_login(environment)
    if login:
        return Target(login.server, token=token or login.token)
    sockets = [DataDir(path).server_socket for path in default_data_dirs()]
    return Target("http://fairwater", next((path for path in sockets if path.exists()), sockets[0]), token)


def parse_server(server: str, token: str | None = None) -> Target:
    """`server` as a person writes it: `https://host`, `host:7080`, `unix:/path/to/server.sock`."""
    if server.startswith("unix:"):
        return Target("http://fairwater", Path(server.removeprefix("unix:").removeprefix("//")), token)
    text = server if "://" in server else f"http://{server}"
    try:
        parts = urlsplit(text)
        bad = parts.scheme not in {"http", "https"} or not parts.hostname or parts.username or parts.port == 0
    except ValueError:
        bad = True
    if bad:
        raise Permanent(
            f"{server[:80]!r} is not the address of a server: write it as https://dev.example.org", code="bad_server"
        )
    return Target(f"{parts.scheme}://{parts.netloc}{parts.path.rstrip('/')}", token=token)


def credentials_path(environment: Mapping[str, str] | None = None) -> Path:
    environment = os.environ if environment is None else environment
    return Path(environment.get("XDG_CONFIG_HOME") or "~/.config").expanduser() / "fairwater" / "credentials.toml"


def kept_login(environment: Mapping[str, str] | None = None) -> Login | None:
    path = credentials_path(environment)
    try:
        kept = tomllib.loads(path.read_text(encoding="utf-8"))
        return Login(str(kept["server"]), str(kept["token"]), str(kept.get("user", "")))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, KeyError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise Permanent(
            f"{path}: the kept login cannot be read ({error}): log in again with fairwater login",
            code="bad_credentials",
        ) from None


def keep_login(login: Login) -> Path:
    """Keeps `login` in a file that only its owner can read, replacing the one before as a whole."""
    path = credentials_path()
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    lines = [f"{name} = {json.dumps(value)}" for name, value in _fields(login)]
    draft = path.with_suffix(f".{os.getpid()}")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write("\n".join(lines) + "\n")
    draft.replace(path)
    return path


def forget_login() -> bool:
    """Removes the kept login; False where there was none."""
    try:
        credentials_path().unlink()
    except FileNotFoundError:
        return False
    return True


def _fields(login: Login) -> tuple[tuple[str, str], ...]:
    return (("server", login.server), ("token", login.token), ("user", login.user))
