"""By what entries are found: spans of writers' numbers, and the kinds of each tile.

Both tables can be made again from the entries, so where they disagree an entry is never at
fault. An entry whose bytes and columns contradict each other is a finding of its own; here
either of them will do.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final, NamedTuple

from sqlalchemy import Connection, func, or_, select

from rlhf_audit_trail.ledger.findings import Finding
from rlhf_audit_trail.ledger.fsck.columns import table, text_bytes, word
from rlhf_audit_trail.ledger.fsck.ranges import CheckedLog, RangeReport, Record
from rlhf_audit_trail.ledger.fsck.rows import Rows
from rlhf_audit_trail.ledger.store import models
from rlhf_audit_trail.ledger.store.entries import FILED_ENTRIES

__all__ = ["FiledCheck", "filed_outside"]

_SPANS = table(models.WriterSpanRow)
_KINDS = table(models.KindTileRow)
_SUBJECTS = table(models.SubjectTileRow)
_PAGE_ROWS: Final = 256


class _Span(NamedTuple):
    first_index: int
    writer_id: str | None
    first_seq: int

    def number_of(self, index: int) -> tuple[str | None, int]:
        """Return writer and number of an entry."""
        return self.writer_id, self.first_seq + index - self.first_index


class FiledCheck:
    """Checks the entries of one range, tile by tile."""

    def __init__(self, connection: Connection, log: CheckedLog, report: RangeReport) -> None:
        """Report into `report`."""
        self._connection = connection
        self._log = log
        self._report = report
        self._spans: list[_Span] = []
        self._starts: list[int] = []
        self._kinds: dict[int, set[str | None]] = {}

    def begin(self, first: int, end: int) -> None:
        """Read what says something about entries [first, end)."""
        self._spans = list(self._read_spans(first, end))
        self._starts = [span.first_index for span in self._spans]
        tile = _KINDS.c.tile_index
        low, high = first // FILED_ENTRIES, -(-end // FILED_ENTRIES)
        query = select(tile, text_bytes(self._connection, _KINDS.c.kind)).where(
            _KINDS.c.log_number == self._log.number, tile >= low, tile < high
        )
        self._kinds = {}
        for tile_index, kind in self._connection.execute(query):
            self._kinds.setdefault(tile_index, set()).add(word(kind))

    def _read_spans(self, first: int, end: int) -> Iterator[_Span]:
        span, mine = _SPANS.c, _SPANS.c.log_number == self._log.number
        before = select(func.max(span.first_index)).where(mine, span.first_index <= first)
        writer = text_bytes(self._connection, span.writer_id)
        query = select(span.first_index, writer, span.first_seq).where(
            mine, span.first_index >= func.coalesce(before.scalar_subquery(), first)
        )
        for row in self._connection.execute(
            query.where(span.first_index < end).order_by(span.first_index)
        ):
            if {type(row[0]), type(row[2])} == {int} and row[2] >= 0:
                yield _Span(row[0], word(row[1]), row[2])
            elif type(row[0]) is int and row[0] >= first:
                self._found("writer_span", row[0], "its numbers are none")

    # --- one tile ---------------------------------------------------------------------

    def check(self, begin: int, stop: int, rows: Rows, records: Sequence[Record]) -> None:
        """Check entries [begin, stop), of which `rows` are there and say `records`."""
        if not self._is_one_span(begin, stop, rows):
            for place, index in enumerate(rows.indices):
                self._check_number(index, rows.writers[place], rows.seqs[place], records[place])
        filed = self._kinds.get(begin // FILED_ENTRIES, set())
        columns, said = set(rows.kinds), {record.get("kind") for record in records if record}
        both = columns & said if said else columns
        for kind in sorted(x for x in both - filed if isinstance(x, str)):
            self._found("kind_tile", begin, f"{kind} is among its entries, and not filed")
        if len(rows.indices) < stop - begin:
            return  # a kind may be one of an entry that is lost
        for surplus in filed - columns - said:
            self._found("kind_tile", begin, f"{surplus!r:.80} is filed, and not among its entries")

    def _is_one_span(self, begin: int, stop: int, rows: Rows) -> bool:
        """Whether the tile is part of a span, and its columns say so, too."""
        span = self._span_at(begin)
        if span is None or span is not self._span_at(stop - 1):
            return False
        if len(rows.indices) != stop - begin:
            return False
        seq = span.first_seq + begin - span.first_index
        is_his = rows.writers.count(span.writer_id) == len(rows.writers)
        return is_his and tuple(rows.seqs) == tuple(range(seq, seq + stop - begin))

    def _check_number(
        self, index: int, writer: str | None, seq: Any, record: Mapping[str, Any]
    ) -> None:
        span = self._span_at(index)
        filed = None if span is None else span.number_of(index)
        if filed in {(writer, seq), (record.get("writer_id"), record.get("seq"))}:
            return
        unfiled = self._report.unfiled
        if unfiled and unfiled[-1][1] == index:
            unfiled[-1] = (unfiled[-1][0], index + 1)
        else:
            unfiled.append((index, index + 1))

    def _span_at(self, index: int) -> _Span | None:
        place = bisect_right(self._starts, index) - 1
        return self._spans[place] if place >= 0 else None

    def _found(self, what: str, index: Any, detail: str) -> None:
        where = f"index {index!r:.40}"
        self._report.findings.append(Finding(self._log.run_id, what, where, detail))


def filed_outside(connection: Connection, log: CheckedLog, size: int) -> Iterator[Finding]:
    """Name rows that are about no entry of a log with `size` entries."""
    span, tiles = _SPANS.c, -(-size // FILED_ENTRIES)
    beyond = or_(span.first_index < 0, span.first_index >= size)
    for what, column, where, unit in (
        ("writer_span", span.first_index, beyond, 1),
        *(
            (name, tile, or_(tile < 0, tile >= tiles), FILED_ENTRIES)
            for name, tile in (
                ("kind_tile", _KINDS.c.tile_index),
                ("subject_tile", _SUBJECTS.c.tile_index),
            )
        ),
    ):
        query = select(column).where(column.table.c.log_number == log.number, where).distinct()
        for value in connection.scalars(query.order_by(column)).yield_per(_PAGE_ROWS):
            place = value * unit if type(value) is int else value
            detail = "it is about entries that do not exist"
            yield Finding(log.run_id, what, f"index {place!r:.40}", detail)
