"""Alembic's entry: runs the revisions over the connection that `store/migration.py` hands in."""

from alembic import context

from fairwater.store.schema import Row

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=Row.metadata,
    render_as_batch=True,
    transaction_per_migration=False,
)
with context.begin_transaction():
    context.run_migrations()
