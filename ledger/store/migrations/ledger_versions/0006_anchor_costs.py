"""What anchors offered and cost, and who may sign with a publisher key."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0006_anchor_costs"
down_revision = "0005_writer_tokens"
branch_labels = None
depends_on = None

_COLUMNS = ("max_fee_wei", "tip_wei", "gas_used", "gas_price_wei")


def upgrade() -> None:
    """Apply this version."""
    for name in _COLUMNS:
        op.add_column("anchor", sa.Column(name, sa.BigInteger(), nullable=True))
    op.create_index("ix_anchor_state", "anchor", ["state"], unique=False)
    op.create_table(
        "publisher_lease",
        sa.Column("chain_id", sa.BigInteger(), nullable=False),
        sa.Column("publisher", sa.String(), nullable=False),
        sa.Column("holder", sa.String(), nullable=False),
        sa.Column("host", sa.String(), nullable=False),
        sa.Column("process", sa.String(), nullable=False),
        sa.PrimaryKeyConstraint("chain_id", "publisher"),
    )


def downgrade() -> None:
    """Return to the version before."""
    op.drop_table("publisher_lease")
    op.drop_index("ix_anchor_state", "anchor")
    with op.batch_alter_table("anchor", schema=None) as batch_op:
        for name in _COLUMNS:
            batch_op.drop_column(name)
