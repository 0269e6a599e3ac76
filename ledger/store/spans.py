"""Spans: which numbers of a writer are at which indices, a row for many entries.

A span reaches to where the next one begins, and the last one to the log's end. So a writer
who appends on changes nothing here, and a log's spans can neither overlap nor leave a hole.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from sqlalchemy import Connection, Row, func, select
from sqlalchemy.sql.elements import ColumnElement

from rlhf_audit_trail.ledger.store import models
from rlhf_audit_trail.ledger.store.statements import insert_columns

__all__ = ["Spans", "next_seq", "stored_numbers"]

_LOGS = models.LogRow.__table__  # type: ignore[attr-defined]
_ENTRIES = models.EntryRow.__table__  # type: ignore[attr-defined]
_SPANS = models.WriterSpanRow.__table__  # type: ignore[attr-defined]


class Spans:
    """Says whose entries a log's newest are; knows what it said last.

    To be forgotten when a transaction may have failed.
    """

    def __init__(self, log_number: int) -> None:
        """Remember nothing."""
        self._log_number = log_number
        self._last: tuple[str, int, int] | None = None  # writer, number less index, end

    def forget(self) -> None:
        """Take nothing for stored any more."""
        self._last = None

    def put(self, connection: Connection, writer_id: str, index: int, seq: int, count: int) -> None:
        """Say that `count` entries at the log's end, from `index` on, are a writer's from `seq` on.

        Where the last ones were his, too, this is known already: if the log is as long as
        this object left it, nobody came in between.
        """
        offset = seq - index
        known = self._last == (writer_id, offset, index)
        if not known and self._newest(connection) != (writer_id, offset):
            row = {"first_index": index, "writer_id": writer_id, "first_seq": seq}
            columns = {name: [value] for name, value in row.items()}
            insert_columns(connection, _SPANS, {"log_number": self._log_number}, columns)
        self._last = (writer_id, offset, index + count)

    def _newest(self, connection: Connection) -> tuple[str, int] | None:
        span = _SPANS.c
        query = select(span.writer_id, span.first_seq - span.first_index).where(
            span.log_number == self._log_number
        )
        row = connection.execute(query.order_by(span.first_index.desc()).limit(1)).first()
        return None if row is None else (row[0], row[1])


def next_seq(connection: Connection, log_number: int, writer_id: str) -> int:
    """Return the number after a writer's highest that is stored; 0 if there is none."""
    span = _SPANS.c
    query = select(span.first_seq - span.first_index + _end(log_number)).where(
        span.log_number == log_number, span.writer_id == writer_id
    )
    newest = connection.scalar(query.order_by(span.first_seq.desc()).limit(1))
    return 0 if newest is None else int(newest)


def stored_numbers(
    connection: Connection, log_number: int, writer_id: str, first_seq: int, last_seq: int
) -> Iterator[Row[Any]]:
    """Yield seq, leaf_index and data of a writer's entries with numbers in a range."""
    span, entry = _SPANS.c, _ENTRIES.c
    his = (span.log_number == log_number) & (span.writer_id == writer_id)
    # from the last that begins no later than the range does
    before = select(func.max(span.first_seq)).where(his, span.first_seq <= first_seq)
    overlapping = select(span.first_index, span.first_seq, _end(log_number)).where(
        his,
        span.first_seq >= func.coalesce(before.scalar_subquery(), first_seq),
        span.first_seq <= last_seq,
    )
    for first_index, begin, end in connection.execute(overlapping.order_by(span.first_seq)).all():
        low = first_index + max(0, first_seq - begin)
        high = min(end - 1, first_index + last_seq - begin)
        yield from connection.execute(
            select(entry.seq, entry.leaf_index, entry.data)
            .where(entry.log_number == log_number, entry.leaf_index.between(low, high))
            .order_by(entry.leaf_index)
        )


def _end(log_number: int) -> ColumnElement[Any]:
    """Return the index at which a span ends, for a query that selects spans of this log."""
    later = _SPANS.alias()
    following = select(func.min(later.c.first_index)).where(
        later.c.log_number == log_number, later.c.first_index > _SPANS.c.first_index
    )
    size = select(_LOGS.c.size).where(_LOGS.c.number == log_number)
    return func.coalesce(following.correlate(_SPANS).scalar_subquery(), size.scalar_subquery())
