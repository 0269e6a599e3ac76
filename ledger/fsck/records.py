"""What the bytes of entries say: against their columns, and about numbers and sealed values."""

from __future__ import annotations

import itertools
from operator import itemgetter
from typing import Any, Final

from rlhf_audit_trail.ledger.events import ENTRY_VERSION, MAX_ENTRY_BYTES
from rlhf_audit_trail.ledger.findings import Finding
from rlhf_audit_trail.ledger.fsck.filed import FiledCheck
from rlhf_audit_trail.ledger.fsck.ranges import Bench, CheckedLog, RangeReport, Record
from rlhf_audit_trail.ledger.fsck.rows import Rows, types_in
from rlhf_audit_trail.ledger.fsck.sealed import SealedCheck
from rlhf_audit_trail.ledger.fsck.sequences import Numbering, Step
from rlhf_audit_trail.ledger.proof.bundle import parse_json
from rlhf_audit_trail.ledger.proof.errors import MalformedBundle

__all__ = ["RecordCheck"]

_FILED: Final = itemgetter("writer_id", "kind", "run_id", "v", "seq")


class RecordCheck:
    """Parses the entries of one range, each once."""

    def __init__(self, bench: Bench, log: CheckedLog, report: RangeReport) -> None:
        """Report into `report`."""
        self._log = log
        self._report = report
        self._sealed = SealedCheck(bench, log, report)
        self._filed = FiledCheck(bench.connection, log, report)
        self._numbering = Numbering()

    def begin(self, first: int, end: int) -> None:
        """Prepare for entries [first, end)."""
        self._sealed.begin(first, end)
        self._filed.begin(first, end)

    def steps(self) -> list[Step]:
        """Return what the writers' numbers were."""
        return self._numbering.steps()

    def check(self, rows: Rows, begin: int, stop: int, *, may_be_empty: bool) -> None:
        """Check the entries of one tile, [begin, stop).

        Args:
            rows: those that are there.
            begin: the first index.
            stop: after the last index.
            may_be_empty: whether entries' bytes may have been moved to an archive.
        """
        records = self._records(rows, may_be_empty=may_be_empty)
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
        self._filed.check(begin, stop, rows, records)

    def _are_as_filed(self, rows: Rows, records: list[Record]) -> bool:
        """Whether all columns say what the bytes say, looked at column by column."""
        try:
            said = list(map(_FILED, records))
        except KeyError:
            return False
        constant = itertools.repeat(self._log.run_id), itertools.repeat(ENTRY_VERSION)
        filed = zip(rows.writers, rows.kinds, *constant, rows.seqs, strict=False)
        # true would pass for the number 1
        return said == list(filed) and types_in([x for *_, v, seq in said for x in (v, seq)]) <= {
            int
        }

    def _number_all(self, rows: Rows, records: list[Record]) -> None:
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

    def _records(self, rows: Rows, *, may_be_empty: bool) -> list[Record]:
        try:  # at once, which nearly always will do
            records = list(map(parse_json, rows.datas))
        except MalformedBundle:
            records = []
        longest = max(map(len, rows.datas), default=0)
        if records and types_in(records) == {dict} and longest <= MAX_ENTRY_BYTES:
            return records
        return [
            {} if may_be_empty and not data else self._record(index, data)
            for index, data in zip(rows.indices, rows.datas, strict=True)
        ]

    def _record(self, index: int, data: bytes) -> Record:
        """Parse an entry; empty for what is none."""
        try:
            return _parse(data)
        except MalformedBundle as error:
            self._found(index, error.message)
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
                self._found(index, detail)

    def _number(self, index: int, record: Record, writer: str | None, seq: Any) -> None:
        """Take an entry's number as its bytes have it, or its columns where there are none."""
        whose, number = record.get("writer_id", writer), record.get("seq", seq)
        if type(whose) is str and type(number) is int:
            self._numbering.see(whose, number, index)
        else:
            self._found(index, "its writer is no text, or its number no whole number")
        if record.get("kind") == "gap":
            self._gap(record)

    def _gap(self, record: Record) -> None:
        first, last = record.get("first_seq"), record.get("last_seq")
        whose = record.get("of_writer")
        if type(first) is int and type(last) is int and isinstance(whose, str):
            self._numbering.cover(whose, first, last)

    def _found(self, index: int, detail: str) -> None:
        where = f"index {index!r:.40}"
        self._report.findings.append(Finding(self._log.run_id, "entry", where, detail))


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
