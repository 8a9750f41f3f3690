"""Which of a repository's configuration files counts, and what it asks for.

Decides that `.gitpod.yml` wins over every devcontainer.json, and of those the order of the specification. A file that
cannot be read is told of, and asks for nothing: the workspace then starts with the default image, so that its owner
can mend it there.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from fairwater.domain.workspaces.config.devcontainer import read_devcontainer
from fairwater.domain.workspaces.config.findings import Findings
from fairwater.domain.workspaces.config.gitpod import read_gitpod
from fairwater.domain.workspaces.config.jsonc_source import read_jsonc
from fairwater.domain.workspaces.config.node import (
    JSON_LINE_END,
    YAML_LINE_END,
    Broken,
    Document,
    Lines,
    Place,
    ScalarNode,
)
from fairwater.domain.workspaces.config.reading import Explanation
from fairwater.domain.workspaces.config.yaml_source import read_yaml
from fairwater.domain.workspaces.notice import Level, Notice
from fairwater.domain.workspaces.setup import Wanted

GITPOD_FILE = ".gitpod.yml"
MISNAMED = ".gitpod.yaml"
"""Gitpod reads `.gitpod.yml` alone; who writes this one is told."""

CANDIDATES = (
    GITPOD_FILE,
    ".devcontainer/devcontainer.json",
    ".devcontainer.json",
    ".devcontainer/*/devcontainer.json",
    MISNAMED,
)
"""Where configuration files are in a repository, in the order in which they count; `*` is one segment of a path."""

FILE_BYTES_MAX = 256 * 1024
_FILES_MAX = 50
_TOP = Place(1, 1)


def read_configuration(files: Mapping[str, bytes], repository: str) -> Wanted:
    """What the configuration `files` of a repository, by path, ask for. Never raises.

    `repository` is the checkout's folder below `/workspace`. Paths that are none of `CANDIDATES` are not looked at.
    """
    return explain_configuration(files, repository).wanted


def explain_configuration(files: Mapping[str, bytes], repository: str) -> Explanation:
    """The same, with what the tasks are made of."""
    found = _in_order(files)
    if not found:
        return Explanation(Wanted(notices=_misnamed(files)))
    file, passed_over = found[0], tuple(found[1:])
    explanation = _read(file, files[file], repository)
    wanted = explanation.wanted
    notices = (*wanted.notices, *(_passed_over(other, file) for other in passed_over[:_FILES_MAX]), *_misnamed(files))
    return replace(explanation, wanted=replace(wanted, notices=notices), passed_over=passed_over)


def _in_order(files: Mapping[str, bytes]) -> list[str]:
    found: list[str] = []
    for candidate in CANDIDATES:
        if candidate != MISNAMED:
            found += sorted(path for path in files if _matches(path, candidate))
    return found


def _matches(path: str, candidate: str) -> bool:
    """Whether `path` is `candidate`, whose `*` is any one segment."""
    parts, wanted = path.split("/"), candidate.split("/")
    pairs = zip(parts, wanted, strict=False)
    return len(parts) == len(wanted) and all(want in {"*", part} and part for part, want in pairs)


def _misnamed(files: Mapping[str, bytes]) -> tuple[Notice, ...]:
    if MISNAMED not in files:
        return ()
    message = f"{MISNAMED} is not read: rename it to {GITPOD_FILE}"
    return (Notice(Level.WARNING, "misnamed", message, MISNAMED, 1, 1),)


def _passed_over(other: str, file: str) -> Notice:
    return Notice(Level.INFO, "passed_over", f"this file is not used: {file} counts before it", other, 1, 1)


def _read(file: str, content: bytes, repository: str) -> Explanation:
    findings = Findings(file)
    explanation = Explanation(Wanted(file))
    try:
        document = _parse(file, content)
    except Broken as broken:
        findings.error(broken.place, _code(file), f"{broken.message}; until it is mended, nothing of the file is used")
    else:
        findings.repeated(document)
        root = document.root
        if root is not None and not (isinstance(root, ScalarNode) and root.value is None):
            read = read_gitpod if file == GITPOD_FILE else read_devcontainer
            explanation = read(findings, root, repository)
        else:
            findings.info(_TOP, "empty", "the file is empty, and asks for nothing")
    return replace(explanation, wanted=replace(explanation.wanted, notices=findings.notices()))


def _code(file: str) -> str:
    return "broken_yaml" if file == GITPOD_FILE else "broken_json"


def _parse(file: str, content: bytes) -> Document:
    """The tree of the file's bytes.

    Raises:
        Broken.
    """
    if len(content) > FILE_BYTES_MAX:
        raise Broken(f"the file has more than {FILE_BYTES_MAX // 1024} KiB: shorten it", _TOP)
    content = content.removeprefix(b"\xef\xbb\xbf")
    try:
        text = content.decode()
    except UnicodeDecodeError as error:
        before = content[: error.start].decode()
        place = Lines(before, YAML_LINE_END if file == GITPOD_FILE else JSON_LINE_END).place(len(before))
        raise Broken("the file is not UTF-8 text from here on: save it as UTF-8", place) from None
    return read_yaml(text) if file == GITPOD_FILE else read_jsonc(text)
