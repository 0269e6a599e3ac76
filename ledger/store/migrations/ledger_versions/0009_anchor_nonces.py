"""Anchors are found by their nonce: the rows of those that are long settled are not read."""

from __future__ import annotations

from alembic import op

revision = "0009_anchor_nonces"
down_revision = "0008_weights"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Apply this version."""
    op.create_index("ix_anchor_nonce", "anchor", ["nonce"], unique=False)


def downgrade() -> None:
    """Return to the version before."""
    op.drop_index("ix_anchor_nonce", "anchor")
