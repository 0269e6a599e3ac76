"""The order of things: what is checked first, by whom, and what the logs must agree with."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import Final

from sqlalchemy import Connection, select
from sqlalchemy.exc import DBAPIError

from rlhf_audit_trail.ledger.findings import Finding, Progress, Summary
from rlhf_audit_trail.ledger.fsck.anchors import anchor_findings
from rlhf_audit_trail.ledger.fsck.announced import TOLD_KINDS, Announced, follow_keys
from rlhf_audit_trail.ledger.fsck.budgets import budget_findings
from rlhf_audit_trail.ledger.fsck.columns import guarded, table, words_of
from rlhf_audit_trail.ledger.fsck.key_files import key_file_findings
from rlhf_audit_trail.ledger.fsck.logs import LogCheck, LogRow
from rlhf_audit_trail.ledger.fsck.own_keys import OwnKeys
from rlhf_audit_trail.ledger.fsck.ranges import CheckedLog, EntryRange, last_index, ranges_of
from rlhf_audit_trail.ledger.fsck.storage import Inspectable
from rlhf_audit_trail.ledger.fsck.tasks import CheckBlobs, CheckDatabase, CheckEntries, Unreadable
from rlhf_audit_trail.ledger.fsck.tokens import remote_writer_findings, token_findings
from rlhf_audit_trail.ledger.fsck.workers import Crew
from rlhf_audit_trail.ledger.log import REGISTRY
from rlhf_audit_trail.ledger.proof.tree_head import log_id
from rlhf_audit_trail.ledger.store import models
from rlhf_audit_trail.ledger.succession import KeyHistory

__all__ = ["Whole"]

_LEDGER = table(models.LedgerRow)
_LOGS = table(models.LogRow)
_OF_A_LOG: Final = (
    "entry", "hash_tile", "tree_head", "cosignature", "vault", "remote_writer",
    "writer_span", "kind_tile", "subject_tile",
)  # fmt: skip
_BLOBS_AT_ONCE: Final = 16


class Whole:
    """One run of fsck: sections in order, each going on after the one before."""

    def __init__(
        self, ledger: Inspectable, connection: Connection, summary: Summary, crew: Crew
    ) -> None:
        """Check `ledger` as `connection` sees it; `crew` does what can be done apart."""
        self._ledger = ledger
        self._connection = connection
        self._summary = summary
        self._crew = crew
        self._announced = Announced()
        self._own = OwnKeys(ledger.directory, ledger.settings.organisation)
        self._keys = self._own.begin()
        self._rows: list[LogRow] = []
        self.progress = Progress("", 0, 0, 0, 0)

    def findings(self) -> Iterator[Finding | Progress]:
        """Yield findings, and now and then how far it has come."""
        database = self._crew.begin(CheckDatabase())
        yield from guarded("", "ledger", self._identity())
        yield from guarded("", "log", self._read_rows())
        yield from guarded("", "registry", follow_keys(self._connection, self._keys))
        yield from self._own.findings(self._keys)
        yield from self._logs([row for row in self._rows if row.run_id == REGISTRY])
        yield from self._logs([row for row in self._rows if row.run_id != REGISTRY])
        yield from self._hidden_runs()
        yield from guarded("", "as a whole", self._orphans())
        yield from guarded("", "anchor", self._anchors())
        yield from guarded("", "writer_token", self._tokens())
        yield from guarded("", "budget", budget_findings(self._connection, self._ledger.vault))
        yield from guarded("", "blob", self._blobs())
        runs = {*self._keys.histories, *(row.run_id for row in self._rows)}
        histories = {run_id: self._history(run_id) for run_id in runs}
        yield from key_file_findings(self._ledger.directory, histories, self._summary)
        yield from database().findings

    # --- the ledger itself ------------------------------------------------------------

    def _identity(self) -> Iterator[Finding]:
        if self._ledger.vault is None:
            detail = "the subjects' secrets cannot be read: no sealed value can be opened"
            yield Finding("", "vault", "vault-keys.db", detail)
        names = list(self._connection.scalars(select(_LEDGER.c.organisation)))
        if names != [self._ledger.settings.organisation]:
            detail = "it does not name the organisation of the settings, once"
            yield Finding("", "ledger", "row", detail)

    def _read_rows(self) -> Iterator[Finding]:
        column = _LOGS.c
        query = select(
            column.run_id, column.number, column.origin, column.size, column.closed, column.archive
        )
        for row in self._connection.execute(query.order_by(column.number)).all():
            size = last_index(self._connection, row.number) + 1
            self._rows.append(LogRow(*row, size))
        self.progress = Progress("", 0, 0, 0, sum(row.size for row in self._rows))
        if REGISTRY not in {row.run_id for row in self._rows}:
            yield Finding("", "log", REGISTRY, "the registry log is missing")

    def _origin(self, run_id: str) -> str:
        return f"{self._ledger.settings.organisation}/rlhf/{run_id}"

    def _history(self, run_id: str) -> KeyHistory:
        return self._own.history(run_id, self._keys)

    # --- logs -------------------------------------------------------------------------

    def _logs(self, rows: list[LogRow]) -> Iterator[Finding | Progress]:
        """Check some logs, each range of each log by whoever has time."""
        checks: dict[int, LogCheck] = {}
        number = -1
        for task, report in self._crew.run(self._tasks(rows, checks)):
            if task.span.log.number != number and number in checks:
                yield from self._end(checks.pop(number))
            number = task.span.log.number
            yield from guarded(
                task.span.log.run_id, "entry", checks[number].take(task.span, report)
            )
            for index, record in report.told:
                yield from self._announced.see(index, record)
            yield self._advance(task.span, checks[number])
        if number in checks:
            yield from self._end(checks.pop(number))

    def _tasks(
        self, rows: list[LogRow], checks: dict[int, LogCheck]
    ) -> Iterator[CheckEntries | Unreadable]:
        for row in rows:
            self._summary.logs += 1
            check = checks[row.number] = self._check_of(row)
            next_index = 0
            try:
                for span in ranges_of(self._connection, check.log, row.size):
                    yield CheckEntries(span)
                    next_index = span.end
            except DBAPIError as error:
                where = f"entries from index {next_index} on"
                finding = Finding(row.run_id, "database", where, words_of(error))
                yield Unreadable(EntryRange(check.log, next_index, row.size), finding)

    def _check_of(self, row: LogRow) -> LogCheck:
        log = CheckedLog(
            row.run_id,
            row.number,
            self._origin(row.run_id),
            self._history(row.run_id),
            TOLD_KINDS if row.run_id == REGISTRY else frozenset(),
            row.run_id in self._announced.pruned,
            tuple(self._announced.restored.get(row.run_id, ())),
        )
        return LogCheck(self._connection, log, row, self._summary)

    def _end(self, check: LogCheck) -> Iterator[Finding]:
        row = check.row
        if row.origin != check.log.origin:
            detail = f"the log's row says {row.origin!r:.120}"
            yield Finding(row.run_id, "log", "origin", detail)
        yield from guarded(row.run_id, "entry", check.finish())
        # of a log that came back from a copy, nobody knows what the loss took besides
        if self._ledger.vault is not None and not check.log.restored:
            told = self._announced.erased.get(row.run_id, 0)
            yield from check.compare_erased(told, may_be_fewer=check.log.is_pruned)
        if row.run_id != REGISTRY:
            yield from self._registered(check)

    def _advance(self, span: EntryRange, check: LogCheck) -> Progress:
        done = self.progress.all_done + max(0, span.end - span.first)
        self.progress = Progress(
            span.log.origin, span.end, check.row.size, done, self.progress.all_size
        )
        return self.progress

    def _registered(self, check: LogCheck) -> Iterator[Finding]:
        """Compare a run's log with what the registry log says about it."""
        row, log = check.row, check.log
        if row.run_id not in self._announced.opened:
            if row.row_size or row.size:
                detail = "the registry log has no run.opened for it"
                yield Finding(row.run_id, "registry", "run.opened", detail)
        else:
            index, record = self._announced.opened[row.run_id]
            keys = [str(key) for key in log.keys.first]
            if record.get("origin") != log.origin or record.get("log_keys") != keys:
                detail = "run.opened has another origin, or keys that are not the log's own"
                yield Finding(row.run_id, "registry", f"index {index}", detail)
        if row.run_id in self._announced.closed:
            index, record = self._announced.closed[row.run_id]
            said = record.get("tree_size"), record.get("root")
            size, root = check.tree.state()
            if not check.tree.is_lost and said != (size, root.hex()):
                detail = f"run.closed says {said[0]!r:.40} entries; size or root are others now"
                yield Finding(row.run_id, "registry", f"index {index}", detail)
        if bool(row.closed) != (row.run_id in self._announced.closed):
            detail = "the log's row and the registry log disagree whether the run is closed"
            yield Finding(row.run_id, "log", "closed", detail)
        if row.archive and row.run_id not in self._announced.pruned:
            detail = "its row names an archive, and the registry log knows of no pruning"
            yield Finding(row.run_id, "log", "archive", detail)

    def _hidden_runs(self) -> Iterator[Finding]:
        stored = {row.run_id for row in self._rows}
        for run_id, (index, _) in self._announced.opened.items():
            if run_id not in stored:
                detail = f"the log of run {run_id!r:.120} is gone"
                yield Finding(REGISTRY, "registry", f"index {index}", detail)

    # --- what belongs to no range of a log --------------------------------------------

    def _orphans(self) -> Iterator[Finding]:
        for name in _OF_A_LOG:
            rows = models.ledger_metadata.tables[name]
            query = select(rows.c.log_number).distinct()
            query = query.where(rows.c.log_number.not_in(select(_LOGS.c.number)))
            for number in self._connection.scalars(query):
                detail = f"rows of a log number {number!r:.40} that no log has"
                yield Finding("", "log", f"table {name}", detail)

    def _anchors(self) -> Iterator[Finding]:
        ids = {row.number: log_id(self._history(row.run_id).first[0]) for row in self._rows}
        yield from anchor_findings(self._connection, ids, self._summary)

    def _tokens(self) -> Iterator[Finding]:
        told, runs = self._announced.tokens, {row.number: row.run_id for row in self._rows}
        yield from token_findings(self._connection, told)
        yield from remote_writer_findings(self._connection, told, runs)

    def _blobs(self) -> Iterator[Finding]:
        digests = iter(self._ledger.blobs.digests())
        tasks = (CheckBlobs(some) for some in _batches(digests))
        for _, report in self._crew.run(tasks):
            self._summary.add(report.summary)
            yield from report.findings


def _batches(digests: Iterator[str]) -> Iterator[tuple[str, ...]]:
    while some := tuple(islice(digests, _BLOBS_AT_ONCE)):
        yield some
