"""One range of a log: entries against columns, leaves against tiles, numbers, sealed values.

Works through whole tiles of 256 entries, and looks at single entries only where a tile is
not as it should be. Where the store holds a fact twice, a finding names the copy that
disagrees, not all that follows from it.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from hashlib import sha256
from operator import itemgetter
from typing import Any, Final, NamedTuple

from sqlalchemy import Select, bindparam, func, select
from sqlalchemy.exc import DBAPIError

from rlhf_audit_trail.ledger.events import ENTRY_VERSION, MAX_ENTRY_BYTES
from rlhf_audit_trail.ledger.findings import Finding
from rlhf_audit_trail.ledger.fsck.columns import (
    raw,
    table,
    text_bytes,
    word,
    words_of,
)
from rlhf_audit_trail.ledger.fsck.hash_tiles import NO_TILE, HashTiles, StoredTile
from rlhf_audit_trail.ledger.fsck.heads import HeadCheck
from rlhf_audit_trail.ledger.fsck.ranges import Bench, EntryRange, RangeReport, Record, SignedSize
from rlhf_audit_trail.ledger.fsck.sealed import SealedCheck
from rlhf_audit_trail.ledger.fsck.sequences import Numbering
from rlhf_audit_trail.ledger.proof.bundle import parse_json
from rlhf_audit_trail.ledger.proof.errors import MalformedBundle
from rlhf_audit_trail.ledger.proof.merkle import HASH_BYTES, root_from_nodes
from rlhf_audit_trail.ledger.store import models
from rlhf_audit_trail.ledger.tiles import TILE_WIDTH, FullTile, rows_above

__all__ = ["check_range"]

_ENTRIES = table(models.EntryRow)
_HEADS = table(models.TreeHeadRow)
_COSIGNATURES = table(models.CosignatureRow)
_LOGS = table(models.LogRow)
_FILED: Final = itemgetter("writer_id", "kind", "run_id", "v", "seq")
_SIZES_BEGIN: Final = -(1 << 63)


class _Rows(NamedTuple):
    """Rows of one tile as columns, in index order; text columns as text."""

    indices: Sequence[int]
    writers: Sequence[str | None]
    seqs: Sequence[Any]
    kinds: Sequence[str | None]
    datas: Sequence[bytes]
    leaves: Sequence[bytes | None]


_NO_ROWS: Final = _Rows((), (), (), (), (), ())


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
        self._sealed = SealedCheck(bench, task.log, report)
        self._numbering = Numbering()
        self._stored: dict[int, StoredTile] = {}
        self._is_pruned = task.log.is_pruned
        self._at = task.first
        self._query = self._rows_query()

    def _rows_query(self) -> Select[Any]:
        column = _ENTRIES.c
        return (
            select(
                column.leaf_index,
                text_bytes(self._connection, column.writer_id),
                column.seq,
                text_bytes(self._connection, column.kind),
                # substr bounds what is read
                func.substr(column.data, 1, MAX_ENTRY_BYTES + 1),
                func.substr(column.leaf_hash, 1, HASH_BYTES + 1),
            )
            .where(
                column.log_number == self._log.number,
                column.leaf_index >= bindparam("begin"),
                column.leaf_index < bindparam("stop"),
            )
            .order_by(column.leaf_index)
        )

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
        report.steps = self._numbering.steps()
        return report

    def _run(self) -> None:
        first, end = self._task.first, self._task.end
        if first == 0:  # the empty tree, and sizes that no tree has
            self._take_heads(_SIZES_BEGIN, 0, [b""])
        sizes = _HEADS.c.tree_size
        signed = self._heads.sizes((sizes > first) & (sizes <= end))
        tiles = {math.ceil(size / TILE_WIDTH) for size in signed}
        self._sealed.begin(first, end)
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
        rows = self._read(begin, stop)
        leaves = self._leaves(rows, stored)
        if len(leaves) != stop - begin:
            leaves = self._with_missing(rows, leaves, begin, stop, stored)
        self._entries(rows, begin, stop)
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

    def _read(self, begin: int, stop: int) -> _Rows:
        """Read the rows of a tile; what is no index is a finding, and left out."""
        rows = self._connection.execute(self._query, {"begin": begin, "stop": stop}).all()
        self._report.summary.entries += len(rows)
        if _types([row[0] for row in rows]) - {int}:
            for row in (row for row in rows if type(row[0]) is not int):
                self._found("entry", row[0], "a surplus row: indices are whole numbers from 0")
            rows = [row for row in rows if type(row[0]) is int]
        if not rows:
            return _NO_ROWS
        indices, writers, seqs, kinds, datas, leaves = zip(*rows, strict=True)
        if _types(datas) != {bytes} or _types(leaves) != {bytes}:
            datas = tuple(raw(item) or b"" for item in datas)
            leaves = tuple(map(raw, leaves))
        return _Rows(indices, _words(writers), seqs, _words(kinds), datas, leaves)

    def _leaves(self, rows: _Rows, stored: StoredTile) -> list[bytes | None]:
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
        rows: _Rows,
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

    # --- what the bytes say -----------------------------------------------------------

    def _entries(self, rows: _Rows, begin: int, stop: int) -> None:
        records = self._records(rows)
        if self._are_as_filed(rows, records):
            self._number_all(rows, records)
        else:
            columns = (rows.indices, rows.writers, rows.seqs, rows.kinds, records)
            for index, writer, seq, kind, record in zip(*columns, strict=True):
                self._columns(index, record, writer, seq, kind)
                self._number(index, record, writer, seq)
        told = self._log.told_kinds
        if told:
            paired = zip(rows.indices, records, strict=True)
            self._report.told += [pair for pair in paired if pair[1].get("kind") in told]
        self._sealed.check(begin, stop, rows.indices, records)

    def _are_as_filed(self, rows: _Rows, records: list[Record]) -> bool:
        """Whether all columns say what the bytes say, looked at column by column."""
        try:
            said = list(map(_FILED, records))
        except KeyError:
            return False
        constant = itertools.repeat(self._log.run_id), itertools.repeat(ENTRY_VERSION)
        filed = zip(rows.writers, rows.kinds, *constant, rows.seqs, strict=False)
        # true would pass for the number 1
        return said == list(filed) and _types([x for *_, v, seq in said for x in (v, seq)]) <= {int}

    def _number_all(self, rows: _Rows, records: list[Record]) -> None:
        """Take the numbers of a tile at once where one writer wrote all of it."""
        writer, first = (rows.writers[0], rows.seqs[0]) if records else (None, 0)
        count = len(records)
        is_one = writer is not None and rows.writers.count(writer) == count
        if is_one and "gap" not in rows.kinds and rows.seqs == tuple(range(first, first + count)):
            self._numbering.see(str(writer), first, rows.indices[0], count)
            return
        for index, writer, seq, record in zip(
            rows.indices, rows.writers, rows.seqs, records, strict=True
        ):
            self._number(index, record, writer, seq)

    def _records(self, rows: _Rows) -> list[Record]:
        try:  # at once, which nearly always will do
            records = list(map(parse_json, rows.datas))
        except MalformedBundle:
            records = []
        longest = max(map(len, rows.datas), default=0)
        if records and _types(records) == {dict} and longest <= MAX_ENTRY_BYTES:
            return records
        return [self._record(*item) for item in zip(rows.indices, rows.datas, strict=True)]

    def _record(self, index: int, data: bytes) -> Record:
        """Parse an entry; empty for what is none, or was moved to an archive."""
        try:
            return _parse(data)
        except MalformedBundle as error:
            if data or not self._is_pruned:
                self._found("entry", index, error.message)
            return {}

    def _columns(
        self, index: int, record: Record, writer: str | None, seq: Any, kind: str | None
    ) -> None:
        columns = {"writer_id": writer, "seq": seq, "kind": kind}
        columns |= {"run_id": self._log.run_id, "v": ENTRY_VERSION}
        for name, value in columns.items() if record else ():
            if record.get(name) != value:
                what = "the store files it under" if name in {"run_id", "v"} else "its column says"
                detail = f"{name}: {what} {value!r:.80}, its bytes say {record.get(name)!r:.80}"
                self._found("entry", index, detail)

    def _number(self, index: int, record: Record, writer: str | None, seq: Any) -> None:
        """Take an entry's number as its bytes have it, or its columns where there are none."""
        whose, number = record.get("writer_id", writer), record.get("seq", seq)
        if type(whose) is str and type(number) is int:
            self._numbering.see(whose, number, index)
        else:
            self._found("entry", index, "its writer is no text, or its number no whole number")
        if record.get("kind") == "gap":
            self._gap(record)

    def _gap(self, record: Record) -> None:
        first, last = record.get("first_seq"), record.get("last_seq")
        whose = record.get("of_writer")
        if type(first) is int and type(last) is int and isinstance(whose, str):
            self._numbering.cover(whose, first, last)

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


def _types(column: Sequence[Any]) -> set[type]:
    return set(map(type, column))


def _words(column: Sequence[Any]) -> list[str | None]:
    """Decode a column of texts, in which few different ones stand."""
    known = {item: word(item) for item in set(column)}
    return [known[item] for item in column]


def _root(nodes: list[bytes], width: int) -> bytes:
    """Return the root over the first `width` leaves of a tile, empty for none."""

    def node(level: int, index: int) -> bytes:
        return nodes[level][index * HASH_BYTES : (index + 1) * HASH_BYTES]

    return root_from_nodes(width, node) if width else b""


def _parse(data: bytes) -> Record:
    if not 1 <= len(data) <= MAX_ENTRY_BYTES:
        raise MalformedBundle(f"an entry is 1 to {MAX_ENTRY_BYTES:,} bytes")
    try:
        record = parse_json(data)
    except MalformedBundle as error:
        raise MalformedBundle(f"the entry's bytes do not parse: {error.message}") from error
    if not isinstance(record, dict):
        raise MalformedBundle("the entry's bytes are not a JSON object")
    return record
