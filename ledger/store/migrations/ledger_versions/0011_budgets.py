"""What each person was charged for statistics about their values, in all runs of a ledger."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0011_budgets"
down_revision = "0010_erasures"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Apply this version."""
    op.create_table(
        "budget",
        sa.Column("account", sa.LargeBinary(), nullable=False),
        sa.Column("response_units", sa.BigInteger(), nullable=False),
        sa.Column("epsilon_units", sa.BigInteger(), nullable=False),
        sa.Column("second_units", sa.BigInteger(), nullable=False),
        sa.Column("delta_units", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("account"),
    )


def downgrade() -> None:
    """Return to the version before."""
    op.drop_table("budget")
