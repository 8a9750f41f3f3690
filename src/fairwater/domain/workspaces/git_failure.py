"""Why git failed, from its words, and what to do about it. Everything it prints may come from a hostile server."""

from __future__ import annotations

import re

from fairwater.domain.failure import Permanent
from fairwater.domain.workspaces.git_urls import host_of, path_of
from fairwater.domain.workspaces.run import Source

# The first that is found in git's words decides; what is more telling comes first.
_SIGNS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("quota_exceeded", ("disk quota exceeded", "no space left on device", "file too large")),
    ("no_such_host", ("could not resolve host", "name or service not known", "temporary failure in name resolution")),
    (
        "no_such_ref",
        (
            "remote branch", "couldn't find remote ref", "did not match any file", "reference is not a tree",
            "not our ref", "unadvertised object", "unable to read tree", "invalid reference", "does not allow request",
            "unknown revision",
        ),
    ),
    # Git says so only when it was given something to sign in with.
    ("credential_refused", ("authentication failed",)),
    (
        "access_denied",
        (
            "could not read username", "could not read password", "permission denied",
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


def explain_failure(stderr: str, source: Source, *, key_offered: bool = False) -> Permanent:
    """Why a clone of `source` failed, from what git wrote to standard error, and what to do about it.

    `key_offered`: an SSH key of the person's for this host was there to be used.
    The codes: `no_such_host`, `not_a_repository`, `no_such_ref`, `access_denied`, `credential_refused`,
    `quota_exceeded`, `clone_failed`.
    """
    own = "\n".join(line for line in re.split(r"[\r\n]+", stderr) if line.startswith(_OWN_WORDS))
    code = _code_in(own) or _code_in(stderr) or "clone_failed"
    if key_offered and code == "access_denied" and "(publickey" in stderr:
        code = "credential_refused"
    return Permanent(_message(code, source, last_words(stderr)), code=code)


def explain_end(status: int, stderr: str, source: Source, *, key_offered: bool = False) -> Permanent:
    """Why a clone ended with the exit status `status`, which is 128 + n where signal n ended it."""
    if status in {128 + 9, 128 + 15} and "fatal:" not in stderr:
        return Permanent(
            f"cloning {source.clone_url} was killed, most likely for want of memory; choose a larger class",
            code="clone_failed",
        )
    return explain_failure(stderr, source, key_offered=key_offered)


def out_of_time(source: Source, timeout_s: float) -> Permanent:
    """A clone that was stopped after `timeout_s` seconds."""
    return Permanent(
        f"cloning {source.clone_url} took longer than {timeout_s:.0f} s and was stopped; try again, or ask the "
        "operator for more time",
        code="clone_failed",
    )


def no_such_ref(source: Source) -> Permanent:
    return Permanent(_message("no_such_ref", source, ""), code="no_such_ref")


def _code_in(words: str) -> str | None:
    lowered = words.lower()
    return next((code for code, signs in _SIGNS if any(sign in lowered for sign in signs)), None)


def _message(code: str, source: Source, words: str) -> str:
    url, host = source.clone_url, host_of(source.clone_url)
    match code:
        case "quota_exceeded":
            return f"{url} does not fit: the workspace's disk is full; choose a larger class or a smaller repository"
        case "no_such_host":
            return f"there is no host {host!r}: check the spelling of {url}"
        case "no_such_ref" if source.ref_path is not None:
            return f"{url} has no branch, tag or commit that {source.ref_path!r} begins with: check its name"
        case "no_such_ref" if (request := _REQUEST.fullmatch(source.ref or "")) is not None:
            return f"{url} has no {_REQUEST_NAMES[request[1]]} {request[2]}: check its number"
        case "no_such_ref":
            return f"{url} has no branch, tag or commit {source.ref!r}: check its name, or leave it out"
        case "access_denied" if source.local:
            return f"{path_of(source)} cannot be read by the user that Fairwater clones as: change its permissions"
        case "access_denied":
            return (
                f"{url} cannot be read without signing in, or is not there: check the address, and if the repository "
                f"is private add a credential with '{_add_credential(source)}'"
            )
        case "credential_refused":
            return (
                f"{host} refused your credential for {url}: it is wrong, has expired, or does not cover this "
                f"repository; replace it with '{_add_credential(source)}'"
            )
        case "not_a_repository" if source.local:
            return f"{path_of(source)} is not a git repository: check the address"
        case "not_a_repository":
            return (
                f"{url} is not a git repository, or not one that may be seen without signing in: check the address, "
                f"and if it is private add a credential with '{_add_credential(source)}'"
            )
        case _:
            return f"cloning {url} failed: {words or 'git gave no reason'}"


_REQUEST = re.compile(r"refs/(pull|merge-requests)/(\d+)/head")
_REQUEST_NAMES = {"pull": "pull request", "merge-requests": "merge request"}


def _add_credential(source: Source) -> str:
    """The command that adds what this way of signing in asks for: a token is not sent without TLS unless told so."""
    what = {"http": " --plain-http", "https": ""}.get(source.clone_url.partition("://")[0], " --ssh-key FILE")
    return f"fairwater credential add {host_of(source.clone_url)}{what}"


_NOISE = re.compile(r"^(remote: )?(Cloning into|Enumerating|Counting|Compressing|Receiving|Resolving|Updating|Total)\b")


def last_words(stderr: str) -> str:
    """The last telling line of standard error, without control characters, at most 300 signs."""
    lines = [line.strip() for line in re.split(r"[\r\n]+", stderr)]
    telling = [line for line in lines if line and not _NOISE.match(line)]
    chosen = next((line for line in telling if line.startswith(("fatal:", "error:"))), telling[-1] if telling else "")
    return "".join(sign if sign.isprintable() else "?" for sign in chosen)[:300]
