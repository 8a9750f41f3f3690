"""How git is asked for a repository, and what its words mean.

Decides the command lines and the environment of a clone, how far it is, and why it failed. Refuses to know where the
commands run: in a helper container, or as a plain process. Everything that git prints may come from a hostile server.
"""

from __future__ import annotations

import re
from urllib.parse import unquote, urlsplit

from fairwater.domain.failure import Permanent
from fairwater.domain.workspaces.context import is_commit
from fairwater.domain.workspaces.run import Progress, Source

HARDENING = (
    "-c", "core.hooksPath=/dev/null",  # no hook runs, not even one of a template
    "-c", "core.fsmonitor=false",
    "-c", "http.lowSpeedLimit=1000",  # bytes per second; a server that stalls is left after lowSpeedTime seconds
    "-c", "http.lowSpeedTime=30",
    "-c", "advice.detachedHead=false",
    "-c", "gc.auto=0",
)  # fmt: skip
"""Options of git itself: they hold for this command and are not kept in the clone."""

CONFIG = "[safe]\n\tdirectory = *\n"
"""What the file named by GIT_CONFIG_GLOBAL holds. The serving side of a local clone reads `safe.directory` from there
alone (git-config(1), "protected configuration"); without it a repository of another owner is refused."""

_SSH = (
    "ssh -F none -o BatchMode=yes -o StrictHostKeyChecking=accept-new -o UserKnownHostsFile=/dev/null "
    "-o ConnectTimeout=15 -o IdentitiesOnly=yes -o IdentityFile=none -o IdentityAgent=none -o ForwardAgent=no"
)
"""Nobody's own keys are offered to a server that somebody else has named."""


def clone_environment(source: Source, home: str, config: str) -> dict[str, str]:
    """The variables of a clone, to be set alone but for PATH. `home` is an empty folder, `config` a file with `CONFIG`.

    No configuration, credential or key of the machine's is seen, nothing is asked, and only the protocols of the
    source's kind are spoken, redirects and submodules included.
    """
    return {
        "HOME": home,
        "LC_ALL": "C",
        "GIT_ALLOW_PROTOCOL": "file" if source.local else "https:http:ssh",
        "GIT_TERMINAL_PROMPT": "0",
        "GIT_ASKPASS": "/bin/false",
        "SSH_ASKPASS": "/bin/false",
        "GIT_SSH_COMMAND": _SSH,
        "GIT_CONFIG_NOSYSTEM": "1",
        "GIT_CONFIG_GLOBAL": config,
        "GIT_LFS_SKIP_SMUDGE": "1",
    }


def clone_commands(source: Source, target: str, *, whole: bool = False) -> tuple[tuple[str, ...], ...]:
    """The commands that bring `source` to the folder `target`, which is not there yet; to be run in order.

    A commit is fetched by its name. Where a server does not serve single commits (`refuses_single_commit`), remove
    the target and ask again with `whole`, which clones everything and then checks the commit out.
    Submodules are not brought in.
    """
    git = ("git", *HARDENING)
    url, ref = source.clone_url, source.ref
    if ref is None:
        return ((*git, "clone", "--progress", "--no-recurse-submodules", "--", url, target),)
    if not is_commit(ref):
        branch = f"--branch={ref}"
        return ((*git, "clone", "--progress", "--no-recurse-submodules", branch, "--", url, target),)
    there = (*git, "-C", target)
    checkout = (*there, "checkout", "--progress", "--detach", ref, "--")
    if whole:
        return (
            (*git, "clone", "--progress", "--no-recurse-submodules", "--no-checkout", "--", url, target),
            checkout,
        )
    return (
        (*git, "init", "--quiet", f"--object-format={'sha256' if len(ref) == 64 else 'sha1'}", "--", target),
        (*there, "remote", "add", "--", "origin", url),
        (*there, "fetch", "--progress", "--no-recurse-submodules", "--", "origin", ref),
        checkout,
    )


_REFUSED_SINGLE = ("not our ref", "unadvertised object", "does not allow request for", "no such remote ref")


def refuses_single_commit(stderr: str) -> bool:
    """Whether the server does not give out this commit by its name: it may still be part of a branch or tag."""
    lowered = stderr.lower()
    return any(sign in lowered for sign in _REFUSED_SINGLE)


_COUNTED = re.compile(
    r"(?:remote: )?(?P<step>[A-Z][a-z]+ (?:objects|deltas|files)):"
    r"\s+\d{1,3}% \((?P<done>\d{1,12})/(?P<total>\d{1,12})\)"
)
_UNCOUNTED = re.compile(r"(?:remote: )?(?P<step>Enumerating objects):\s+(?P<done>\d{1,12})")
_LINE_MAX = 4096


def parse_progress(line: str) -> Progress | None:
    """How far git is, from a line of its standard error (they end in `\\r` or `\\n`); None where it says no such thing.

    `Receiving objects:  12% (123/1000), 1.20 MiB | 800 KiB/s` is 123 of 1000 objects of the step "receiving objects".
    """
    text = line.strip()[:_LINE_MAX]
    counted = _COUNTED.match(text)
    if counted:
        step = counted["step"].lower()
        return Progress(step, int(counted["done"]), int(counted["total"]), step.rsplit(" ", 1)[1])
    uncounted = _UNCOUNTED.match(text)
    if uncounted:
        return Progress("enumerating objects", int(uncounted["done"]), None, "objects")
    return None


# The first that is found in git's words decides; what is more telling comes first.
_SIGNS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("quota_exceeded", ("disk quota exceeded", "no space left on device", "file too large")),
    ("no_such_host", ("could not resolve host", "name or service not known", "temporary failure in name resolution")),
    (
        "no_such_ref",
        (
            "remote branch", "couldn't find remote ref", "did not match any file", "reference is not a tree",
            "not our ref", "unadvertised object", "unable to read tree", "invalid reference", "does not allow request",
        ),
    ),
    (
        "access_denied",
        (
            "could not read username", "could not read password", "authentication failed", "permission denied",
            "returned error: 401", "returned error: 403", "host key verification failed", "access denied",
            "unable to read askpass",
        ),
    ),
    (
        "not_a_repository",
        (
            "not found", "does not appear to be a git repository", "not a git repository", "returned error: 404",
            "is this a git repository", "does not exist", "no such file or directory", "not valid:",
            "invalid gitfile format", "not a bundle",
        ),
    ),
)  # fmt: skip


_OWN_WORDS = ("fatal:", "error:", "ssh:")
"""Lines of git's own. Others may be a server's (`remote: …`), which must not choose the code where git has one."""


def explain_failure(stderr: str, source: Source) -> Permanent:
    """Why a clone of `source` failed, from what git wrote to standard error, and what to do about it.

    The codes: `no_such_host`, `not_a_repository`, `no_such_ref`, `access_denied`, `quota_exceeded`, `clone_failed`.
    """
    own = "\n".join(line for line in re.split(r"[\r\n]+", stderr) if line.startswith(_OWN_WORDS))
    code = _code_in(own) or _code_in(stderr) or "clone_failed"
    return Permanent(_message(code, source, _last_words(stderr)), code=code)


def _code_in(words: str) -> str | None:
    lowered = words.lower()
    return next((code for code, signs in _SIGNS if any(sign in lowered for sign in signs)), None)


def _message(code: str, source: Source, words: str) -> str:
    url = source.clone_url
    match code:
        case "quota_exceeded":
            return f"{url} does not fit: the workspace's disk is full; choose a larger class or a smaller repository"
        case "no_such_host":
            return f"there is no host {urlsplit(url).hostname!r}: check the spelling of {url}"
        case "no_such_ref":
            return f"{url} has no branch, tag or commit {source.ref!r}: check its name, or leave it out"
        case "access_denied" if source.local:
            return f"{path_of(source)} cannot be read by the user that Fairwater clones as: change its permissions"
        case "access_denied":
            return (
                f"{url} cannot be read without signing in, or is not there; Fairwater clones public repositories: "
                "check the address, or make the repository readable"
            )
        case "not_a_repository":
            where = path_of(source) if source.local else url
            return f"{where} is not a git repository: check the address"
        case _:
            return f"cloning {url} failed: {words or 'git gave no reason'}"


_NOISE = re.compile(r"^(remote: )?(Cloning into|Enumerating|Counting|Compressing|Receiving|Resolving|Updating|Total)\b")


def _last_words(stderr: str) -> str:
    """The last telling line of git's standard error, without control characters, at most 300 signs."""
    lines = [line.strip() for line in re.split(r"[\r\n]+", stderr)]
    telling = [line for line in lines if line and not _NOISE.match(line)]
    chosen = next((line for line in telling if line.startswith(("fatal:", "error:"))), telling[-1] if telling else "")
    return "".join(sign if sign.isprintable() else "?" for sign in chosen)[:300]


def explain_end(status: int, stderr: str, source: Source) -> Permanent:
    """Why a clone ended with the exit status `status`, which is 128 + n where signal n ended it."""
    if status in {128 + 9, 128 + 15} and "fatal:" not in stderr:
        return Permanent(
            f"cloning {source.clone_url} was killed, most likely for want of memory; choose a larger class",
            code="clone_failed",
        )
    return explain_failure(stderr, source)


def out_of_time(source: Source, timeout_s: float) -> Permanent:
    """A clone that was stopped after `timeout_s` seconds."""
    return Permanent(
        f"cloning {source.clone_url} took longer than {timeout_s:.0f} s and was stopped; try again, or ask the "
        "operator for more time",
        code="clone_failed",
    )


def path_of(source: Source) -> str:
    """The folder of this machine that a `file://` source names."""
    return unquote(urlsplit(source.clone_url).path)
