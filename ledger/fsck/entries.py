"""One range of a log: entries against columns, leaves against tiles, numbers, sealed values.

Works through whole tiles of 256 entries, and looks at single entries only where a tile is
not as it should be. Where the store holds a fact twice, a finding names the copy that
disagrees, not all that follows from it.
"""

from __future__ import annotations

import math
from hashlib import sha256
from typing import Any, Final

from sqlalchemy import select
from sqlalchemy.exc import DBAPIError

from rlhf_audit_trail.ledger.findings import Finding
from rlhf_audit_trail.ledger.fsck.columns import table, words_of
from rlhf_audit_trail.ledger.fsck.hash_tiles import NO_TILE, HashTiles, StoredTile
from rlhf_audit_trail.ledger.fsck.heads import HeadCheck
from rlhf_audit_trail.ledger.fsck.ranges import Bench, EntryRange, RangeReport, SignedSize
from rlhf_audit_trail.ledger.fsck.records import RecordCheck
from rlhf_audit_trail.ledger.fsck.rows import RowReader, Rows
from rlhf_audit_trail.ledger.proof.merkle import HASH_BYTES, root_from_nodes
from rlhf_audit_trail.ledger.store import models
from rlhf_audit_trail.ledger.tiles import TILE_WIDTH, FullTile, rows_above

__all__ = ["check_range"]

_HEADS = table(models.TreeHeadRow)
_COSIGNATURES = table(models.CosignatureRow)
_LOGS = table(models.LogRow)
_SIZES_BEGIN: Final = -(1 << 63)


def check_range(task: EntryRange, bench: Bench) -> RangeReport:
    """Check one range; a database that fails while being read is a finding in the report."""
    return _RangeCheck(task, bench).run()


class _RangeCheck:
    def __init__(self, task: EntryRange, bench: Bench) -> None:
        self._task = task
        self._log = task.log
        self._connection = bench.connection
        self._report = report = RangeReport()
        self._tiles = HashTiles(bench.connection, task.log)
        self._heads = HeadCheck(bench.connection, task.log, report.summary)
        self._rows = RowReader(bench.connection, task.log, report)
        self._records = RecordCheck(bench, task.log, report)
        self._stored: dict[int, StoredTile] = {}
        self._is_pruned = task.log.is_pruned
        self._at = task.first

    def run(self) -> RangeReport:
        try:
            self._run()
        except DBAPIError as error:
            where = f"{self._log.run_id}, entries from index {self._at} on"
            self._report.findings.append(
                Finding(self._log.run_id, "database", where, words_of(error))
            )
            self._report.lost = self._at if self._report.lost is None else self._report.lost
        task, report = self._task, self._report
        tiles = -(-(task.end - task.first) // TILE_WIDTH)
        report.roots += [None] * (tiles - len(report.roots))
        report.steps = self._records.steps()
        return report

    def _run(self) -> None:
        first, end = self._task.first, self._task.end
        if first == 0:  # the empty tree, and sizes that no tree has
            self._take_heads(_SIZES_BEGIN, 0, [b""])
        sizes = _HEADS.c.tree_size
        signed = self._heads.sizes((sizes > first) & (sizes <= end))
        tiles = {math.ceil(size / TILE_WIDTH) for size in signed}
        self._records.begin(first, end)
        self._stored = self._tiles.read(0, first // TILE_WIDTH, math.ceil(end / TILE_WIDTH))
        for begin in range(first, end, TILE_WIDTH):
            self._at = begin
            stop = min(begin + TILE_WIDTH, end)
            nodes = self._tile(begin, stop)
            if begin // TILE_WIDTH + 1 in tiles:
                self._take_heads(begin, stop, nodes)
        size = _COSIGNATURES.c.tree_size
        within = (size <= end) if first == 0 else (size > first) & (size <= end)
        self._report.findings += self._heads.cosignatures(within)

    # --- one tile ---------------------------------------------------------------------

    def _tile(self, begin: int, stop: int) -> list[bytes]:
        """Check entries [begin, stop); return the nodes over those before the first lost leaf."""
        stored = self._stored.get(begin // TILE_WIDTH, NO_TILE)
        rows = self._rows.read(begin, stop)
        leaves = self._leaves(rows, stored)
        if len(leaves) != stop - begin:
            leaves = self._with_missing(rows, leaves, begin, stop, stored)
        self._records.check(rows, begin, stop, may_be_empty=self._is_pruned)
        end = leaves.index(None) if None in leaves else len(leaves)
        known = [leaf for leaf in leaves[:end] if leaf is not None]
        nodes = rows_above(b"".join(known))
        if len(known) < len(leaves):
            if self._report.lost is None:
                self._report.lost = begin + len(known)
            self._report.roots.append(None)
        else:
            self._report.roots.append(_root(nodes, stop - begin))
        if stop - begin == TILE_WIDTH:
            self._compare(begin // TILE_WIDTH, stored, nodes)
        return nodes

    def _compare(self, tile_index: int, stored: StoredTile, nodes: list[bytes]) -> None:
        is_known = len(nodes[0]) == TILE_WIDTH * HASH_BYTES
        self._report.summary.hash_tiles += is_known or stored.hashes is not None
        if is_known:
            tile = FullTile(0, tile_index, nodes[0], b"".join(nodes[1:]))
            self._report.findings += self._tiles.compare(tile, stored)
        elif stored.hashes is not None:  # a leaf is lost because this tile could not tell it
            fault = self._tiles.unreadable(stored)
            self._report.findings.append(self._tiles.finding(0, tile_index, fault))

    def _leaves(self, rows: Rows, stored: StoredTile) -> list[bytes | None]:
        """Return each row's leaf hash, computed anew."""
        leaves: list[bytes | None] = [sha256(b"\x00" + data).digest() for data in rows.datas]
        if leaves != list(rows.leaves):
            for place, (index, data) in enumerate(zip(rows.indices, rows.datas, strict=True)):
                if leaves[place] != rows.leaves[place]:
                    in_row = rows.leaves[place]
                    leaves[place] = self._judge_leaf(index, data, leaves[place], in_row, stored)
        return leaves

    def _judge_leaf(
        self,
        index: int,
        data: bytes,
        computed: bytes | None,
        in_row: bytes | None,
        stored: StoredTile,
    ) -> bytes | None:
        """Return the leaf of an entry whose bytes and leaf hash disagree."""
        if not data and in_row is not None and len(in_row) == HASH_BYTES and self._may_be_empty():
            self._report.summary.pruned += 1
            return in_row
        self._found("entry", index, "the entry's bytes do not have the stored leaf hash")
        # of two copies that disagree, the tree is grown from the one a tile confirms
        in_tile = stored.slot(index % TILE_WIDTH)
        return in_tile if in_tile in {computed, in_row} and in_tile else computed

    def _may_be_empty(self) -> bool:
        """Whether the run's entries may have been moved to an archive.

        A run that is pruned while it is checked is announced only in a later state than the
        one in which the registry log was read; its row says so in the state that is read here.
        """
        if not self._is_pruned:
            query = select(_LOGS.c.archive).where(_LOGS.c.number == self._log.number)
            self._is_pruned = bool(self._connection.scalar(query))
        return self._is_pruned

    def _with_missing(
        self,
        rows: Rows,
        leaves: list[bytes | None],
        begin: int,
        stop: int,
        stored: StoredTile,
    ) -> list[bytes | None]:
        """Fill in for rows that are not there; the tile may still have their leaves."""
        known = dict(zip(rows.indices, leaves, strict=True))
        missing = self._report.missing
        for index in (index for index in range(begin, stop) if index not in known):
            known[index] = stored.slot(index - begin)
            if missing and missing[-1][1] == index:
                missing[-1] = (missing[-1][0], index + 1)
            else:
                missing.append((index, index + 1))
        return [known[index] for index in range(begin, stop)]

    # --- tree heads -------------------------------------------------------------------

    def _take_heads(self, begin: int, stop: int, nodes: list[bytes]) -> None:
        """Check the heads with a size in (begin, stop]; `nodes` are over entries from `begin`."""
        sizes = _HEADS.c.tree_size
        known = len(nodes[0]) // HASH_BYTES
        for signed, findings in self._heads.read((sizes > begin) & (sizes <= stop)):
            self._report.findings += findings
            if signed is not None:
                width = signed.head.size - begin
                rest = _root(nodes, width % TILE_WIDTH) if width <= known else None
                self._report.signed.append(SignedSize(signed.head.size, signed.head.root, rest))

    def _found(self, what: str, index: Any, detail: str) -> None:
        self._report.findings.append(
            Finding(self._log.run_id, what, f"index {index!r:.40}", detail)
        )


def _root(nodes: list[bytes], width: int) -> bytes:
    """Return the root over the first `width` leaves of a tile, empty for none."""

    def node(level: int, index: int) -> bytes:
        return nodes[level][index * HASH_BYTES : (index + 1) * HASH_BYTES]

    return root_from_nodes(width, node) if width else b""
