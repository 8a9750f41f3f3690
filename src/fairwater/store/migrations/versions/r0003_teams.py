"""What a team brings: credentials, variables, dotfiles, an image somebody named; and leases, for several servers.

Only adds: a server of revision 0002 neither reads nor writes any of it, and every new column may be empty.
"""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
oldest_server = "0002"


def upgrade() -> None:
    op.add_column("workspaces", sa.Column("image_asked", sa.Text(), nullable=True))
    op.add_column("users", sa.Column("dotfiles_url", sa.Text(), nullable=True))
    _credentials()
    _variables()
    op.create_table(
        "vault_keys",
        sa.Column("key_id", sa.String(length=32), nullable=False),
        sa.Column("proof", sa.LargeBinary(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("key_id", name=op.f("pk_vault_keys")),
    )
    op.create_table(
        "leases",
        sa.Column("name", sa.String(length=63), nullable=False),
        sa.Column("holder", sa.String(length=64), nullable=False),
        sa.Column("epoch", sa.Integer(), nullable=False),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_leases")),
    )


def _credentials() -> None:
    op.create_table(
        "credentials",
        sa.Column("id", sa.String(length=32), nullable=False),
        sa.Column("user_id", sa.String(length=32), nullable=False),
        sa.Column("kind", sa.String(length=16), nullable=False),
        sa.Column("host", sa.String(length=255), nullable=False),
        sa.Column("username", sa.String(length=255), nullable=False),
        sa.Column("sealed", sa.LargeBinary(), nullable=False),
        sa.Column("plain_http", sa.Boolean(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(["user_id"], ["users.id"], name=op.f("fk_credentials_user_id"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_credentials")),
        sa.UniqueConstraint("user_id", "kind", "host", name=op.f("uq_credentials_user_id_kind_host")),
    )
    op.create_index(op.f("ix_credentials_user_id"), "credentials", ["user_id"], unique=False)


def _variables() -> None:
    op.create_table(
        "variables",
        sa.Column("id", sa.String(length=32), nullable=False),
        sa.Column("user_id", sa.String(length=32), nullable=True),
        sa.Column("organisation_id", sa.String(length=32), nullable=True),
        sa.Column("repository", sa.String(length=255), nullable=False),
        sa.Column("name", sa.String(length=255), nullable=False),
        sa.Column("sealed", sa.LargeBinary(), nullable=False),
        sa.Column("secret", sa.Boolean(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(
            ["organisation_id"], ["organisations.id"], name=op.f("fk_variables_organisation_id"), ondelete="CASCADE"
        ),
        sa.ForeignKeyConstraint(["user_id"], ["users.id"], name=op.f("fk_variables_user_id"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_variables")),
    )
    for owner in ("user_id", "organisation_id"):
        owned = sa.text(f"{owner} IS NOT NULL")
        op.create_index(
            op.f(f"uq_variables_{owner}_repository_name"),
            "variables",
            [owner, "repository", "name"],
            unique=True,
            sqlite_where=owned,
            postgresql_where=owned,
        )


def downgrade() -> None:
    for table in ("leases", "vault_keys", "variables", "credentials"):
        op.drop_table(table)
    op.drop_column("users", "dotfiles_url")
    op.drop_column("workspaces", "image_asked")
