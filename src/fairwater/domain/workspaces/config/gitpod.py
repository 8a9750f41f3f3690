"""`.gitpod.yml`: what it asks for.

Decides what each of its keys means for a workspace. Refuses to know YAML, and how a task's script is made.
"""

from __future__ import annotations

from fairwater.domain.failure import Permanent
from fairwater.domain.workspaces.config import keys
from fairwater.domain.workspaces.config.findings import Findings, show
from fairwater.domain.workspaces.config.node import Entry, Node, ScalarNode, TableNode, asks_nothing
from fairwater.domain.workspaces.config.paths import WORKSPACE, BadFolder, below_workspace
from fairwater.domain.workspaces.config.reading import Explanation
from fairwater.domain.workspaces.config.tasks import TASKS_MAX, Command, Stage, Written, compose_tasks
from fairwater.domain.workspaces.config.values import (
    PORTS_MAX,
    entry_text,
    read_image,
    read_port_range,
    read_variables,
)
from fairwater.domain.workspaces.context import Scheme, parse_context
from fairwater.domain.workspaces.setup import AdditionalRepository, PortRule, Visibility, Wanted

REPOSITORIES_MAX = 32
_ON_OPEN = {
    "notify": "notify", "open-browser": "open-browser", "open-preview": "open-preview",
    "ignore": "ignore", "ignore-completely": "ignore",
}  # fmt: skip
_STAGES = ("before", "init", "prebuild", "command")
_SHORT = 200
"""How long a name or description of a port or task is, at most."""


def read_gitpod(findings: Findings, root: Node, repository: str) -> Explanation:
    """What `root`, the tree of a `.gitpod.yml`, asks for."""
    if not isinstance(root, TableNode):
        findings.wrong_type("the configuration", root, "a table of keys, such as `image: node:20`")
        return Explanation(Wanted(findings.file))
    keys.check_keys(findings, root, keys.GITPOD, keys.GITPOD_REFUSED)
    image, image_line = _image(findings, root.entry("image"))
    checkout = _checkout(findings, root.entry("checkoutLocation"))
    main = checkout or repository
    folder = _location(findings, root.entry("workspaceLocation"))
    composed = compose_tasks(findings, _tasks(findings, root.entry("tasks"), f"{WORKSPACE}/{main}".rstrip("/")))
    wanted = Wanted(
        file=findings.file,
        image=image,
        image_line=image_line,
        tasks=tuple(one.task for one in composed),
        ports=_ports(findings, root.entry("ports")),
        repositories=_repositories(findings, root.entry("additionalRepositories"), main),
        checkout=checkout,
        folder=folder,
    )
    return Explanation(wanted, tuple(one.stages for one in composed))


def _image(findings: Findings, entry: Entry | None) -> tuple[str | None, int | None]:
    if entry is None:
        return None, None
    if isinstance(entry.value, TableNode):
        file = entry.value.entry("file")
        named = file.value.text if file and isinstance(file.value, ScalarNode) else "a Dockerfile"
        findings.error(
            entry.place,
            "not_supported",
            f"building images is not supported yet: build {show(named)} elsewhere and name the image as `image: "
            "name:tag`; the default image is used",
        )
        return None, None
    text = findings.text("image", entry.value)
    image = None if text is None else read_image(findings, entry.value, text)
    return image, entry.place.line if image else None


def _checkout(findings: Findings, entry: Entry | None, within: str = "") -> str:
    text = entry_text(findings, entry, within)
    if entry is None or text is None:
        return ""
    try:
        location = below_workspace(text)
        if not location:
            raise BadFolder("a repository needs a folder of its own below /workspace")
    except BadFolder as bad:
        name = f"{within}.{entry.key}" if within else entry.key
        message = f"{name} {show(text)}: {bad}; the repository's own name is used"
        findings.error(entry.value.place, "bad_folder", message)
        return ""
    return location


def _location(findings: Findings, entry: Entry | None) -> str:
    text = entry_text(findings, entry)
    if entry is None or text is None:
        return ""
    try:
        location = below_workspace(text)
    except BadFolder as bad:
        message = f"workspaceLocation {show(text)}: {bad}; the repository's folder is used"
        findings.error(entry.value.place, "bad_folder", message)
        return ""
    if location.endswith(".code-workspace"):
        location = location.rpartition("/")[0]
        message = f"{show(text)} is an editor's file, which is not opened: its folder is where one begins"
        findings.info(entry.value.place, "not_supported", message)
    return location or WORKSPACE


def _tasks(findings: Findings, entry: Entry | None, folder: str) -> list[Written]:
    written: list[Written] = []
    for node in findings.items("tasks", entry.value, TASKS_MAX) if entry else ():
        place, stages, name = node.place, tuple[Stage, ...](), ""
        environment: tuple[tuple[str, str], ...] = ()
        if not isinstance(node, TableNode):
            findings.wrong_type("a task", node, "a table of keys, such as `- init: make`")
        else:
            keys.check_keys(findings, node, keys.TASK, keys.TASK_REFUSED, "tasks")
            name = _short(entry_text(findings, node.entry("name"), "tasks"))
            stages = tuple(_stage(findings, node, key) for key in _STAGES)
            variables = node.entry("env")
            environment = read_variables(findings, "tasks.env", variables.value) if variables else ()
            if not any(one.key in _STAGES and not asks_nothing(one.value) for one in node.entries):
                findings.info(place, "nothing_to_run", "this task has nothing to run, and is left out")
        written.append(Written(name, stages, folder, place, environment))
    return written


def _stage(findings: Findings, task: TableNode, key: str) -> Stage:
    entry = task.entry(key)
    text = entry_text(findings, entry, "tasks") or ""
    if entry is not None and key == "prebuild" and text.strip():
        message = (
            "tasks.prebuild runs after init when a workspace first starts: no prebuilds are made; write it as init"
        )
        findings.info(entry.place, "deprecated", message)
    commands = (Command(text),) if text.strip() else ()
    return Stage(key, commands, once=key in {"init", "prebuild"})


def _ports(findings: Findings, entry: Entry | None) -> tuple[PortRule, ...]:
    rules: list[PortRule] = []
    for node in findings.items("ports", entry.value, PORTS_MAX) if entry else ():
        if not isinstance(node, TableNode):
            findings.wrong_type("a port", node, "a table of keys, such as `- port: 3000`")
            continue
        keys.check_keys(findings, node, keys.PORT, within="ports")
        port = node.entry("port")
        if port is None:
            findings.error(node.place, "missing_key", "a port needs the key `port`, such as `- port: 3000`")
            continue
        found = read_port_range(findings, "ports.port", port.value)
        if found is not None:
            rules.append(_rule(findings, node, *found))
    return tuple(rules)


def _rule(findings: Findings, node: TableNode, first: int, last: int) -> PortRule:
    def choice(key: str, choices: tuple[str, ...]) -> str | None:
        entry = node.entry(key)
        return findings.choice(f"ports.{key}", entry.value, choices) if entry else None

    protocol = node.entry("protocol")
    outdated = isinstance(protocol.value, ScalarNode) and protocol.value.value in {"TCP", "UDP"} if protocol else False
    if protocol and outdated:
        message = "ports.protocol TCP or UDP is no longer part of .gitpod.yml: the port is taken as http; remove it"
        findings.info(protocol.value.place, "deprecated", message)
    return PortRule(
        first,
        last,
        name=_short(entry_text(findings, node.entry("name"), "ports")),
        description=_short(entry_text(findings, node.entry("description"), "ports")),
        visibility=Visibility(choice("visibility", ("private", "public")) or "private"),
        on_open=_ON_OPEN[choice("onOpen", tuple(_ON_OPEN)) or "notify"],
        protocol="http" if outdated else choice("protocol", ("http", "https")) or "http",
    )


def _short(text: str | None) -> str:
    return " ".join((text or "").split())[:_SHORT]


def _repositories(findings: Findings, entry: Entry | None, main: str) -> tuple[AdditionalRepository, ...]:
    found: list[AdditionalRepository] = []
    taken = {main}
    within = "additionalRepositories"
    for node in findings.items(within, entry.value, REPOSITORIES_MAX) if entry else ():
        if not isinstance(node, TableNode):
            findings.wrong_type("an additional repository", node, "a table of keys, such as `- url: https://…`")
            continue
        keys.check_keys(findings, node, keys.REPOSITORY, within=within)
        url_entry = node.entry("url")
        url = entry_text(findings, url_entry, within)
        if url_entry is None or url is None:
            findings.error(node.place, "missing_key", "an additional repository needs the key `url`")
            continue
        try:
            context = parse_context(url)
        except Permanent as failure:
            findings.error(url_entry.value.place, "bad_url", f"{within}.url: {failure.message}; it is left out")
            continue
        if context.scheme is Scheme.FILE:
            message = f"{within}.url: a repository cannot name one on the node's own disk: use https:// or ssh://"
            findings.error(url_entry.value.place, "bad_url", f"{message}; it is left out")
            continue
        location = _checkout(findings, node.entry("checkoutLocation"), within)
        if (location or context.name) in taken:
            message = (
                f"{within}: another repository is in /workspace/{location or context.name} already; it is left out: "
                "give it a checkoutLocation of its own"
            )
            findings.error(node.place, "bad_folder", message)
            continue
        taken.add(location or context.name)
        found.append(AdditionalRepository(url, location))
    return tuple(found)
