"""`devcontainer.json`: what it asks for.

Decides what each of its properties means for a workspace, by the Development Containers Specification where a
workspace has the same, and else by what is nearest; the difference is told. Refuses to know JSON.
"""

from __future__ import annotations

import re
from dataclasses import replace

from fairwater.domain.workspaces.config import keys
from fairwater.domain.workspaces.config.commands import read_stages
from fairwater.domain.workspaces.config.findings import Findings, show
from fairwater.domain.workspaces.config.forwarding import read_ports
from fairwater.domain.workspaces.config.node import Entry, Node, ScalarNode, TableNode, asks_nothing
from fairwater.domain.workspaces.config.paths import WORKSPACE, BadFolder, below_workspace
from fairwater.domain.workspaces.config.reading import Explanation
from fairwater.domain.workspaces.config.tasks import Written, compose_tasks
from fairwater.domain.workspaces.config.values import entry_text, read_image, read_variables
from fairwater.domain.workspaces.config.variables import Variables
from fairwater.domain.workspaces.setup import Requirements, Wanted

_USER = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}\$?")
_SIZE = re.compile(r"([0-9]{1,19})([tgmk]b)?", re.IGNORECASE)
_POWERS = {"": 0, "kb": 10, "mb": 20, "gb": 30, "tb": 40}
_SIZE_END = 1 << 63
_CPUS_MAX = 100_000
_MADE_ELSEWISE = ("build", "dockerFile", "dockerComposeFile")
_PROBES = ("none", "loginShell", "loginInteractiveShell", "interactiveShell")


def read_devcontainer(findings: Findings, root: Node, repository: str) -> Explanation:
    """What `root`, the tree of a `devcontainer.json`, asks for."""
    if not isinstance(root, TableNode):
        findings.wrong_type("the configuration", root, 'a table of keys, such as {"image": "node:20"}')
        return Explanation(Wanted(findings.file))
    keys.check_keys(findings, root, keys.DEVCONTAINER, keys.DEVCONTAINER_REFUSED)
    checkout = f"{WORKSPACE}/{repository}".rstrip("/")
    variables = Variables(findings, checkout, checkout)
    folder = _folder(findings, root, variables)
    variables.folder = folder
    image, image_line = _image(findings, root, variables)
    stages = read_stages(findings, root, variables)
    composed = compose_tasks(findings, [Written("devcontainer", stages, folder, root.place)])
    wanted = Wanted(
        file=findings.file,
        image=image,
        image_line=image_line,
        user=_user(findings, root, variables),
        container_environment=_environment(findings, root.entry("containerEnv"), variables),
        remote_environment=_environment(findings, root.entry("remoteEnv"), variables),
        tasks=tuple(one.task for one in composed),
        ports=read_ports(findings, root),
        folder="" if folder == checkout else folder,
        entrypoint=_entrypoint(findings, root.entry("overrideCommand")),
        requirements=_requirements(findings, root.entry("hostRequirements")),
    )
    _probe(findings, root.entry("userEnvProbe"))
    return Explanation(wanted, tuple(one.stages for one in composed))


def _image(findings: Findings, root: TableNode, variables: Variables) -> tuple[str | None, int | None]:
    entry = root.entry("image")
    text = entry_text(findings, entry)
    if entry is None or text is None:
        if not any(key in _MADE_ELSEWISE for key in (one.key for one in root.entries)):
            findings.info(root.place, "no_image", "no image is named: the default one is used")
        return None, None
    image = read_image(findings, entry.value, variables.substitute(text, entry.value.place))
    return image, entry.place.line if image else None


def _user(findings: Findings, root: TableNode, variables: Variables) -> str | None:
    """Who commands run as: `remoteUser`, else `containerUser`. There is one user only in a workspace."""
    found: dict[str, str] = {}
    for key in ("remoteUser", "containerUser"):
        entry = root.entry(key)
        text = entry_text(findings, entry)
        if entry is None or text is None:
            continue
        name = variables.substitute(text, entry.value.place).strip()
        user, _, group = name.partition(":")
        if not name:
            continue  # a variable that is empty here, which has been told
        if not _USER.fullmatch(user):
            message = f"{key} {show(name)} is not a user's name or number; the image's own user is used"
            findings.error(entry.value.place, "bad_value", message)
            continue
        if group:
            findings.warning(
                entry.value.place, "not_supported", f"{key}: the user's own group is used, not {show(group)}"
            )
        if found and user not in found.values():
            message = f"containerUser is not used: everything runs as remoteUser, {show(found['remoteUser'])}"
            findings.info(entry.place, "one_user", message)
        found[key] = user
    return next(iter(found.values()), None)


def _environment(findings: Findings, entry: Entry | None, variables: Variables) -> tuple[tuple[str, str], ...]:
    return read_variables(findings, entry.key, entry.value, variables.substitute) if entry else ()


def _folder(findings: Findings, root: TableNode, variables: Variables) -> str:
    """`workspaceFolder` as it is here: the repository is always in its folder below `/workspace`."""
    mount, entry = root.entry("workspaceMount"), root.entry("workspaceFolder")
    target = _mount_target(entry_text(findings, mount) or "")
    if target is not None:
        target = variables.substitute(target, mount.place if mount else root.place).rstrip("/") or "/"
    checkout = variables.repository_folder
    text = entry_text(findings, entry)
    if entry is None or text is None:
        if mount and not asks_nothing(mount.value):
            findings.warning(
                mount.place, "not_supported", f"workspaceMount is not followed: the repository is in {checkout}"
            )
        return checkout
    written = variables.substitute(text, entry.value.place).rstrip("/") or "/"
    if written == checkout or (target is None and written.startswith(WORKSPACE + "/")):
        try:
            return f"{WORKSPACE}/{below_workspace(written)}"
        except BadFolder as bad:
            findings.error(
                entry.value.place, "bad_folder", f"workspaceFolder {show(written)}: {bad}; {checkout} is used"
            )
            return checkout
    return _mapped(findings, entry, written, target, checkout)


def _mapped(findings: Findings, entry: Entry, written: str, target: str | None, checkout: str) -> str:
    """The folder in the checkout that `written` names, where other tools would have mounted the checkout elsewhere."""
    place = entry.value.place
    beyond = ""
    if target is not None and (written == target or written.startswith(target.rstrip("/") + "/")):
        beyond = written.removeprefix(target)
    elif written.startswith("/workspaces/"):
        beyond = written.removeprefix("/workspaces/").partition("/")[2]
    elif written not in {WORKSPACE, "/workspaces"}:
        message = (
            f"workspaceFolder {show(written)} is not below /workspace, where the repository is: {checkout} is used"
        )
        findings.warning(place, "mapped", message)
        return checkout
    try:
        inside = below_workspace(beyond.lstrip("/"))
    except BadFolder as bad:
        findings.error(place, "bad_folder", f"workspaceFolder {show(written)}: {bad}; {checkout} is used")
        return checkout
    folder = f"{checkout}/{inside}".rstrip("/")
    findings.info(place, "mapped", f"workspaceFolder {show(written)} is {folder} here, where the repository is")
    return folder


def _mount_target(text: str) -> str | None:
    """The target of a mount as Docker writes it: `source=…,target=/workspace,type=bind`."""
    for part in text.split(","):
        name, _, value = part.partition("=")
        if name.strip() in {"target", "destination", "dst"}:
            return value.strip()
    return None


def _entrypoint(findings: Findings, entry: Entry | None) -> bool:
    """Whether the image's own first process is to run: where `overrideCommand` is false; it is true by default."""
    return entry is not None and findings.truth("overrideCommand", entry.value) is False


def _requirements(findings: Findings, entry: Entry | None) -> Requirements:
    if entry is None or asks_nothing(entry.value):
        return Requirements()
    if not isinstance(entry.value, TableNode):
        findings.wrong_type("hostRequirements", entry.value, 'a table of keys, such as {"cpus": 4}')
        return Requirements()
    table = entry.value
    keys.check_keys(findings, table, keys.REQUIREMENTS, within="hostRequirements")
    wanted = Requirements()
    cpus = table.entry("cpus")
    if cpus:
        wanted = replace(wanted, cpu_cores=findings.whole("hostRequirements.cpus", cpus.value, 1, _CPUS_MAX))
    memory, storage = table.entry("memory"), table.entry("storage")
    wanted = replace(wanted, memory=_size(findings, memory), storage=_size(findings, storage))
    gpu = table.entry("gpu")
    if gpu and not asks_nothing(gpu.value):
        optional = isinstance(gpu.value, ScalarNode) and gpu.value.value == "optional"
        message = "hostRequirements.gpu is not supported yet: the workspace has no GPU"
        (findings.info if optional else findings.warning)(gpu.place, "not_supported", message)
    return wanted


def _size(findings: Findings, entry: Entry | None) -> int | None:
    """Bytes. `8gb` is 8 GiB, as the specification's own tools count."""
    if entry is None:
        return None
    name = f"hostRequirements.{entry.key}"
    text = findings.text(name, entry.value, numbers=True)
    if text is None:
        return None
    match = _SIZE.fullmatch(text.strip())
    size = int(match[1]) << _POWERS[(match[2] or "").lower()] if match else _SIZE_END
    if size >= _SIZE_END:
        message = f"{name} {show(text)} is not a size: write it as 8gb or 512mb; it is left out"
        findings.error(entry.value.place, "bad_value", message)
        return None
    return size


def _probe(findings: Findings, entry: Entry | None) -> None:
    probe = findings.choice("userEnvProbe", entry.value, _PROBES) if entry else None
    if entry and probe not in {None, "interactiveShell"}:
        message = f"userEnvProbe {probe} is not followed: commands run in an interactive bash where the image has one"
        findings.info(entry.place, "not_supported", message)
