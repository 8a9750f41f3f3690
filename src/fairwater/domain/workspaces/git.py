"""How git is asked for a repository: the command lines and the environment of a clone.

Refuses to know where the commands run: in a helper container, or as a plain process. Credentials are no part of it:
git finds them by what its surroundings set (`credential.helper`, `SSH_AUTH_SOCK`), and asks nobody else.
"""

from __future__ import annotations

from collections.abc import Sequence

from fairwater.domain.workspaces.git_refs import is_commit, may_be_commit, pull_request_branch, ref_patterns
from fairwater.domain.workspaces.git_urls import is_ssh
from fairwater.domain.workspaces.run import Source

_TRANSFERS = (
    "-c", "core.fsmonitor=false",
    "-c", "http.lowSpeedLimit=1000",  # bytes per second; a server that stalls is left after lowSpeedTime seconds
    "-c", "http.lowSpeedTime=30",
    "-c", "advice.detachedHead=false",
    "-c", "gc.auto=0",
)  # fmt: skip
HARDENING = ("-c", "core.hooksPath=/dev/null", *_TRANSFERS)  # no hook runs, not even one of a template
"""Options of git itself: they hold for this command, those that it starts included, and are not kept in the clone."""

CONFIG = "[safe]\n\tdirectory = *\n"
"""What the file named by GIT_CONFIG_GLOBAL holds. The serving side of a local clone reads `safe.directory` from there
alone (git-config(1), "protected configuration"); without it a repository of another owner is refused."""

SSH = (
    "ssh -F none -o BatchMode=yes -o StrictHostKeyChecking=accept-new -o UserKnownHostsFile=/dev/null "
    "-o ConnectTimeout=15 -o ServerAliveInterval=15 -o ServerAliveCountMax=3 -o ForwardAgent=no "
    "-o LogLevel=ERROR -o GSSAPIAuthentication=no -o UpdateHostKeys=no"
)
_NO_KEYS = " -o IdentitiesOnly=yes -o IdentityFile=none -o IdentityAgent=none"
_KEYS_OF_THE_AGENT = " -o IdentitiesOnly=no -o IdentityFile=none"


def clone_environment(source: Source, home: str, config: str, *, keys: bool = False) -> dict[str, str]:
    """The variables of a clone. `home` is an empty folder, `config` a file with `CONFIG`; with `keys`, those of the
    agent at SSH_AUTH_SOCK are offered: without, nobody's keys are, to a server that somebody else has named.

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
        "GIT_SSH_COMMAND": SSH + (_KEYS_OF_THE_AGENT if keys and is_ssh(source.clone_url) else _NO_KEYS),
        "GIT_CONFIG_NOSYSTEM": "1",
        "GIT_CONFIG_GLOBAL": config,
        "GIT_LFS_SKIP_SMUDGE": "1",
        "GIT_LFS_FORCE_PROGRESS": "1",
    }


def seen_at(url: str, place: str) -> tuple[str, ...]:
    """Options with which git reads from the folder `place` what it knows as `url`, and keeps the latter."""
    return ("-c", f"url.file://{place}.insteadOf={url}")


def git_in(folder: str, *arguments: str, options: Sequence[str] = ()) -> tuple[str, ...]:
    """A command of git in a checkout that may be hostile."""
    return ("git", *HARDENING, *options, "-C", folder, *arguments)


def list_refs_command(source: Source, options: Sequence[str] = ()) -> tuple[str, ...]:
    """Prints which of the refs that `source.ref_path` may begin with are there."""
    assert source.ref_path is not None
    return ("git", *HARDENING, *options, "ls-remote", "--", source.clone_url, *ref_patterns(source.ref_path))


def clone_commands(
    source: Source, target: str, *, whole: bool = False, options: Sequence[str] = ()
) -> tuple[tuple[str, ...], ...]:
    """The commands that bring `source` to the folder `target`, which is not there yet; to be run in order.

    A commit is fetched by its name. Where that is refused (`wants_whole`), remove the target and ask again with
    `whole`, which clones everything and then checks the commit out. Submodules are not brought in.
    """
    git = ("git", *HARDENING, *options)
    there = (*git, "-C", target)
    url, ref = source.clone_url, source.ref
    clone = (*git, "clone", "--progress", "--no-recurse-submodules")
    if ref is None:
        return ((*clone, "--", url, target),)
    branch = pull_request_branch(ref)
    if branch is not None:
        return (
            (*clone, "--no-checkout", "--", url, target),
            (*there, "fetch", "--progress", "--no-recurse-submodules", "--", "origin", f"+{ref}:refs/heads/{branch}"),
            (*there, "config", f"branch.{branch}.remote", "origin"),  # so that `git pull` gets what is added to it
            (*there, "config", f"branch.{branch}.merge", ref),
            (*there, "checkout", "--progress", branch, "--"),
        )
    if whole:
        checkout = (*there, "checkout", "--progress", "--detach", ref, "--")
        return ((*clone, "--no-checkout", "--", url, target), checkout)
    if not is_commit(ref):
        return ((*clone, f"--branch={ref}", "--", url, target),)
    return (
        (*git, "init", "--quiet", f"--object-format={'sha256' if len(ref) == 64 else 'sha1'}", "--", target),
        (*there, "remote", "add", "--", "origin", url),
        (*there, "fetch", "--progress", "--no-recurse-submodules", "--", "origin", ref),
        (*there, "checkout", "--progress", "--detach", ref, "--"),
    )


_REFUSED_SINGLE = ("not our ref", "unadvertised object", "does not allow request for", "no such remote ref")
_NO_SUCH_BRANCH = "remote branch"


def wants_whole(source: Source, stderr: str) -> bool:
    """Whether the commit that `source` names may be found once everything is there: a server may not give it out by
    its name, and the beginning of a name means something only among all commits."""
    if source.ref is None or not may_be_commit(source.ref):
        return False
    lowered = stderr.lower()
    return any(sign in lowered for sign in _REFUSED_SINGLE) or (
        not is_commit(source.ref) and _NO_SUCH_BRANCH in lowered
    )
