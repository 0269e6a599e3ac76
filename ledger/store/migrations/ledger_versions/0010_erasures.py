"""Logs count the erasures, so that who appends notices one that another process made."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0010_erasures"
down_revision = "0009_anchor_nonces"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Apply this version."""
    column = sa.Column("erasures", sa.BigInteger(), nullable=False, server_default="0")
    op.add_column("log", column)


def downgrade() -> None:
    """Return to the version before."""
    op.drop_column("log", "erasures")
