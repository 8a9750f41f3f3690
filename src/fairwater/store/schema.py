"""The tables. Knows portable column types only, so that SQLite and PostgreSQL hold the same; times are UTC.

Who changes a table here writes a migration beside it (`migrations/versions`); a test compares the two.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import (
    JSON,
    Boolean,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    String,
    Text,
    UniqueConstraint,
    text,
)
from sqlalchemy.orm import Mapped, mapped_column

from fairwater.store.columns import Row as Row


class CompatibilityRow(Row):
    """One row, of id 1. `oldest_server`: the oldest revision of tables whose servers may run on these."""

    __tablename__ = "schema_compatibility"
    id: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=False)
    oldest_server: Mapped[str] = mapped_column(String(32))


class OrganisationRow(Row):
    __tablename__ = "organisations"
    id: Mapped[str] = mapped_column(String(32), primary_key=True)
    name: Mapped[str] = mapped_column(String(63), unique=True)
    created_at: Mapped[datetime]


class UserRow(Row):
    """`start_arrival` is the theoretical arrival time of the limit on starts; `dotfiles_url`, a repository's."""

    __tablename__ = "users"
    id: Mapped[str] = mapped_column(String(32), primary_key=True)
    name: Mapped[str] = mapped_column(String(63), unique=True)
    role: Mapped[str] = mapped_column(String(16))
    blocked: Mapped[bool] = mapped_column(Boolean)
    start_arrival: Mapped[datetime | None]
    dotfiles_url: Mapped[str | None] = mapped_column(Text)
    created_at: Mapped[datetime]


class MembershipRow(Row):
    __tablename__ = "memberships"
    user_id: Mapped[str] = mapped_column(ForeignKey("users.id", ondelete="CASCADE"), primary_key=True)
    organisation_id: Mapped[str] = mapped_column(ForeignKey("organisations.id", ondelete="CASCADE"), primary_key=True)
    joined_at: Mapped[datetime]
    __table_args__ = (Index(None, "organisation_id"),)


class TokenRow(Row):
    __tablename__ = "tokens"
    id: Mapped[str] = mapped_column(String(32), primary_key=True)
    user_id: Mapped[str] = mapped_column(ForeignKey("users.id", ondelete="CASCADE"), index=True)
    name: Mapped[str] = mapped_column(String(63))
    digest: Mapped[str] = mapped_column(String(64), unique=True)
    created_at: Mapped[datetime]
    expires_at: Mapped[datetime | None]


class LoginCodeRow(Row):
    __tablename__ = "login_codes"
    digest: Mapped[str] = mapped_column(String(64), primary_key=True)
    user_id: Mapped[str] = mapped_column(ForeignKey("users.id", ondelete="CASCADE"))
    expires_at: Mapped[datetime] = mapped_column(index=True)


class IdempotencyRow(Row):
    """`status` is null while the request that brought the key is under way."""

    __tablename__ = "idempotency_keys"
    user_id: Mapped[str] = mapped_column(ForeignKey("users.id", ondelete="CASCADE"), primary_key=True)
    key: Mapped[str] = mapped_column(String(255), primary_key=True)
    fingerprint: Mapped[str] = mapped_column(String(64))
    status: Mapped[int | None]
    body: Mapped[str | None] = mapped_column(Text)
    location: Mapped[str | None] = mapped_column(Text)
    created_at: Mapped[datetime] = mapped_column(index=True)


class WorkspaceRow(Row):
    """`asked_at` is when the current run was asked for; `cleared_at`, when nothing was left of a deleted workspace.

    `image_asked` is the image that a person has named; `image` is that one, else the default.
    """

    __tablename__ = "workspaces"
    id: Mapped[str] = mapped_column(String(12), primary_key=True)
    name: Mapped[str] = mapped_column(String(63))
    owner_id: Mapped[str] = mapped_column(ForeignKey("users.id"))
    organisation_id: Mapped[str] = mapped_column(ForeignKey("organisations.id"))
    context_url: Mapped[str] = mapped_column(Text)
    workspace_class: Mapped[str] = mapped_column(String(63))
    image: Mapped[str] = mapped_column(String(255))
    image_asked: Mapped[str | None] = mapped_column(Text)
    command: Mapped[list[str] | None] = mapped_column(JSON(none_as_null=True))
    environment: Mapped[list[Any]] = mapped_column(JSON)
    local_allowed: Mapped[bool] = mapped_column(Boolean)
    phase: Mapped[str] = mapped_column(String(16))
    reason: Mapped[str] = mapped_column(Text)
    since: Mapped[datetime]
    run: Mapped[int]
    failure: Mapped[str | None] = mapped_column(Text)
    doomed: Mapped[bool] = mapped_column(Boolean)
    created_at: Mapped[datetime]
    asked_at: Mapped[datetime | None]
    cleared_at: Mapped[datetime | None]
    __table_args__ = (
        Index(None, "owner_id", "created_at", "id"),
        Index(None, "created_at", "id"),
        Index(None, "phase", "cleared_at"),
        Index(
            "uq_workspaces_owner_id_name",
            "owner_id",
            "name",
            unique=True,
            sqlite_where=text("phase <> 'deleted'"),
            postgresql_where=text("phase <> 'deleted'"),
        ),
    )


class DeadlineRow(Row):
    __tablename__ = "deadlines"
    workspace_id: Mapped[str] = mapped_column(ForeignKey("workspaces.id", ondelete="CASCADE"), primary_key=True)
    kind: Mapped[str] = mapped_column(String(16))
    at: Mapped[datetime] = mapped_column(index=True)


class HistoryRow(Row):
    """What happened to workspaces, in the order of `sequence`; with the owner, so that a stream needs no join."""

    __tablename__ = "history"
    sequence: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=True)
    workspace_id: Mapped[str] = mapped_column(ForeignKey("workspaces.id", ondelete="CASCADE"))
    owner_id: Mapped[str] = mapped_column(ForeignKey("users.id"))
    event: Mapped[str] = mapped_column(String(16))
    phase: Mapped[str] = mapped_column(String(16))
    reason: Mapped[str] = mapped_column(Text)
    run: Mapped[int]
    at: Mapped[datetime]
    __table_args__ = (
        Index(None, "workspace_id", "sequence"),
        Index(None, "owner_id", "sequence"),
        {"sqlite_autoincrement": True},
    )


class CredentialRow(Row):
    """`sealed` is a secret that only the vault opens; `kind` is a `CredentialKind`'s value."""

    __tablename__ = "credentials"
    id: Mapped[str] = mapped_column(String(32), primary_key=True)
    user_id: Mapped[str] = mapped_column(ForeignKey("users.id", ondelete="CASCADE"), index=True)
    kind: Mapped[str] = mapped_column(String(16))
    host: Mapped[str] = mapped_column(String(255))
    username: Mapped[str] = mapped_column(String(255))
    sealed: Mapped[bytes] = mapped_column(LargeBinary)
    plain_http: Mapped[bool] = mapped_column(Boolean)
    created_at: Mapped[datetime]
    __table_args__ = (UniqueConstraint("user_id", "kind", "host"),)


class VariableRow(Row):
    """A variable of a person or of an organisation: one of `user_id` and `organisation_id` is set.

    `repository` is "" for all, else a pattern such as `host/org/repo` or `host/org/*`.
    """

    __tablename__ = "variables"
    id: Mapped[str] = mapped_column(String(32), primary_key=True)
    user_id: Mapped[str | None] = mapped_column(ForeignKey("users.id", ondelete="CASCADE"))
    organisation_id: Mapped[str | None] = mapped_column(ForeignKey("organisations.id", ondelete="CASCADE"))
    repository: Mapped[str] = mapped_column(String(255))
    name: Mapped[str] = mapped_column(String(255))
    sealed: Mapped[bytes] = mapped_column(LargeBinary)
    secret: Mapped[bool] = mapped_column(Boolean)
    created_at: Mapped[datetime]
    __table_args__ = tuple(
        Index(
            f"uq_variables_{owner}_repository_name",
            owner,
            "repository",
            "name",
            unique=True,
            sqlite_where=text(f"{owner} IS NOT NULL"),
            postgresql_where=text(f"{owner} IS NOT NULL"),
        )
        for owner in ("user_id", "organisation_id")
    )


class VaultKeyRow(Row):
    """Tells whether the master key is the one that sealed what is here; holds nothing to open it with."""

    __tablename__ = "vault_keys"
    key_id: Mapped[str] = mapped_column(String(32), primary_key=True)
    proof: Mapped[bytes] = mapped_column(LargeBinary)
    created_at: Mapped[datetime]


class LeaseRow(Row):
    """Which server runs a loop, until when. `epoch` grows with every change of holder."""

    __tablename__ = "leases"
    name: Mapped[str] = mapped_column(String(63), primary_key=True)
    holder: Mapped[str] = mapped_column(String(64))
    epoch: Mapped[int]
    expires_at: Mapped[datetime]


USERS = Row.metadata.tables["users"]
WORKSPACES = Row.metadata.tables["workspaces"]
DEADLINES = Row.metadata.tables["deadlines"]
HISTORY = Row.metadata.tables["history"]
LEASES = Row.metadata.tables["leases"]
"""For statements that are built once: SQLAlchemy then finds the compiled ones without looking at their parts."""
