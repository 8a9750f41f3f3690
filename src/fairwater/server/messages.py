"""The bodies that the API takes. A field that is not known is refused, never ignored."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import AfterValidator, Base64Bytes, BaseModel, ConfigDict, Field, StringConstraints

from fairwater.domain.workspaces.secrets import CredentialKind
from fairwater.ports.accounts import Role
from fairwater.ports.vault import VALUE_BYTES_MAX

RESERVED_VARIABLES = frozenset(
    {
        "FAIRWATER_WORKSPACE_ID", "FAIRWATER_WORKSPACE_URL", "FAIRWATER_CONTEXT_URL", "FAIRWATER_REPO_ROOT",
        "GITPOD_WORKSPACE_ID", "GITPOD_WORKSPACE_URL", "GITPOD_REPO_ROOT",
    }
)  # fmt: skip
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,127}")
_WORDS_BYTES_MAX = 96 * 1024
"""Below the 128 KiB that Linux lets one argument or variable have (MAX_ARG_STRLEN, execve(2)), all of them together."""


def _without_nul(text: str) -> str:
    if "\0" in text:
        raise ValueError("must not hold a NUL character")
    return text


def _short_enough(words: list[str]) -> list[str]:
    if sum(len(word.encode("utf-8", "surrogatepass")) + 1 for word in words) > _WORDS_BYTES_MAX:
        raise ValueError(f"must not have more than {_WORDS_BYTES_MAX // 1024} KiB in all")
    return words


def _variables(environment: dict[str, str]) -> dict[str, str]:
    for name in environment:
        if not _VARIABLE.fullmatch(name):
            raise ValueError(f"{name[:40]!r} cannot be a variable's name: letters, digits and '_'")
    _short_enough([f"{name}={value}" for name, value in environment.items()])
    return environment


def _unreserved(environment: dict[str, str]) -> dict[str, str]:
    for name in sorted(RESERVED_VARIABLES & environment.keys()):
        raise ValueError(f"{name} is set by Fairwater: leave it out")
    return environment


Word = Annotated[str, AfterValidator(_without_nul)]
Command = Annotated[list[Word], Field(min_length=1, max_length=1024), AfterValidator(_short_enough)]
Environment = Annotated[dict[str, Word], Field(max_length=256), AfterValidator(_variables)]
Label = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9@._-]{0,62}$")]
Cwd = Annotated[str, StringConstraints(pattern=r"^/", max_length=4096), AfterValidator(_without_nul)]


class Message(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class CreateWorkspace(Message):
    """`start` false creates it stopped. `command` is the first process; without one, the workspace just waits.

    `image` null leaves it to the repository's configuration, and to the server's default where that says nothing.
    """

    context_url: str = Field(max_length=4096)
    workspace_class: str = Field("standard", alias="class", max_length=63)
    image: str | None = Field(None, min_length=1, max_length=255)
    name: str | None = Field(None, max_length=255)
    command: Command | None = None
    environment: Annotated[Environment, AfterValidator(_unreserved)] = Field(default_factory=dict)
    start: bool = True


class StopWorkspace(Message):
    """`force`: without the time that processes are given to end by themselves."""

    force: bool = False


class RunCommand(Message):
    """`stdin` is base64. `cwd` null is the repository. `timeout_s` in seconds; what takes longer is hung up."""

    command: Command
    cwd: Cwd | None = None
    environment: Environment = Field(default_factory=dict)
    user: Literal["workspace", "root"] = "workspace"
    stdin: Base64Bytes | None = None
    timeout_s: float = Field(60.0, gt=0, le=86_400)


class Terminal(Message):
    rows: int = Field(24, ge=1, le=2000)
    columns: int = Field(80, ge=1, le=2000)


class OpenTerminal(Message):
    """The first message of a terminal's WebSocket."""

    command: Command
    cwd: Cwd | None = None
    environment: Environment = Field(default_factory=dict)
    user: Literal["workspace", "root"] = "workspace"
    terminal: Terminal | None = None


class CreateUser(Message):
    """`organisation` null is that of whoever creates the account."""

    name: Label
    role: Role = Role.MEMBER
    organisation: Label | None = None


class ChangeUser(Message):
    """`role` and `blocked` are for administrators. `dotfiles_url` null removes it; left out, it stays as it is."""

    role: Role | None = None
    blocked: bool | None = None
    dotfiles_url: str | None = Field(None, max_length=2048)


Secret = Annotated[str, StringConstraints(min_length=1, max_length=VALUE_BYTES_MAX), AfterValidator(_without_nul)]
Identifier = Annotated[str, StringConstraints(pattern=r"^[A-Za-z_][A-Za-z0-9_]{0,127}$")]


class AddCredential(Message):
    """`secret` is a token or password, or a private SSH key without a passphrase. It is never shown again.

    `plain_http`: it may be sent without TLS.
    """

    kind: CredentialKind = CredentialKind.TOKEN
    host: str = Field(max_length=320)
    username: str = Field("", pattern=r"^[^\x00-\x1f\x7f:]*$", max_length=255)
    secret: Secret = Field(repr=False)
    plain_http: bool = False


class SetVariable(Message):
    """`repository` is a pattern such as `org/repo`, `org/*` or `host/org/repo`; "" is every repository.

    A value that is `secret` is never shown again.
    """

    name: Identifier
    value: Annotated[str, StringConstraints(max_length=VALUE_BYTES_MAX), AfterValidator(_without_nul)] = Field(
        repr=False
    )
    repository: str = Field("", max_length=255)
    secret: bool = False


class CreateToken(Message):
    """`expires_in_s` null is a token that stays good until it is deleted."""

    name: Label = "token"
    expires_in_s: float | None = Field(None, gt=0, le=10 * 365 * 86_400)


class CreateLoginCode(Message):
    user: str = Field(max_length=63)


class ExchangeLoginCode(Message):
    code: str = Field(min_length=1, max_length=255)
