"""What can be checked apart from everything else, by any process."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Final, Protocol

from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from rlhf_audit_trail.ledger.findings import Finding, Summary
from rlhf_audit_trail.ledger.fsck.columns import words_of
from rlhf_audit_trail.ledger.fsck.entries import check_range
from rlhf_audit_trail.ledger.fsck.ranges import Bench, EntryRange, RangeReport
from rlhf_audit_trail.ledger.proof.errors import AuditTrailError

__all__ = ["CheckBlobs", "CheckDatabase", "CheckEntries", "Report", "Task", "Unreadable"]

_FINDINGS_MAX: Final = 20


@dataclass
class Report:
    """What a task found."""

    findings: list[Finding] = field(default_factory=list)
    summary: Summary = field(default_factory=Summary)


class Task(Protocol):
    """A part of the work; can be sent to another process, and so can its report."""

    @property
    def title(self) -> str:
        """What messages call it."""

    def run(self, bench: Bench) -> Any:
        """Do it, and return the report."""


@dataclass(frozen=True)
class CheckEntries:
    """Check a range of a log."""

    span: EntryRange

    @property
    def title(self) -> str:
        """What messages call it."""
        return self.span.title

    def run(self, bench: Bench) -> RangeReport:
        """Check it."""
        return check_range(self.span, bench)


@dataclass(frozen=True)
class Unreadable:
    """Say that a log could not be divided into ranges."""

    span: EntryRange
    finding: Finding
    title: str = "what could not be read"

    def run(self, _bench: Bench) -> RangeReport:
        """Say so."""
        return RangeReport(findings=[self.finding], lost=self.span.first)


@dataclass(frozen=True)
class CheckBlobs:
    """Hash some blobs."""

    digests: tuple[str, ...]
    title: str = "blobs"

    def run(self, bench: Bench) -> Report:
        """Hash them; a blob is read in parts."""
        report = Report()
        for digest in self.digests:
            report.summary.blobs += 1
            try:
                bench.blobs.check(digest)
            except AuditTrailError as error:
                report.findings.append(Finding("", "blob", digest, error.message))
            except DBAPIError as error:
                report.findings.append(Finding("", "blob", digest, words_of(error)))
        return report


@dataclass(frozen=True)
class CheckDatabase:
    """Have SQLite look through its file: pages, and indices against rows."""

    title: str = "the database file"

    def run(self, bench: Bench) -> Report:
        """Look through it."""
        report = Report()
        if bench.connection.dialect.name != "sqlite":
            return report
        check = text(f"PRAGMA integrity_check({_FINDINGS_MAX})")
        try:
            words = [str(item) for item in bench.connection.scalars(check) if item != "ok"]
        except DBAPIError as error:
            words = [words_of(error)]
        report.findings += [Finding("", "database", "integrity_check", item) for item in words]
        return report
