"""Full tiles: what is stored, compared with what the entries give."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, NamedTuple

from sqlalchemy import BigInteger, Connection, bindparam, cast, func, or_, select

from rlhf_audit_trail.ledger.findings import Finding
from rlhf_audit_trail.ledger.fsck.columns import raw, table
from rlhf_audit_trail.ledger.fsck.ranges import CheckedLog
from rlhf_audit_trail.ledger.proof.merkle import HASH_BYTES, root_hash
from rlhf_audit_trail.ledger.store import models
from rlhf_audit_trail.ledger.tiles import INNER_BYTES, TILE_WIDTH, FullTile, tile_widths

__all__ = ["NO_TILE", "HashTiles", "StoredTile"]

_TILES = table(models.HashTileRow)
_TILE_BYTES: Final = TILE_WIDTH * HASH_BYTES
_LEVELS: Final = 8  # 256**8 entries are past any size
_SLOTS_NAMED: Final = 4
_TILES_QUERY: Final = select(
    _TILES.c.tile_index,
    func.substr(_TILES.c.hashes, 1, _TILE_BYTES + 1),
    func.substr(_TILES.c.inner_nodes, 1, INNER_BYTES + 1),
).where(
    _TILES.c.log_number == bindparam("number"),
    _TILES.c.level == bindparam("at_level"),
    _TILES.c.tile_index >= bindparam("first"),
    _TILES.c.tile_index < bindparam("end"),
)


class StoredTile(NamedTuple):
    """A tile's row; None where there is none, or something that is not bytes."""

    hashes: bytes | None
    inner_nodes: bytes | None

    def slot(self, place: int) -> bytes | None:
        """Return one of the hashes, None if the tile has not all of them."""
        if self.hashes is None or len(self.hashes) != _TILE_BYTES:
            return None
        return self.hashes[place * HASH_BYTES : (place + 1) * HASH_BYTES]


NO_TILE: Final = StoredTile(None, None)


class HashTiles:
    """Reads and judges the stored tiles of one log."""

    def __init__(self, connection: Connection, log: CheckedLog) -> None:
        """Read through `connection`."""
        self._connection = connection
        self._log = log

    def read(self, level: int, first: int, end: int) -> dict[int, StoredTile]:
        """Read tiles [first, end) of a level; no more of each than a tile can have."""
        place = {"number": self._log.number, "at_level": level, "first": first, "end": end}
        rows = self._connection.execute(_TILES_QUERY, place)
        return {index: StoredTile(raw(hashes), raw(inner)) for index, hashes, inner in rows}

    def read_one(self, level: int, tile_index: int) -> StoredTile:
        """Read a tile; nothing is in it if it is not stored."""
        return self.read(level, tile_index, tile_index + 1).get(tile_index, NO_TILE)

    def compare(self, tile: FullTile, stored: StoredTile) -> Iterator[Finding]:
        """Compare a tile that was computed with the stored one."""
        if stored == (tile.hashes, tile.inner_nodes):
            return
        fault = self.unreadable(stored)
        if not fault and stored.hashes != tile.hashes:
            fault = self._wrong_hashes(tile, stored)
        elif not fault:
            fault = "the nodes above its hashes are not those that follow from them"
        if fault:
            yield self.finding(tile.level, tile.tile_index, fault)

    def finding(self, level: object, tile_index: object, detail: str) -> Finding:
        """Name a tile."""
        where = f"level {level!r:.40}, tile {tile_index!r:.40}"
        return Finding(self._log.run_id, "hash_tile", where, detail)

    @staticmethod
    def unreadable(stored: StoredTile) -> str:
        """Say why a row is no tile at all; empty if it is one."""
        if stored.hashes is None:
            return "the tile is missing"
        return "" if stored.slot(0) else f"the tile is not {_TILE_BYTES:,} bytes long"

    def _wrong_hashes(self, tile: FullTile, stored: StoredTile) -> str:
        """Say which hashes are wrong; empty if the fault is in the tiles below."""
        computed = StoredTile(tile.hashes, None)
        slots = [i for i in range(TILE_WIDTH) if stored.slot(i) != computed.slot(i)]
        wrong = [i for i in slots if not self._follows(tile, stored, i)]
        if not wrong:
            return ""
        shown = ", ".join(map(str, wrong[:_SLOTS_NAMED]))
        more = f" and {len(wrong) - _SLOTS_NAMED} more" if wrong[_SLOTS_NAMED:] else ""
        child = "entry" if tile.level == 0 else f"level {tile.level - 1} tile"
        first = tile.tile_index * TILE_WIDTH + wrong[0]
        return f"hash {shown}{more} is not that of its {child}, first of {child} {first}"

    def _follows(self, tile: FullTile, stored: StoredTile, place: int) -> bool:
        """Whether a wrong hash is right for the stored tile below, where the fault then is."""
        if tile.level == 0:
            return False
        below = self.read_one(tile.level - 1, tile.tile_index * TILE_WIDTH + place)
        hashes = [below.slot(i) or b"" for i in range(TILE_WIDTH)]
        return root_hash(hashes) == stored.slot(place)

    def surplus(self, size: int) -> Iterator[Finding]:
        """Yield tiles that no log of this size has."""
        columns = _TILES.c
        odd = [
            columns.level < 0,
            columns.level >= _LEVELS,  # a text is above all numbers
            columns.level != cast(columns.level, BigInteger),
            columns.tile_index < 0,
            columns.tile_index != cast(columns.tile_index, BigInteger),
        ]
        for level in range(_LEVELS):
            full, _ = tile_widths(level, size)
            odd.append((columns.level == level) & (columns.tile_index >= full))
        query = select(columns.level, columns.tile_index).where(
            columns.log_number == self._log.number, or_(*odd)
        )
        for level, tile_index in self._connection.execute(
            query.order_by(columns.level, columns.tile_index)
        ).yield_per(TILE_WIDTH):
            detail = f"no such full tile belongs to {size:,} entries"
            yield self.finding(level, tile_index, detail)
