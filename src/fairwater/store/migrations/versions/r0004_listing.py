"""Lists of everybody's workspaces are found in order, however many there are.

Only adds an index.
"""

from alembic import op

revision = "0004"
down_revision = "0003"
oldest_server = "0002"


def upgrade() -> None:
    op.create_index(op.f("ix_workspaces_created_at_id"), "workspaces", ["created_at", "id"], unique=False)


def downgrade() -> None:
    op.drop_index("ix_workspaces_created_at_id", "workspaces")
