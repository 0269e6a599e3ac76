"""Where the bytes of a pruned run's entries went."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004_archive"
down_revision = "0003_inner_nodes"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Apply this version."""
    op.add_column(
        "log", sa.Column("archive", sa.String(), nullable=False, server_default=sa.text("''"))
    )


def downgrade() -> None:
    """Return to the version before."""
    op.drop_column("log", "archive")
