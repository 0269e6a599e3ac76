"""The rows of one tile of entries, read at once and turned into columns."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, NamedTuple

from sqlalchemy import Connection, Select, bindparam, func, select

from rlhf_audit_trail.ledger.events import MAX_ENTRY_BYTES
from rlhf_audit_trail.ledger.findings import Finding
from rlhf_audit_trail.ledger.fsck.columns import raw, table, text_bytes, word
from rlhf_audit_trail.ledger.fsck.ranges import CheckedLog, RangeReport
from rlhf_audit_trail.ledger.proof.merkle import HASH_BYTES
from rlhf_audit_trail.ledger.store import models

__all__ = ["RowReader", "Rows", "types_in"]

_ENTRIES = table(models.EntryRow)


class Rows(NamedTuple):
    """Rows of one tile as columns, in index order; text columns as text."""

    indices: Sequence[int]
    writers: Sequence[str | None]
    seqs: Sequence[Any]
    kinds: Sequence[str | None]
    datas: Sequence[bytes]
    leaves: Sequence[bytes | None]


_NO_ROWS: Final = Rows((), (), (), (), (), ())


class RowReader:
    """Reads the entries of one log."""

    def __init__(self, connection: Connection, log: CheckedLog, report: RangeReport) -> None:
        """Report into `report`."""
        self._connection = connection
        self._log = log
        self._report = report
        self._query = self._make_query()

    def _make_query(self) -> Select[Any]:
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

    def read(self, begin: int, stop: int) -> Rows:
        """Read the rows of a tile; what is no index is a finding, and left out."""
        rows = self._connection.execute(self._query, {"begin": begin, "stop": stop}).all()
        self._report.summary.entries += len(rows)
        if types_in([row[0] for row in rows]) - {int}:
            for row in (row for row in rows if type(row[0]) is not int):
                detail = "a surplus row: indices are whole numbers from 0"
                where = f"index {row[0]!r:.40}"
                self._report.findings.append(Finding(self._log.run_id, "entry", where, detail))
            rows = [row for row in rows if type(row[0]) is int]
        if not rows:
            return _NO_ROWS
        indices, writers, seqs, kinds, datas, leaves = zip(*rows, strict=True)
        if types_in(datas) != {bytes} or types_in(leaves) != {bytes}:
            datas = tuple(raw(item) or b"" for item in datas)
            leaves = tuple(map(raw, leaves))
        return Rows(indices, _words(writers), seqs, _words(kinds), datas, leaves)


def types_in(column: Sequence[Any]) -> set[type]:
    """Return the types of a column's values; they are one where nothing is damaged."""
    return set(map(type, column))


def _words(column: Sequence[Any]) -> list[str | None]:
    """Decode a column of texts, in which few different ones stand."""
    known = {item: word(item) for item in set(column)}
    return [known[item] for item in column]
