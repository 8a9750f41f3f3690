"""The life cycle commands of devcontainer.json, as the stages of one task.

Decides when each runs: what creates the container once in a workspace's life, what starts it at every start, and what
attaches to it after that, since a workspace is attached to by whoever comes. From the specification: a text goes
through a shell, a list is one command with its arguments, a table is several that run side by side; the first stage
that fails is the last.
"""

from __future__ import annotations

from fairwater.domain.workspaces.config.findings import Findings
from fairwater.domain.workspaces.config.node import ListNode, Node, ScalarNode, TableNode
from fairwater.domain.workspaces.config.tasks import Command, Stage
from fairwater.domain.workspaces.config.variables import Variables, shell_form, shell_word

ONCE = ("onCreateCommand", "updateContentCommand", "postCreateCommand")
EVERY_START = ("postStartCommand", "postAttachCommand")
SIDE_BY_SIDE_MAX = 32
_WORDS_MAX = 1000


def read_stages(findings: Findings, root: TableNode, variables: Variables) -> tuple[Stage, ...]:
    """The stages that have something to run, in the order of the life cycle."""
    stages: list[Stage] = []
    for key in (*ONCE, *EVERY_START):
        entry = root.entry(key)
        commands = _commands(findings, key, entry.value, variables) if entry else ()
        if not commands or entry is None:
            continue
        stages.append(Stage(key, commands, once=key in ONCE, apart=True))
        if key == "postAttachCommand":
            message = (
                "postAttachCommand runs once at every start, after postStartCommand, and not whenever one attaches"
            )
            findings.info(entry.place, "runs_at_start", message)
    return tuple(stages)


def _commands(findings: Findings, key: str, node: Node, variables: Variables) -> tuple[Command, ...]:
    if not isinstance(node, TableNode):
        text = _command(findings, key, node, variables)
        return (Command(text),) if text else ()
    found: list[Command] = []
    for entry in findings.entries(key, node, SIDE_BY_SIDE_MAX):
        text = _command(findings, f"{key}.{entry.key[:40]}", entry.value, variables)
        if text:
            found.append(Command(text, " ".join(entry.key.split())[:40]))
    return tuple(found)


def _command(findings: Findings, name: str, node: Node, variables: Variables) -> str:
    """The command as a line for a shell; "" where there is nothing to run."""
    if isinstance(node, ListNode):
        words: list[str] = []
        for item in findings.items(name, node, _WORDS_MAX):
            word = findings.text(f"a word of {name}", item, numbers=True)
            if word is None:
                return ""  # a command with a word missing is another command
            words.append(shell_word(variables.substitute(word, item.place)))
        return " ".join(words)
    if isinstance(node, TableNode) or not (isinstance(node, ScalarNode) and isinstance(node.value, str | None)):
        findings.wrong_type(name, node, "a text, or a list of words")
        return ""
    text = findings.text(name, node) or ""
    return shell_form(variables.substitute(text, node.place)) if text.strip() else ""
