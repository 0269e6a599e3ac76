"""Run migrations on the connection that `database.migrate` hands over."""

from __future__ import annotations

from alembic import context

connection = context.config.attributes["connection"]
context.configure(
    connection=connection,
    target_metadata=context.config.attributes["metadata"],
    render_as_batch=True,  # SQLite alters a table by copying it
    transaction_per_migration=False,  # all steps or none
)
context.run_migrations()
