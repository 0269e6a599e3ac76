"""Weights of model checkpoints, and blobs that lie in an object store elsewhere."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0008_weights"
down_revision = "0007_spans"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Apply this version."""
    op.add_column("blob", sa.Column("place", sa.String(), server_default="", nullable=False))
    op.create_table(
        "stored_checkpoint",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("log_number", sa.Integer(), nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("state", sa.String(), nullable=False),
        sa.Column("weights_digest", sa.String(), nullable=False),
        sa.Column("header_digest", sa.String(), nullable=False),
        sa.Column("base_id", sa.Integer(), nullable=True),
        sa.Column("chain_length", sa.Integer(), nullable=False),
        sa.Column("chain_bytes", sa.BigInteger(), nullable=False),
        sa.Column("size_bytes", sa.BigInteger(), nullable=False),
        sa.Column("stored_bytes", sa.BigInteger(), nullable=False),
        sa.Column("created_at", sa.String(), nullable=False),
        sa.ForeignKeyConstraint(["base_id"], ["stored_checkpoint.id"]),
        sa.ForeignKeyConstraint(["log_number"], ["log.number"]),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index("ix_stored_checkpoint_base_id", "stored_checkpoint", ["base_id"])
    op.create_index("ix_stored_checkpoint_log_number", "stored_checkpoint", ["log_number"])
    op.create_table(
        "weight_segment",
        sa.Column("checkpoint_id", sa.Integer(), nullable=False),
        sa.Column("segment_index", sa.Integer(), nullable=False),
        sa.Column("blob_digest", sa.String(), nullable=False),
        sa.Column("size_bytes", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["checkpoint_id"], ["stored_checkpoint.id"]),
        sa.PrimaryKeyConstraint("checkpoint_id", "segment_index"),
    )
    op.create_index("ix_weight_segment_blob_digest", "weight_segment", ["blob_digest"])


def downgrade() -> None:
    """Return to the version before."""
    op.drop_table("weight_segment")
    op.drop_table("stored_checkpoint")
    with op.batch_alter_table("blob", schema=None) as batch_op:
        batch_op.drop_column("place")
