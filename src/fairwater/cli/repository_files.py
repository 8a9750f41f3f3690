"""A repository's configuration files, from a folder of this machine or from a git URL.

Decides what is read: regular files at the places of `config.CANDIDATES`, each up to the size that is looked at, no
link followed. A URL is fetched with the person's own git, one commit deep and without a working tree, bounded in time
and size, and nothing of it is kept.
"""

from __future__ import annotations

import os
import resource
import signal
import stat
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from fairwater.domain.failure import Permanent
from fairwater.domain.workspaces.config import CANDIDATES, FILE_BYTES_MAX
from fairwater.domain.workspaces.context import Context, Scheme
from fairwater.domain.workspaces.git import HARDENING
from fairwater.domain.workspaces.git_failure import explain_failure, no_such_ref, out_of_time
from fairwater.domain.workspaces.git_refs import ref_patterns, split_ref_path
from fairwater.domain.workspaces.run import Source

FETCH_S_MAX = 60.0
_FETCH_BYTES_MAX = 512 * 1024 * 1024
_FOLDER_ENTRIES_MAX = 200
_LISTING_BYTES_MAX = 1 << 20


@dataclass(frozen=True, slots=True)
class RepositoryFiles:
    """`links` are the places at which there is no regular file, and so nothing is read."""

    name: str
    files: Mapping[str, bytes]
    links: tuple[str, ...] = ()


def read_folder(folder: Path) -> RepositoryFiles:
    """The configuration files in `folder`.

    Raises:
        Permanent: `not_readable`.
    """
    files: dict[str, bytes] = {}
    links: list[str] = []
    for path in _places(folder):
        try:
            content = _read_regular(folder, path)
        except FileNotFoundError:
            continue
        except OSError as error:
            raise Permanent(f"{folder / path} cannot be read: {error.strerror}", code="not_readable") from None
        if content is None:
            links.append(path)
        else:
            files[path] = content
    return RepositoryFiles(folder.resolve().name, files, tuple(links))


def _places(folder: Path) -> Iterator[str]:
    for candidate in CANDIDATES:
        before, star, after = candidate.partition("*")
        if not star:
            yield candidate
            continue
        try:
            names = sorted(entry.name for entry in os.scandir(folder / before) if entry.is_dir())
        except OSError:
            continue
        for name in names[:_FOLDER_ENTRIES_MAX]:
            yield f"{before}{name}{after}"


def _read_regular(folder: Path, path: str) -> bytes | None:
    """The file's first bytes; None where it, or a folder on the way to it, is a link or nothing regular."""
    place = folder
    for part in path.split("/"):
        place = place / part
        if place.is_symlink():
            return None
    fd = os.open(place, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    with os.fdopen(fd, "rb") as file:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            return None
        return file.read(FILE_BYTES_MAX + 1)


def fetch_repository(context: Context) -> RepositoryFiles:
    """The configuration files of the repository that `context` names, as its ref or default branch has them.

    Raises:
        Permanent: as `git.explain_failure` has it, and `no_git`, `too_large`.
    """
    with tempfile.TemporaryDirectory(prefix="fairwater-explain-") as folder:
        return _Fetch(context, Path(folder)).files()


class _Fetch:
    def __init__(self, context: Context, folder: Path) -> None:
        self._context = context
        local = context.scheme is Scheme.FILE
        self._source = Source(context.clone_url, context.name, context.ref, local, context.ref_path)
        self._folder = folder
        self._ends_at = time.monotonic() + FETCH_S_MAX

    def files(self) -> RepositoryFiles:
        self._git("init", "--quiet", "--template=", "--", "repository", at=".")
        self._git("remote", "add", "--", "origin", self._source.clone_url)
        ref = self._ref()
        options = ("--depth=1", "--no-tags", "--no-recurse-submodules", "--filter=blob:none")
        self._git("fetch", "--quiet", *options, "--", "origin", ref)
        # The folder is listed whole: a path with a wildcard in it would be one of git's patterns.
        tops = sorted({candidate.partition("/")[0] for candidate in CANDIDATES})
        listing = self._git("ls-tree", "-r", "-z", "FETCH_HEAD", "--", *tops, bytes_max=_LISTING_BYTES_MAX)
        files: dict[str, bytes] = {}
        links: list[str] = []
        for line in listing.split(b"\0"):
            facts, _, raw = line.partition(b"\t")
            path = raw.decode(errors="replace")
            if not _is_candidate(path) or len(files) + len(links) >= _FOLDER_ENTRIES_MAX:
                continue
            mode, _, name = facts.split(b" ")
            if mode.startswith(b"100"):
                files[path] = self._git("cat-file", "blob", name.decode(), bytes_max=FILE_BYTES_MAX + 1)
            else:
                links.append(path)
        return RepositoryFiles(self._context.name, files, tuple(links))

    def _ref(self) -> str:
        """What to fetch: where a page's address runs a ref and a folder together, only the repository can tell."""
        ref_path = self._source.ref_path
        if ref_path is None:
            return self._source.ref or "HEAD"
        there = self._git("ls-remote", "--", "origin", *ref_patterns(ref_path), bytes_max=_LISTING_BYTES_MAX)
        found = split_ref_path(ref_path, there.decode(errors="replace"))
        if found is None:
            raise no_such_ref(self._source)
        return found.ref

    def _git(self, *words: str, at: str = "repository", bytes_max: int = 0) -> bytes:
        """The first `bytes_max` bytes that git has to say."""
        environment = {
            **os.environ,
            "LC_ALL": "C",
            "GIT_ALLOW_PROTOCOL": "file" if self._source.local else "https:http:ssh",
            "GIT_TERMINAL_PROMPT": "0",
        }
        for name in ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_OBJECT_DIRECTORY"):
            environment.pop(name, None)  # of a hook that this runs in
        with (self._folder / "stdout").open("w+b") as stdout, (self._folder / "stderr").open("w+b") as stderr:
            try:
                process = subprocess.Popen(
                    ("git", *HARDENING, *words),
                    cwd=self._folder / at,
                    env=environment,
                    stdin=subprocess.DEVNULL,
                    stdout=stdout,
                    stderr=stderr,
                    start_new_session=True,  # so that all of it can be ended, and nobody is asked for a password
                    preexec_fn=_bound_size,
                )
            except FileNotFoundError:
                raise Permanent("git is not installed here: install it, or name a folder", code="no_git") from None
            try:
                status = process.wait(timeout=max(0.1, self._ends_at - time.monotonic()))
            except subprocess.TimeoutExpired:
                raise out_of_time(self._source, FETCH_S_MAX) from None
            finally:
                if process.poll() is None:
                    os.killpg(process.pid, signal.SIGKILL)
                    process.wait()
            if status == 0:
                stdout.seek(0)
                return stdout.read(bytes_max)
            stderr.seek(0)
            words_of_git = stderr.read(64 * 1024).decode(errors="replace")
        if status == -signal.SIGXFSZ or "File too large" in words_of_git:
            size = _FETCH_BYTES_MAX // 1024**2
            message = f"{self._source.clone_url} has more than {size} MiB in one commit: clone it, and name the folder"
            raise Permanent(message, code="too_large")
        failure = explain_failure(words_of_git, self._source)
        if not self._source.local and failure.code in {"access_denied", "credential_refused"}:
            message = (
                f"{self._source.clone_url} cannot be read by your own git, which is asked here, or is not there: check "
                "the address; if it is private, sign git in, or clone it and name the folder"
            )
            raise Permanent(message, code=failure.code)
        raise failure


def _bound_size() -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (_FETCH_BYTES_MAX, _FETCH_BYTES_MAX))


def _is_candidate(path: str) -> bool:
    parts = path.split("/")
    for candidate in CANDIDATES:
        wanted = candidate.split("/")
        if len(parts) == len(wanted) and all(want in {"*", part} for part, want in zip(parts, wanted, strict=True)):
            return True
    return False
