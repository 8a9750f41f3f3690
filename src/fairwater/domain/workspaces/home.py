"""Where a workspace's home directory lies, whatever an image says of its users."""

from __future__ import annotations

import re

_WHOLE = (
    "/bin", "/boot", "/dev", "/etc", "/home", "/lib", "/lib32", "/lib64", "/libx32", "/media", "/mnt", "/nix", "/opt",
    "/proc", "/run", "/sbin", "/srv", "/sys", "/tmp", "/usr", "/usr/bin", "/usr/lib", "/usr/local", "/usr/local/bin",  # noqa: S108
    "/usr/sbin", "/usr/share", "/usr/src", "/var", "/var/cache", "/var/lib", "/var/log", "/var/run", "/var/spool",
    "/var/tmp", "/workspace",  # noqa: S108 - an image's
)  # fmt: skip
"""Folders that hold more than one user's: a volume there would hide what the image has in them."""
_BELOW = ("/dev/", "/etc/", "/proc/", "/run/", "/sys/", "/tmp/", "/var/run/", "/workspace/")  # noqa: S108 - not used
"""What is mounted over, or made for each sandbox."""
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}")
_LENGTH_MAX = 1024


def home_directory(home: str, user: str) -> str:
    """The image's own place for it, in its shortest form; `/home/USER` where a volume cannot be, such as at `/`."""
    names = [name for name in home.split("/") if name not in ("", ".")]
    path = "/" + "/".join(names)
    usable = home.startswith("/") and names and ".." not in names and len(home) <= _LENGTH_MAX and home.isprintable()
    if usable and path not in _WHOLE and not path.startswith(_BELOW):
        return path
    return f"/home/{user if _NAME.fullmatch(user) else 'workspace'}"
