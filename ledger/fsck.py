"""fsck: check everything a ledger stores against everything else, and name what is broken.

Entries against columns, leaves against tiles, tiles and roots against signed tree heads,
sealed values against commitments, run logs against the registry log, anchors against
heads, blobs against digests. Streams, in bounded memory; goes on after a finding.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Final

from sqlalchemy import Connection, func, select, text

from rlhf_audit_trail.ledger.fsck_cosignatures import cosignature_findings
from rlhf_audit_trail.ledger.fsck_entries import LogCheck, Record
from rlhf_audit_trail.ledger.fsck_store import (
    Finding,
    Inspectable,
    Storage,
    Summary,
    guarded,
    open_damaged,
    raw,
)
from rlhf_audit_trail.ledger.fsck_tree import TreeCheck
from rlhf_audit_trail.ledger.keys import LogKeys
from rlhf_audit_trail.ledger.log import REGISTRY
from rlhf_audit_trail.ledger.proof.errors import AuditTrailError
from rlhf_audit_trail.ledger.store import models

__all__ = ["Finding", "Storage", "Summary", "fsck", "open_damaged"]

_LEDGER = models.LedgerRow.__table__  # type: ignore[attr-defined]
_LOGS = models.LogRow.__table__  # type: ignore[attr-defined]
_HEADS = models.TreeHeadRow.__table__  # type: ignore[attr-defined]
_ANCHORS = models.AnchorRow.__table__  # type: ignore[attr-defined]
_OF_A_LOG: Final = ("entry", "hash_tile", "tree_head", "cosignature", "vault")
_PAGE_ROWS: Final = 256
_SQLITE_FINDINGS_MAX: Final = 20

Progress = Callable[[str, int, int], None]


def fsck(
    ledger: Inspectable, *, progress: Progress | None = None, summary: Summary | None = None
) -> Iterator[Finding]:
    """Yield every finding; nothing is yielded for a sound ledger.

    What is read is one state of the ledger's database, also while others append to it.

    Args:
        ledger: from `open_damaged`, or an open `Ledger`.
        progress: told (origin, entries done, entries in all).
        summary: counted into; complete when the last finding was taken.
    """
    counted = summary if summary is not None else Summary()
    # one transaction from the first read on; never committed, which a damaged file may refuse
    with ledger.engine.connect() as connection:
        for finding in _Fsck(ledger, connection, counted, progress).findings():
            counted.findings += 1
            yield finding


@dataclass
class _Announced:
    """What the registry log says about runs: run id to (index of the entry, record)."""

    opened: dict[str, tuple[int, Record]] = field(default_factory=dict)
    closed: dict[str, tuple[int, Record]] = field(default_factory=dict)
    findings: list[Finding] = field(default_factory=list)

    def see(self, index: int, record: Record) -> None:
        """Take one entry of the registry log; announcing a run twice alike is no fault."""
        known = {"run.opened": self.opened, "run.closed": self.closed}.get(record["kind"])
        if known is None:
            return
        earlier = known.setdefault(str(record.get("run")), (index, record))[1]
        if any(earlier.get(x) != record.get(x) for x in ("origin", "log_keys", "root")):
            detail = f"it contradicts an earlier {record['kind']} of the same run"
            self.findings.append(Finding(REGISTRY, "registry", f"index {index}", detail))


class _Fsck:
    """One run of fsck: sections in order, each going on after the one before."""

    def __init__(
        self,
        ledger: Inspectable,
        connection: Connection,
        summary: Summary,
        progress: Progress | None,
    ) -> None:
        self._ledger = ledger
        self._connection = connection
        self._summary = summary
        self._progress = progress
        self._announced = _Announced()

    def findings(self) -> Iterator[Finding]:
        yield from guarded("", "as a whole", self._database())
        yield from guarded("", "ledger", self._identity())
        logs: list[Any] = []
        yield from guarded("", "log", self._log_rows(logs))
        for row in sorted(logs, key=lambda row: row.run_id != REGISTRY):  # it announces the others
            yield from self._log(row)
        yield from guarded(REGISTRY, "entry", self._hidden_runs({row.run_id for row in logs}))
        yield from guarded("", "as a whole", self._orphans())
        yield from guarded("", "anchor", self._anchors())
        yield from guarded("", "blob", self._blobs())

    # --- the database itself ----------------------------------------------------------

    def _database(self) -> Iterator[Finding]:
        if self._connection.dialect.name == "sqlite":
            check = text(f"PRAGMA integrity_check({_SQLITE_FINDINGS_MAX})")
            for words in self._connection.scalars(check):
                if words != "ok":
                    yield Finding("", "database", "integrity_check", str(words))
        if self._ledger.vault is None:
            detail = "the subjects' secrets cannot be read: no sealed value can be opened"
            yield Finding("", "vault", "vault-keys.db", detail)

    def _identity(self) -> Iterator[Finding]:
        names = list(self._connection.scalars(select(_LEDGER.c.organisation)))
        if names != [self._ledger.settings.organisation]:
            detail = "it does not name the organisation of the settings, once"
            yield Finding("", "ledger", "row", detail)

    def _log_rows(self, logs: list[Any]) -> Iterator[Finding]:
        columns = (_LOGS.c.number, _LOGS.c.run_id, _LOGS.c.origin, _LOGS.c.size, _LOGS.c.closed)
        logs += self._connection.execute(select(*columns).order_by(_LOGS.c.number))
        if REGISTRY not in {row.run_id for row in logs}:
            yield Finding("", "log", REGISTRY, "the registry log is missing")

    def _orphans(self) -> Iterator[Finding]:
        for name in _OF_A_LOG:
            table = models.ledger_metadata.tables[name]
            query = select(table.c.log_number).distinct()
            query = query.where(table.c.log_number.not_in(select(_LOGS.c.number)))
            for number in self._connection.scalars(query):
                detail = f"rows of a log number {number!r:.40} that no log has"
                yield Finding("", "log", f"table {name}", detail)

    # --- logs -------------------------------------------------------------------------

    def _log(self, row: Any) -> Iterator[Finding]:
        self._summary.logs += 1
        log, origin = row.run_id, f"{self._ledger.settings.organisation}/rlhf/{row.run_id}"
        if row.origin != origin:
            yield Finding(log, "log", "origin", f"the log's row says {row.origin!r:.120}")
        keys = LogKeys.derive(self._ledger.secret, origin).verifier_keys
        tree = TreeCheck(
            self._connection,
            log=log,
            number=row.number,
            origin=origin,
            keys=keys,
            summary=self._summary,
        )
        check = LogCheck(
            self._connection,
            self._ledger.vault,
            log,
            row.number,
            row.size,
            origin,
            tree,
            self._summary,
            self._announced.see if log == REGISTRY else lambda *_: None,
            self._progress,
        )
        yield from guarded(log, "entry", check.findings())
        cosigned = cosignature_findings(self._connection, log, row.number)
        yield from guarded(log, "cosignature", cosigned)
        if log == REGISTRY:
            yield from self._announced.findings
        else:
            yield from self._registered(row, origin, [str(key) for key in keys], tree)

    def _registered(
        self, row: Any, origin: str, keys: list[str], tree: TreeCheck
    ) -> Iterator[Finding]:
        """Compare a run's log with what the registry log says about it."""
        if row.run_id not in self._announced.opened:
            if row.size:
                detail = "the registry log has no run.opened for it"
                yield Finding(row.run_id, "registry", "run.opened", detail)
        else:
            index, record = self._announced.opened[row.run_id]
            if record.get("origin") != origin or record.get("log_keys") != keys:
                detail = "run.opened has another origin, or keys that are not the log's own"
                yield Finding(row.run_id, "registry", f"index {index}", detail)
        if row.run_id in self._announced.closed:
            index, record = self._announced.closed[row.run_id]
            size, root = record.get("tree_size"), record.get("root")
            if not tree.is_lost and (size, root) != (tree.tree.size, tree.tree.root().hex()):
                detail = f"run.closed says {size!r:.40} entries; size or root are others now"
                yield Finding(row.run_id, "registry", f"index {index}", detail)
        if bool(row.closed) != (row.run_id in self._announced.closed):
            detail = "the log's row and the registry log disagree whether the run is closed"
            yield Finding(row.run_id, "log", "closed", detail)

    def _hidden_runs(self, stored: set[str]) -> Iterator[Finding]:
        for run_id, (index, _) in self._announced.opened.items():
            if run_id not in stored:
                detail = f"the log of run {run_id!r:.120} is gone"
                yield Finding(REGISTRY, "registry", f"index {index}", detail)

    # --- anchors and blobs ------------------------------------------------------------

    def _anchors(self) -> Iterator[Finding]:
        anchor, head = _ANCHORS.c, _HEADS.c
        query = (
            select(
                anchor.id,
                anchor.log_number,
                anchor.tree_size,
                func.substr(anchor.root, 1).label("root"),
                func.substr(head.root, 1).label("signed_root"),
            )
            .outerjoin(
                _HEADS,
                (head.log_number == anchor.log_number) & (head.tree_size == anchor.tree_size),
            )
            .order_by(anchor.id)
        )
        for row in self._connection.execute(query).yield_per(_PAGE_ROWS):
            self._summary.anchors += 1
            where = f"row {row.id}"
            if row.signed_root is None:
                detail = f"no tree head of size {row.tree_size} was signed in log {row.log_number}"
                yield Finding("", "anchor", where, detail)
            elif raw(row.root) != raw(row.signed_root):
                detail = f"its root is not the one signed at size {row.tree_size}"
                yield Finding("", "anchor", where, detail)

    def _blobs(self) -> Iterator[Finding]:
        for digest in self._ledger.blobs.digests():
            self._summary.blobs += 1
            try:
                self._ledger.blobs.check(digest)
            except AuditTrailError as error:
                yield Finding("", "blob", digest, error.message)
