"""The whole tree, grown from the roots of its ranges: upper tiles, and every signed root."""

from __future__ import annotations

from collections.abc import Iterator

from sqlalchemy import Connection

from rlhf_audit_trail.ledger.findings import Finding, Summary
from rlhf_audit_trail.ledger.fsck.columns import table
from rlhf_audit_trail.ledger.fsck.hash_tiles import HashTiles
from rlhf_audit_trail.ledger.fsck.heads import HeadCheck
from rlhf_audit_trail.ledger.fsck.ranges import CheckedLog, RangeReport, SignedSize
from rlhf_audit_trail.ledger.proof.merkle import EMPTY_ROOT, node_hash
from rlhf_audit_trail.ledger.store import models
from rlhf_audit_trail.ledger.tiles import TILE_WIDTH, FullTile, GrowingTree

__all__ = ["TreeCheck"]

_HEADS = table(models.TreeHeadRow)
_COSIGNATURES = table(models.CosignatureRow)


class TreeCheck:
    """Takes the reports of a log's ranges, in order; holds the tree's right edge only."""

    def __init__(self, connection: Connection, log: CheckedLog, summary: Summary) -> None:
        """Compare with what is stored; count into `summary`."""
        self._log = log
        self._summary = summary
        self._tiles = HashTiles(connection, log)
        self._heads = HeadCheck(connection, log, summary)
        self._upper = GrowingTree()  # its leaves are the roots of full level 0 tiles
        self._peaks: list[bytes] = []  # roots of its complete subtrees, the largest first
        self._rest = b""  # root over the entries after the last full tile
        self._size = 0
        self._good = 0  # the largest signed size whose root was recomputed
        self._contradicted: list[int] = []  # signed sizes since then
        self._lost: int | None = None

    @property
    def is_lost(self) -> bool:
        """Whether a leaf was lost, so that the root of all entries is unknown."""
        return self._lost is not None

    def state(self) -> tuple[int, bytes]:
        """Return size and root of the tree so far."""
        return self._size, self._root(self._rest)

    def lose(self, index: int) -> None:
        """A leaf is unknown: no larger tree can be recomputed."""
        if self._lost is None:
            self._lost = index

    def take(self, first: int, end: int, report: RangeReport) -> Iterator[Finding]:
        """Take the report of entries [first, end), which begin where the last ones ended."""
        signed = iter(report.signed)
        head = next(signed, None)
        for place, root in enumerate(report.roots, first // TILE_WIDTH):
            while head is not None and head.size < (place + 1) * TILE_WIDTH:
                yield from self._judge(head)
                head = next(signed, None)
            if root is None:
                self.lose(report.lost if report.lost is not None else place * TILE_WIDTH)
            elif self._lost is None and (place + 1) * TILE_WIDTH <= end:
                yield from self._add(root)
            elif self._lost is None:
                self._rest = root
        while head is not None:
            yield from self._judge(head)
            head = next(signed, None)
        if self._lost is None:
            self._size = end

    def finish(self, stored_size: int) -> Iterator[Finding]:
        """All reports were given, of `stored_size` entries: judge what lies beyond."""
        yield from self._close_contradicted()
        if self._lost is not None:
            detail = "its leaf is lost: larger trees and their tiles cannot be recomputed"
            yield Finding(self._log.run_id, "entry", f"index {self._lost}", detail)
        for signed, findings in self._heads.read(_HEADS.c.tree_size > stored_size):
            yield from findings
            if signed is not None:
                size = signed.head.size
                detail = (
                    f"{size:,} entries were signed, {stored_size:,} are stored: the tail is gone"
                )
                yield Finding(self._log.run_id, "tree_head", f"size {size}", detail)
        yield from self._heads.cosignatures(_COSIGNATURES.c.tree_size > stored_size)
        yield from self._tiles.surplus(stored_size)

    def _add(self, root: bytes) -> Iterator[Finding]:
        """Grow by one full level 0 tile."""
        node, height = root, 0
        while self._upper.size >> height & 1:
            node = node_hash(self._peaks.pop(), node)
            height += 1
        self._peaks.append(node)
        for tile in self._upper.append((root,)):
            self._summary.hash_tiles += 1
            higher = FullTile(tile.level + 1, tile.tile_index, tile.hashes, tile.inner_nodes)
            stored = self._tiles.read_one(higher.level, higher.tile_index)
            yield from self._tiles.compare(higher, stored)

    def _root(self, rest: bytes) -> bytes:
        """Return the root over all full tiles and the entries after them."""
        parts = [*self._peaks, rest] if rest else self._peaks
        if not parts:
            return EMPTY_ROOT
        node = parts[-1]
        for peak in reversed(parts[:-1]):
            node = node_hash(peak, node)
        return node

    # --- tree heads -------------------------------------------------------------------

    def _judge(self, signed: SignedSize) -> Iterator[Finding]:
        """Compare a signed root with that of the tree, which has its full tiles by now."""
        if signed.rest is None or (self._lost is not None and signed.size > self._lost):
            return
        if self._root(signed.rest) == signed.root:
            yield from self._close_contradicted()
            self._good = signed.size
            return
        self._contradicted.append(signed.size)
        if len(self._contradicted) == 1:
            detail = (
                f"the first {signed.size:,} entries as stored have another root than was signed; "
                f"the change is among entries {self._good} to {signed.size - 1}"
            )
            yield Finding(self._log.run_id, "tree_head", f"size {signed.size}", detail)

    def _close_contradicted(self) -> Iterator[Finding]:
        """Name in one finding the heads that only repeat the first contradiction."""
        if len(self._contradicted) > 1:
            _, second, *_ = self._contradicted
            where = f"sizes {second} to {self._contradicted[-1]}"
            detail = f"{len(self._contradicted) - 1:,} later heads are contradicted as well"
            yield Finding(self._log.run_id, "tree_head", where, detail)
        self._contradicted.clear()
