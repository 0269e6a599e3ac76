"""One log as a whole: what the reports of its ranges give when they are put together."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import Connection, or_, select

from rlhf_audit_trail.ledger.findings import Finding, Summary
from rlhf_audit_trail.ledger.fsck.columns import table
from rlhf_audit_trail.ledger.fsck.filed import filed_outside
from rlhf_audit_trail.ledger.fsck.ranges import CheckedLog, EntryRange, RangeReport
from rlhf_audit_trail.ledger.fsck.sequences import Sequences
from rlhf_audit_trail.ledger.fsck.tree import TreeCheck
from rlhf_audit_trail.ledger.store import models

__all__ = ["LogCheck", "LogRow"]

_ENTRIES = table(models.EntryRow)
_VAULT = table(models.VaultRow)
_PAGE_ROWS: Final = 256
_INDEX_MAX: Final = (1 << 63) - 1


@dataclass(frozen=True)
class LogRow:
    """A log as its row and its entries have it; what the row says is not believed.

    Attributes:
        run_id: as the row says.
        number: of the log's rows.
        origin: as the row says.
        row_size: as the row says.
        closed: as the row says.
        archive: as the row says; empty unless the run was pruned.
        size: entries up to the last one that is stored.
    """

    run_id: str
    number: int
    origin: Any
    row_size: Any
    closed: Any
    archive: Any
    size: int


class _Stretches:
    """Joins stretches of entries [first, end) that follow one another."""

    def __init__(self, what: str, say: Callable[[int, int], str]) -> None:
        self.what = what
        self.say = say
        self._last: tuple[int, int] | None = None

    def take(self, new: tuple[int, int] | None) -> tuple[int, int] | None:
        """Take the next one, or None after the last; return one that is complete."""
        last = self._last
        if last is not None and new is not None and last[1] == new[0]:
            self._last = (last[0], new[1])
            return None
        self._last = new
        return last


class LogCheck:
    """Takes the reports of a log's ranges, in order."""

    def __init__(
        self, connection: Connection, log: CheckedLog, row: LogRow, summary: Summary
    ) -> None:
        """Begin; `connection` sees the same state as whoever checks the ranges."""
        self.log = log
        self.row = row
        self.tree = TreeCheck(connection, log, summary)
        self._connection = connection
        self._summary = summary
        self._sequences = Sequences()
        self._expected = 0
        self._emptied = self._keyless = 0
        self._missing = _Stretches("entry", self._say_missing)
        self._unfiled = _Stretches("writer_span", self._say_unfiled)

    def take(self, task: EntryRange, report: RangeReport) -> Iterator[Finding]:
        """Take the next report."""
        self._summary.add(report.summary)
        self._emptied += report.emptied
        self._keyless += report.keyless
        if task.first > self._expected:  # of what lies between, not one row is stored
            self.tree.lose(self._expected)
            yield from self._join(self._missing, [(self._expected, task.first)])
        yield from self._join(self._missing, report.missing)
        yield from self._join(self._unfiled, report.unfiled)
        yield from report.findings
        for step in self._sequences.take(report.steps):
            numbers = f"{step.first}" if step.first == step.last else f"{step.first} to {step.last}"
            detail = f"writer {step.writer_id:.40} numbers it {numbers}, after a higher number"
            yield self._found("sequence", f"index {step.leaf_index}", detail)
        for hole in self._sequences.holes():
            yield self._unrecorded(*hole)
        yield from self.tree.take(task.first, task.end, report)
        self._expected = task.end

    def finish(self) -> Iterator[Finding]:
        """All ranges were given: judge the log as a whole."""
        for stretches in (self._missing, self._unfiled):
            yield from self._join(stretches, [None])
        for hole in self._sequences.holes(beyond=0):
            yield self._unrecorded(*hole)
        if self.row.row_size != self.row.size:
            stored = f"{self.row.size:,} are stored"
            detail = f"the log's row says {self.row.row_size!r:.40} entries, {stored}"
            yield self._found("log", "size", detail)
        yield from self.tree.finish(self.row.size)
        yield from self._outside()
        end = self.row.row_size if type(self.row.row_size) is int else 0
        yield from filed_outside(self._connection, self.log, max(end, self.row.size))

    def compare_erased(self, told: int, *, may_be_fewer: bool) -> Iterator[Finding]:
        """Compare the values that are gone with those that the registry log says were erased.

        Args:
            told: entries whose values it says were erased.
            may_be_fewer: whether vault rows went by other ways, too.
        """
        gone = self._emptied + self._keyless
        if gone > told:
            detail = f"the sealed values of {gone:,} entries are gone, and {told:,} were erased"
            yield self._found("vault", "erased", detail)
        elif gone < told and not may_be_fewer:
            detail = f"the values of {told:,} entries were erased, and {gone:,} are gone"
            yield self._found("vault", "erased", detail)

    def _join(
        self, stretches: _Stretches, new: Iterable[tuple[int, int] | None]
    ) -> Iterator[Finding]:
        """Name stretches of entries, in one finding where one follows another."""
        for found in filter(None, map(stretches.take, new)):
            first, end = found
            yield self._found(stretches.what, f"index {first}", stretches.say(first, end))

    @staticmethod
    def _say_missing(first: int, end: int) -> str:
        return f"{end - first:,} entries are missing, {first} to {end - 1}"

    @staticmethod
    def _say_unfiled(first: int, end: int) -> str:
        return f"no span of their writers has {end - first:,} entries, {first} to {end - 1}"

    def _unrecorded(self, writer: str, first: int, last: int) -> Finding:
        detail = f"numbers {first} to {last} are missing, and no gap event covers them"
        return self._found("sequence", f"writer {writer:.40}", detail)

    def _outside(self) -> Iterator[Finding]:
        """Name rows where no entry can be, which no range has looked at."""
        for column, what, detail in (
            (_ENTRIES.c.leaf_index, "entry", "a surplus row: indices are whole numbers from 0"),
            (_VAULT.c.leaf_index, "vault", "a vault row without an entry"),
        ):
            end = self.row.size if what == "vault" else _INDEX_MAX
            query = select(column).where(
                column.table.c.log_number == self.log.number, or_(column < 0, column >= end)
            )
            for index in self._connection.scalars(query.order_by(column)).yield_per(_PAGE_ROWS):
                yield self._found(what, f"index {index!r:.40}", detail)

    def _found(self, what: str, where: str, detail: str) -> Finding:
        return Finding(self.log.run_id, what, where, detail)
