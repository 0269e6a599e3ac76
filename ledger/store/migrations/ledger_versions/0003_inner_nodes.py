"""The nodes above a tile's hashes, kept so that a proof reads them."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from rlhf_audit_trail.ledger.proof.merkle import HASH_BYTES, node_hash

revision = "0003_inner_nodes"
down_revision = "0002_cosignatures"
branch_labels = None
depends_on = None

_TILE = sa.table(
    "hash_tile",
    sa.column("log_number", sa.Integer),
    sa.column("level", sa.Integer),
    sa.column("tile_index", sa.BigInteger),
    sa.column("hashes", sa.LargeBinary),
    sa.column("inner_nodes", sa.LargeBinary),
)


def upgrade() -> None:
    """Apply this version."""
    op.add_column(
        "hash_tile",
        sa.Column("inner_nodes", sa.LargeBinary(), nullable=False, server_default=sa.text("''")),
    )
    connection, columns = op.get_bind(), _TILE.c
    keys = connection.execute(
        sa.select(columns.log_number, columns.level, columns.tile_index)
    ).all()
    for number, level, tile_index in keys:  # one at a time: they may be many
        here = (
            (columns.log_number == number)
            & (columns.level == level)
            & (columns.tile_index == tile_index)
        )
        hashes = bytes(connection.execute(sa.select(columns.hashes).where(here)).scalar_one())
        connection.execute(sa.update(_TILE).where(here).values(inner_nodes=_inner(hashes)))


def _inner(hashes: bytes) -> bytes:
    row = [hashes[i : i + HASH_BYTES] for i in range(0, len(hashes), HASH_BYTES)]
    inner = []
    while len(row) > 1:
        row = [node_hash(*row[i : i + 2]) for i in range(0, len(row), 2)]
        inner += row
    return b"".join(inner)


def downgrade() -> None:
    """Return to the version before."""
    op.drop_column("hash_tile", "inner_nodes")
