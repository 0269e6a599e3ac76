"""The Merkle tree of a log as the store holds it: full tiles, and leaf hashes at the edge."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from sqlalchemy import ColumnElement, Connection, Engine, func, select

from rlhf_audit_trail.ledger.contradictions import Forked
from rlhf_audit_trail.ledger.proof.merkle import HASH_BYTES
from rlhf_audit_trail.ledger.store import models
from rlhf_audit_trail.ledger.store.database import fetch_all, fetch_first
from rlhf_audit_trail.ledger.tiles import INNER_BYTES, TILE_WIDTH, TileReader

__all__ = ["StoredTree"]

_ENTRIES = models.EntryRow.__table__  # type: ignore[attr-defined]
_TILES = models.HashTileRow.__table__  # type: ignore[attr-defined]
_TILE_BYTES = TILE_WIDTH * HASH_BYTES
_TILE_QUERY = (
    "SELECT hashes, inner_nodes FROM hash_tile "
    "WHERE log_number = ? AND level = ? AND tile_index = ?"
)
_LEAVES_QUERY = (
    "SELECT leaf_hash FROM entry WHERE log_number = ? AND leaf_index BETWEEN ? AND ? "
    "ORDER BY leaf_index"
)


class StoredTree:
    """Nodes of one log's tree; safe to share between threads."""

    def __init__(self, engine: Engine, number: int, origin: str) -> None:
        """Read the tree of the log whose row has this `number`."""
        self._engine = engine
        self._number = number
        self._origin = origin
        self.proving = _Proving(self._tile, self._leaves_now, self._roots_now)

    def reader(self, connection: Connection) -> TileReader:
        """Read through one connection, so that what is signed is one state, read afresh."""

        def tile(level: int, tile_index: int) -> tuple[bytes, bytes] | None:
            found = connection.execute(
                select(_TILES.c.hashes, _TILES.c.inner_nodes).where(
                    self._in_level(level), _TILES.c.tile_index == tile_index
                )
            ).first()
            return None if found is None else (bytes(found.hashes), bytes(found.inner_nodes))

        return TileReader(tile, partial(self.leaves, connection), partial(self._roots, connection))

    def leaves(self, connection: Connection, first: int, count: int) -> bytes:
        """Return `count` leaf hashes from leaf index `first` on, concatenated.

        Raises:
            Forked: some are missing or damaged.
        """
        rows = connection.scalars(
            select(_ENTRIES.c.leaf_hash)
            .where(
                _ENTRIES.c.log_number == self._number,
                _ENTRIES.c.leaf_index.between(first, first + count - 1),
            )
            .order_by(_ENTRIES.c.leaf_index)
        ).all()
        return self._whole(rows, count, f"entries from {first:,} on")

    def _roots(self, connection: Connection, level: int, first: int, count: int) -> bytes:
        columns = _TILES.c
        rows = connection.scalars(
            select(func.substr(columns.inner_nodes, INNER_BYTES - HASH_BYTES + 1))
            .where(self._in_level(level), columns.tile_index.between(first, first + count - 1))
            .order_by(columns.tile_index)
        ).all()
        return self._whole(rows, count, f"hash tiles of level {level} from {first:,} on")

    def _in_level(self, level: int) -> ColumnElement[bool]:
        here: ColumnElement[bool] = _TILES.c.log_number == self._number
        in_level: ColumnElement[bool] = here & (_TILES.c.level == level)
        return in_level

    def _whole(self, hashes: Sequence[bytes], count: int, what: str) -> bytes:
        """Join hashes after making sure that all are there."""
        joined = b"".join(hashes)
        if len(hashes) != count or len(joined) != count * HASH_BYTES:
            raise Forked(
                f"{self._origin}: {what} are missing or damaged",
                next_step="run rlhf-audit fsck to find them, then restore them",
            )
        return joined

    # --- for proofs ---------------------------------------------------------------------

    def _tile(self, level: int, tile_index: int) -> tuple[bytes, bytes] | None:
        found = fetch_first(self._engine, _TILE_QUERY, (self._number, level, tile_index))
        return None if found is None else (bytes(found[0]), bytes(found[1]))

    def _leaves_now(self, first: int, count: int) -> bytes:
        place = (self._number, first, first + count - 1)
        hashes = [bytes(row[0]) for row in fetch_all(self._engine, _LEAVES_QUERY, place)]
        return self._whole(hashes, count, f"entries from {first:,} on")

    def _roots_now(self, level: int, first: int, count: int) -> bytes:
        with self._engine.connect() as connection:
            return self._roots(connection, level, first, count)


class _Proving(TileReader):
    """Keeps tiles between proofs; who gets a proof checks it against a signed root.

    Nodes do not change, so a kept tile is right for ever, and the one at the edge until more
    of it is asked for. Level 0 makes up 255 of 256 tiles: of it only two are kept, the last
    full one that was read, and the one at the edge.
    """

    _of_leaves: tuple[tuple[int, list[bytes]], ...] = ()

    def rows(self, level: int, tile_index: int, width: int) -> list[bytes]:
        """Return the rows over at least the first `width` hashes of a tile."""
        wanted = width * HASH_BYTES
        if level > 0:
            above = self._kept.get((level, tile_index))  # mostly there, and asked 20 times a proof
            if above is not None and len(above[0]) >= wanted:
                return above
            return super().rows(level, tile_index, width)
        for index, kept in self._of_leaves:
            if index == tile_index and len(kept[0]) >= wanted:
                return kept
        rows = self._read(level, tile_index, width)
        is_full = len(rows[0]) == _TILE_BYTES
        others = [x for x in self._of_leaves if (len(x[1][0]) == _TILE_BYTES) != is_full]
        self._of_leaves = ((tile_index, rows), *others[:1])  # replaced at once: threads share it
        return rows
