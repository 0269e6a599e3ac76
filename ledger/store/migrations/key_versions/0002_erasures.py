"""Erasures under way are kept where the secrets are, so that a crash interrupts none for good."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002_erasures"
down_revision = "0001_first_keys"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Apply this version."""
    op.create_table(
        "erasure",
        sa.Column("subject", sa.LargeBinary(), nullable=False),
        sa.Column("run_id", sa.String(), nullable=False),
        sa.Column("basis", sa.String(), nullable=False),
        sa.Column("limits", sa.String(), nullable=False),
        sa.Column("erasures", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("subject", "run_id"),
    )


def downgrade() -> None:
    """Return to the version before."""
    op.drop_table("erasure")
