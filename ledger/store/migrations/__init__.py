"""Schema migrations (alembic): one line of versions per database."""
