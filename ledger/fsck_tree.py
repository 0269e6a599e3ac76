"""fsck, the tree: every full tile and every signed tree head, recomputed from the leaves.

One pass in index order, with the tree's right edge in memory and nothing else. Where the
store holds a fact twice, a finding names the copy that disagrees, not all that follows
from it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from sqlalchemy import Connection, RowMapping, func, select

from rlhf_audit_trail.ledger.fsck_store import Finding, Summary, raw, text_bytes
from rlhf_audit_trail.ledger.proof.errors import ProofError
from rlhf_audit_trail.ledger.proof.merkle import HASH_BYTES, root_hash
from rlhf_audit_trail.ledger.proof.note import VerifierKey
from rlhf_audit_trail.ledger.proof.tree_head import SignedTreeHead, open_tree_head
from rlhf_audit_trail.ledger.store import models
from rlhf_audit_trail.ledger.tiles import TILE_WIDTH, FullTile, GrowingTree, tile_widths

__all__ = ["TreeCheck"]

_TILES = models.HashTileRow.__table__  # type: ignore[attr-defined]
_HEADS = models.TreeHeadRow.__table__  # type: ignore[attr-defined]
_TILE_BYTES = TILE_WIDTH * HASH_BYTES
_PAGE_ROWS = 64  # a signed note has about 3.6 kB
_SLOTS_NAMED = 4


class TreeCheck:
    """Grows the tree leaf by leaf and compares it with what is stored."""

    def __init__(
        self,
        connection: Connection,
        *,
        log: str,
        number: int,
        origin: str,
        keys: tuple[VerifierKey, ...],
        summary: Summary,
    ) -> None:
        """Check the log whose rows bear `number`, signed by all of `keys`."""
        self.tree = GrowingTree()
        self._connection = connection
        self._log = log
        self._number = number
        self._origin = origin
        self._keys = keys
        self._summary = summary
        self._heads = self._head_rows()
        self._head: RowMapping | None = None
        self._good = 0  # the largest signed size whose root was recomputed
        self._contradicted: list[int] = []  # signed sizes since then
        self._lost: int | None = None

    # --- leaves -----------------------------------------------------------------------

    def begin(self) -> None:
        """Read the first signed tree head."""
        self._head = next(self._heads, None)

    def add(self, leaf: bytes) -> Iterator[Finding]:
        """Take the next leaf hash."""
        if self._lost is None:
            yield from self._heads_up_to(self.tree.size)
            for tile in self.tree.append((leaf,)):
                yield from self._compare(tile)

    def lose(self) -> None:
        """The next leaf is unknown: no larger tree can be recomputed."""
        if self._lost is None:
            self._lost = self.tree.size

    @property
    def is_lost(self) -> bool:
        """Whether a leaf was lost."""
        return self._lost is not None

    def leaf_in_tile(self, index: int) -> bytes | None:
        """Return the leaf hash that the stored level 0 tile has for an index, if it is full."""
        tile, slot = divmod(index, TILE_WIDTH)
        stored = self._stored(0, tile)
        if stored is None or len(stored) != _TILE_BYTES:
            return None
        return stored[slot * HASH_BYTES : (slot + 1) * HASH_BYTES]

    def finish(self, stored_size: int) -> Iterator[Finding]:
        """All leaves were given, of `stored_size` entries: judge what is left."""
        yield from self._heads_up_to(self.tree.size)
        lost = self._lost
        while self._head is not None:
            signed, findings = self._examine(self._head)
            yield from findings
            if signed is not None:
                yield from self._beyond(signed, stored_size)
            self._head = next(self._heads, None)
        if lost is not None:
            detail = "its leaf is lost: larger trees and their tiles cannot be recomputed"
            yield Finding(self._log, "entry", f"index {lost}", detail)
        yield from self._close_contradicted()
        yield from self._surplus_tiles(stored_size)

    # --- tiles ------------------------------------------------------------------------

    def _stored(self, level: int, tile_index: int, column: str = "hashes") -> bytes | None:
        query = select(func.substr(_TILES.c[column], 1, _TILE_BYTES + 1)).where(
            _TILES.c.log_number == self._number,
            _TILES.c.level == level,
            _TILES.c.tile_index == tile_index,
        )
        return raw(self._connection.scalar(query))

    def _compare(self, tile: FullTile) -> Iterator[Finding]:
        self._summary.hash_tiles += 1
        where = f"level {tile.level}, tile {tile.tile_index}"
        stored = self._stored(tile.level, tile.tile_index)
        if stored is None:
            yield Finding(self._log, "hash_tile", where, "the tile is missing")
        elif len(stored) != _TILE_BYTES:
            detail = f"the tile is not {_TILE_BYTES:,} bytes long"
            yield Finding(self._log, "hash_tile", where, detail)
        elif stored != tile.hashes:
            slots = [i for i in range(TILE_WIDTH) if _slot(stored, i) != _slot(tile.hashes, i)]
            wrong = [i for i in slots if not self._follows(tile, stored, i)]
            if wrong:
                shown = ", ".join(map(str, wrong[:_SLOTS_NAMED]))
                more = f" and {len(wrong) - _SLOTS_NAMED} more" if wrong[_SLOTS_NAMED:] else ""
                child = "entry" if tile.level == 0 else f"level {tile.level - 1} tile"
                first = tile.tile_index * TILE_WIDTH + wrong[0]
                detail = f"hash {shown}{more} is not that of its {child}, first of {child} {first}"
                yield Finding(self._log, "hash_tile", where, detail)
        elif self._stored(tile.level, tile.tile_index, "inner_nodes") != tile.inner_nodes:
            detail = "the nodes above its hashes are not those that follow from them"
            yield Finding(self._log, "hash_tile", where, detail)

    def _follows(self, tile: FullTile, stored: bytes, slot: int) -> bool:
        """Whether a wrong hash is right for the stored tile below, where the fault then is."""
        if tile.level == 0:
            return False
        below = self._stored(tile.level - 1, tile.tile_index * TILE_WIDTH + slot)
        if below is None or len(below) != _TILE_BYTES:
            return False
        hashes = [_slot(below, i) for i in range(TILE_WIDTH)]
        return root_hash(hashes) == _slot(stored, slot)

    def _surplus_tiles(self, size: int) -> Iterator[Finding]:
        columns = _TILES.c
        query = select(columns.level, columns.tile_index).where(columns.log_number == self._number)
        rows = self._connection.execute(query.order_by(columns.level, columns.tile_index))
        for level, tile_index in rows.yield_per(_PAGE_ROWS):
            known = isinstance(level, int) and isinstance(tile_index, int) and 0 <= level < 8  # noqa: PLR2004 - 256**8 is past any size
            if not known or not 0 <= tile_index < tile_widths(level, size)[0]:
                where = f"level {level!r:.40}, tile {tile_index!r:.40}"
                detail = f"no such full tile belongs to {size:,} entries"
                yield Finding(self._log, "hash_tile", where, detail)

    # --- tree heads -------------------------------------------------------------------

    def _head_rows(self) -> Iterator[RowMapping]:
        columns = _HEADS.c
        # as bytes: a damaged text need not be UTF-8, and must not end the whole query
        query = select(
            columns.tree_size,
            func.substr(columns.root, 1, HASH_BYTES + 1).label("root"),
            text_bytes(self._connection, columns.note).label("note"),
        ).where(columns.log_number == self._number)
        result = self._connection.execute(query.order_by(columns.tree_size))
        yield from result.yield_per(_PAGE_ROWS).mappings()

    def _heads_up_to(self, size: int) -> Iterator[Finding]:
        while self._head is not None and _is_at_most(self._head["tree_size"], size):
            signed, findings = self._examine(self._head)
            yield from findings
            if signed is not None and signed.head.size == size:
                yield from self._judge_root(signed)
            self._head = next(self._heads, None)

    def _examine(self, row: RowMapping) -> tuple[SignedTreeHead | None, list[Finding]]:
        """Check a stored head against itself: signatures, and note against columns."""
        self._summary.tree_heads += 1
        findings: list[Finding] = []

        def found(detail: str) -> None:
            where = f"size {row['tree_size']!r:.40}"
            findings.append(Finding(self._log, "tree_head", where, detail))

        try:
            signed = open_tree_head(_text(row["note"]), self._keys)
        except ProofError as error:
            found(f"the signed note: {error.message}")
            return None, findings
        if signed.signed_by != self._keys:
            found("the note is not signed by all of the log's own keys")
        if signed.head.origin != self._origin:
            found(f"the note is of another log, {signed.head.origin!r:.120}")
        if signed.head.size != row["tree_size"]:
            found(f"the note signs size {signed.head.size:,}, the column says another")
        if raw(row["root"]) != signed.head.root:
            found("the root column is not the root that was signed")
        return (None if findings else signed), findings

    def _judge_root(self, signed: SignedTreeHead) -> Iterator[Finding]:
        size, actual = signed.head.size, self.tree.root()
        if actual == signed.head.root:
            yield from self._close_contradicted()
            self._good = size
            return
        self._contradicted.append(size)
        if len(self._contradicted) == 1:
            detail = (
                f"the first {size:,} entries as stored have another root than was signed; "
                f"the change is among entries {self._good} to {size - 1}"
            )
            yield Finding(self._log, "tree_head", f"size {size}", detail)

    def _close_contradicted(self) -> Iterator[Finding]:
        """Name in one finding the heads that only repeat the first contradiction."""
        if len(self._contradicted) > 1:
            _, second, *_ = self._contradicted
            where = f"sizes {second} to {self._contradicted[-1]}"
            detail = f"{len(self._contradicted) - 1:,} later heads are contradicted as well"
            yield Finding(self._log, "tree_head", where, detail)
        self._contradicted.clear()

    def _beyond(self, signed: SignedTreeHead, stored_size: int) -> Iterator[Finding]:
        size = signed.head.size
        if size > stored_size:
            detail = f"{size:,} entries were signed, {stored_size:,} are stored: the tail is gone"
            yield Finding(self._log, "tree_head", f"size {size}", detail)


def _slot(hashes: bytes, index: int) -> bytes:
    return hashes[index * HASH_BYTES : (index + 1) * HASH_BYTES]


def _is_at_most(value: Any, size: int) -> bool:
    return isinstance(value, int) and value <= size


def _text(note: Any) -> str:
    # what is not UTF-8 becomes a character that no note may hold, and is refused as such
    return (raw(note) or b"\x00").decode("utf-8", "surrogateescape")
