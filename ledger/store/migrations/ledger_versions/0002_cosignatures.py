"""Signatures of witnesses over our tree heads."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002_cosignatures"
down_revision = "0001_first"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Apply this version."""
    op.create_table(
        "cosignature",
        sa.Column("log_number", sa.Integer(), nullable=False),
        sa.Column("tree_size", sa.BigInteger(), nullable=False),
        sa.Column("witness", sa.String(), nullable=False),
        sa.Column("key_id", sa.String(), nullable=False),
        sa.Column("vkey", sa.String(), nullable=False),
        sa.Column("blob", sa.LargeBinary(), nullable=False),
        sa.Column("cosigned_at_s", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["log_number"], ["log.number"]),
        sa.PrimaryKeyConstraint("log_number", "tree_size", "witness", "key_id"),
    )


def downgrade() -> None:
    """Return to the version before."""
    op.drop_table("cosignature")
