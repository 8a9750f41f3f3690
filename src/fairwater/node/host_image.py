"""The image `host`: this machine's `/usr`, read-only, and an `/etc` made from an allow-list.

Nothing is downloaded. Of `/etc`, only what is on the list and may be read by everybody is copied; keys, hosts and
users of the machine are not. Everything else of the machine is not there at all.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import re
import shutil
import stat
from collections.abc import Callable
from pathlib import Path

from fairwater.domain.failure import Permanent
from fairwater.domain.workspaces.run import Progress
from fairwater.domain.workspaces.secrets import RunSecrets
from fairwater.ports.images import ROOT, ImageRoot, ImageUser

REFERENCE = "host"
USER, UID, HOME = "dev", 1000, "/home/dev"
DEV = ImageUser(USER, UID, UID, HOME, "/bin/bash")
_ROOT = ImageUser(ROOT.name, ROOT.uid, ROOT.gid, ROOT.home, "/bin/bash")

ETC_ALLOWED = (
    "alternatives", "bash.bashrc", "bash_completion.d", "bash_completion", "ca-certificates", "ca-certificates.conf",
    "debconf.conf", "debian_version", "default/locale", "dpkg/origins", "emacs", "ethertypes", "fonts",
    "gai.conf", "gprofng.rc", "groff", "host.conf", "inputrc", "issue", "java*", "jvm*", "ld.so.cache", "ld.so.conf",
    "ld.so.conf.d", "locale.alias", "locale.conf", "localtime", "lsb-release", "magic", "magic.mime", "mailcap",
    "manpath.config", "mime.types", "nanorc", "nodejs", "npmrc", "os-release", "perl", "pip.conf", "profile",
    "protocols", "python3*", "rpc", "services", "shells", "skel", "ssl/certs", "ssl/openssl.cnf", "terminfo",
    "timezone", "vim", "wgetrc",
)  # fmt: skip
_CREDENTIALS = re.compile(
    rb"://[^/\s\"']+@|^[^#\n]*(?:_auth|token|secret|passw(?:or)?d|api_?key)[A-Za-z_]*\s*[=:]\s*\S",
    re.IGNORECASE | re.MULTILINE,
)
_MAY_HOLD_CREDENTIALS = frozenset({"pip.conf", "npmrc", "wgetrc", "profile", "bash.bashrc", "inputrc"})
_SIZE_MAX = 4 * 1024 * 1024
_FOLDERS = ("dev", "home", "home/dev", "media", "mnt", "opt", "proc", "root", "run", "srv", "sys", "tmp", "usr", "var",
            "var/cache", "var/lib", "var/log", "var/tmp", "workspace")  # fmt: skip

_FILES = {
    "etc/passwd": (
        "root:x:0:0:root:/root:/bin/bash\n"
        f"{USER}:x:{UID}:{UID}:{USER}:{HOME}:/bin/bash\n"
        "nobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin\n"
    ),
    "etc/group": f"root:x:0:\ntty:x:5:\n{USER}:x:{UID}:\nnogroup:x:65534:\n",
    "etc/nsswitch.conf": "passwd: files\ngroup: files\nhosts: files dns\n",
    # A checkout may belong to another id than the one git runs as; in a workspace all of them are the person's own.
    "etc/gitconfig": "[safe]\n\tdirectory = *\n",
    "etc/ssh/ssh_config": "Host *\n\tStrictHostKeyChecking accept-new\n\tBatchMode no\n",
}


class HostImage:
    """Implements `ports.images.Images` for the one reference `host`, below `folder`."""

    def __init__(self, folder: Path, root: Path = Path("/")) -> None:
        self._folder = folder
        self._root = root
        self._making = asyncio.Lock()
        self._made: ImageRoot | None = None

    async def find(self, reference: str, secrets: RunSecrets = RunSecrets()) -> ImageRoot | None:
        """The image, which is always here; None for any other reference."""
        return await self.prepare(reference) if reference == REFERENCE else None

    async def prepare(
        self,
        reference: str,
        secrets: RunSecrets = RunSecrets(),
        report: Callable[[Progress], None] = lambda _: None,
        *,
        local_allowed: bool = False,
    ) -> ImageRoot:
        """The image. Raises Permanent: `no_such_image`, for any other reference."""
        if reference != REFERENCE:
            raise Permanent(
                f"there is no image {reference[:200]!r}: the only one here is 'host', this machine's own programs",
                code="no_such_image",
            )
        async with self._making:
            if self._made is None:
                self._made = await asyncio.to_thread(self._make)
        return self._made

    def _make(self) -> ImageRoot:
        """Lays the skeleton out anew; older ones stay, since sandboxes may still use them (2 MiB each)."""
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o755)
        aside = self._folder / "host.new"
        shutil.rmtree(aside, ignore_errors=True)
        _lay_out(self._root, aside)
        digest = f"host-{_digest(aside)}"
        layer = self._folder / digest
        if layer.exists():
            shutil.rmtree(aside)
        else:
            aside.rename(layer)
        return ImageRoot(
            reference=REFERENCE,
            layers=(layer,),
            binds=((self._root / "usr", "/usr"),),
            environment=_environment(layer),
            digest=digest,
            user=DEV,
            users=(_ROOT, DEV),
            working_directory="/workspace",
        )


def _environment(layer: Path) -> tuple[tuple[str, str], ...]:
    values = {
        "PATH": f"{HOME}/.local/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        "LANG": "C.UTF-8",
        "SHELL": "/bin/bash",
    }
    roots = "/etc/ssl/certs/ca-certificates.crt"
    if (layer / roots.lstrip("/")).exists():
        # Tools that bring their own list of authorities would not know the ones that this machine was told to trust.
        values |= {"SSL_CERT_FILE": roots, "NODE_EXTRA_CA_CERTS": roots, "REQUESTS_CA_BUNDLE": roots}
    return tuple(values.items())


def _lay_out(root: Path, target: Path) -> None:
    for name in _FOLDERS:
        (target / name).mkdir(parents=True, exist_ok=True)
    for name in ("bin", "sbin", "lib", "lib32", "lib64", "libx32"):
        if (root / name).is_symlink() or (root / "usr" / name).is_dir():
            (target / name).symlink_to(f"usr/{name}")
    for name in ("tmp", "var/tmp"):
        (target / name).chmod(0o1777)
    os.chown(target / "home/dev", UID, UID)
    os.chown(target / "workspace", UID, UID)
    for pattern in ETC_ALLOWED:
        for source in sorted((root / "etc").glob(pattern)):
            above = [parent for parent in source.parents if parent.is_relative_to(root / "etc")]
            if not all(parent.stat().st_mode & stat.S_IXOTH for parent in above):
                continue  # everybody may read it, but nobody may go there
            _copy(source, target / "etc" / source.relative_to(root / "etc"))
    for name, text in _FILES.items():
        path = target / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        path.write_text(text)
    # Mount points for what differs from sandbox to sandbox.
    for name in ("etc/resolv.conf", "etc/hosts", "etc/hostname"):
        (target / name).write_text("")
    for folder, _, names in os.walk(target / "etc"):
        Path(folder).chmod(0o755)
        for name in names:
            path = Path(folder) / name
            if not path.is_symlink():
                path.chmod(0o755 if path.stat().st_mode & stat.S_IXOTH else 0o644)


def _copy(source: Path, target: Path) -> None:
    """Copies what everybody may read; a link stays a link, and leads nowhere where its aim was not copied."""
    info = source.lstat()
    if stat.S_ISLNK(info.st_mode):
        target.parent.mkdir(parents=True, exist_ok=True)
        if not target.is_symlink():
            target.symlink_to(source.readlink())
    elif stat.S_ISDIR(info.st_mode):
        if info.st_mode & stat.S_IROTH:
            target.mkdir(parents=True, exist_ok=True)
            for entry in sorted(source.iterdir()):
                _copy(entry, target / entry.name)
    elif stat.S_ISREG(info.st_mode) and info.st_mode & stat.S_IROTH and info.st_size <= _SIZE_MAX:
        content = source.read_bytes()
        if source.name in _MAY_HOLD_CREDENTIALS and _CREDENTIALS.search(content):
            return
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content)
        target.chmod(info.st_mode & 0o755)


def _digest(folder: Path) -> str:
    """16 hexadecimal digits over names, links and contents."""
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        digest.update(os.fsencode(path.relative_to(folder)) + b"\0")
        if path.is_symlink():
            digest.update(os.fsencode(path.readlink()))
        elif path.is_file():
            digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()[:16]
