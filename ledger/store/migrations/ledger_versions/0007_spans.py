"""Entries by writer, kind and subject: a row for many of them, where indices had one for each."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0007_spans"
down_revision = "0006_anchor_costs"
branch_labels = None
depends_on = None

_NUMBERS = ("log_number", "writer_id", "seq")
_UNIQUE = "entry_log_number_writer_id_seq_key"  # as PostgreSQL named it

# One span for each island of numbers that grow as the indices do. Within what `island` has in
# common the numbers have no hole; there, equal differences to the index mean no hole in that.
_FILL_SPANS = """
INSERT INTO writer_span (log_number, first_index, writer_id, first_seq)
SELECT log_number, MIN(leaf_index), writer_id, MIN(seq)
FROM (
  SELECT log_number, leaf_index, writer_id, seq,
    seq - ROW_NUMBER() OVER (PARTITION BY log_number, writer_id ORDER BY seq) AS island
  FROM entry
) AS numbered
GROUP BY log_number, writer_id, island, leaf_index - seq
"""
_FILL_KINDS = """
INSERT INTO kind_tile (log_number, kind, tile_index)
SELECT DISTINCT log_number, kind, leaf_index >> 8 FROM entry
"""
_FILL_SUBJECTS = """
INSERT INTO subject_tile (log_number, tile_index, subject)
SELECT DISTINCT log_number, leaf_index >> 8, subject FROM vault
"""


def upgrade() -> None:
    """Apply this version."""
    op.create_table(
        "writer_span",
        sa.Column("log_number", sa.Integer(), nullable=False),
        sa.Column("first_index", sa.BigInteger(), nullable=False),
        sa.Column("writer_id", sa.String(), nullable=False),
        sa.Column("first_seq", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["log_number"], ["log.number"]),
        sa.PrimaryKeyConstraint("log_number", "first_index"),
        sa.UniqueConstraint("log_number", "writer_id", "first_seq"),
    )
    op.create_table(
        "kind_tile",
        sa.Column("log_number", sa.Integer(), nullable=False),
        sa.Column("kind", sa.String(), nullable=False),
        sa.Column("tile_index", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["log_number"], ["log.number"]),
        sa.PrimaryKeyConstraint("log_number", "kind", "tile_index"),
    )
    op.create_table(
        "subject_tile",
        sa.Column("log_number", sa.Integer(), nullable=False),
        sa.Column("tile_index", sa.BigInteger(), nullable=False),
        sa.Column("subject", sa.LargeBinary(), nullable=False),
        sa.ForeignKeyConstraint(["log_number"], ["log.number"]),
        sa.PrimaryKeyConstraint("log_number", "tile_index", "subject"),
    )
    for statement in (_FILL_SPANS, _FILL_KINDS, _FILL_SUBJECTS):
        op.execute(statement)
    op.drop_index("ix_vault_subject", "vault")
    op.drop_index("ix_entry_kind", "entry")
    if op.get_bind().dialect.name == "postgresql":
        op.drop_constraint(_UNIQUE, "entry")
        return
    # SQLite drops no constraint: the table is written anew
    with op.batch_alter_table("entry", copy_from=_entry(), recreate="always"):
        pass


def downgrade() -> None:
    """Return to the version before."""
    if op.get_bind().dialect.name == "postgresql":
        op.create_unique_constraint(_UNIQUE, "entry", list(_NUMBERS))
    else:
        numbered = _entry(sa.UniqueConstraint(*_NUMBERS))
        with op.batch_alter_table("entry", copy_from=numbered, recreate="always"):
            pass
    op.create_index("ix_entry_kind", "entry", ["kind"], unique=False)
    op.create_index("ix_vault_subject", "vault", ["subject"], unique=False)
    op.drop_table("subject_tile")
    op.drop_table("kind_tile")
    op.drop_table("writer_span")


def _entry(*more: sa.Constraint) -> sa.Table:
    return sa.Table(
        "entry",
        sa.MetaData(),
        sa.Column("log_number", sa.Integer(), nullable=False),
        sa.Column("leaf_index", sa.BigInteger(), nullable=False),
        sa.Column("writer_id", sa.String(), nullable=False),
        sa.Column("seq", sa.BigInteger(), nullable=False),
        sa.Column("kind", sa.String(), nullable=False),
        sa.Column("data", sa.LargeBinary(), nullable=False),
        sa.Column("leaf_hash", sa.LargeBinary(), nullable=False),
        sa.ForeignKeyConstraint(["log_number"], ["log.number"]),
        sa.PrimaryKeyConstraint("log_number", "leaf_index"),
        *more,
    )
