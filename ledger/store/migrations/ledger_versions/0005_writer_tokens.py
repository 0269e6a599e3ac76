"""Tokens of writers that append over HTTP, and the processes that use them."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005_writer_tokens"
down_revision = "0004_archive"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Apply this version."""
    op.create_table(
        "writer_token",
        sa.Column("writer", sa.String(), nullable=False),
        sa.Column("run_id", sa.String(), nullable=False),
        sa.Column("token_digest", sa.LargeBinary(), nullable=False),
        sa.Column("created_at", sa.String(), nullable=False),
        sa.Column("granted_index", sa.BigInteger(), nullable=True),
        sa.Column("revoked_at", sa.String(), nullable=False),
        sa.Column("revoked_index", sa.BigInteger(), nullable=True),
        sa.PrimaryKeyConstraint("writer"),
        sa.UniqueConstraint("token_digest"),
    )
    op.create_table(
        "remote_writer",
        sa.Column("log_number", sa.Integer(), nullable=False),
        sa.Column("writer_id", sa.String(), nullable=False),
        sa.Column("writer", sa.String(), nullable=False),
        sa.Column("first_seen_at", sa.String(), nullable=False),
        sa.ForeignKeyConstraint(["log_number"], ["log.number"]),
        sa.ForeignKeyConstraint(["writer"], ["writer_token.writer"]),
        sa.PrimaryKeyConstraint("log_number", "writer_id"),
    )
    op.create_index("ix_remote_writer_writer", "remote_writer", ["writer"], unique=False)


def downgrade() -> None:
    """Return to the version before."""
    op.drop_index("ix_remote_writer_writer", "remote_writer")
    op.drop_table("remote_writer")
    op.drop_table("writer_token")
