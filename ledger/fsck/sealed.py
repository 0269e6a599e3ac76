"""Sealed values: every vault row opened, and compared with what its entry committed to."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import bindparam, func, select

from rlhf_audit_trail.ledger.findings import Finding
from rlhf_audit_trail.ledger.fsck.columns import is_whole, raw, table
from rlhf_audit_trail.ledger.fsck.ranges import Bench, CheckedLog, RangeReport, Record
from rlhf_audit_trail.ledger.proof.commitment import commit
from rlhf_audit_trail.ledger.proof.errors import MalformedBundle
from rlhf_audit_trail.ledger.reading import place_of
from rlhf_audit_trail.ledger.store import models
from rlhf_audit_trail.ledger.vault import Erased, Vault, VaultDamaged

__all__ = ["SealedCheck"]

_VAULT = table(models.VaultRow)
# substr gives what is stored, whatever it is
_ROWS = (
    select(
        _VAULT.c.leaf_index, func.substr(_VAULT.c.subject, 1), func.substr(_VAULT.c.ciphertext, 1)
    )
    .where(
        _VAULT.c.log_number == bindparam("number"),
        _VAULT.c.leaf_index >= bindparam("begin"),
        _VAULT.c.leaf_index < bindparam("stop"),
    )
    .order_by(_VAULT.c.leaf_index)
)
_Row = tuple[Any, Any]
# what an entry raises that a faithful writer could not have made
_UNUSABLE = (KeyError, TypeError, ValueError, AttributeError, OverflowError, MalformedBundle)


class SealedCheck:
    """Checks the vault rows of one range of entries."""

    def __init__(self, bench: Bench, log: CheckedLog, report: RangeReport) -> None:
        """Report into `report`."""
        self._connection = bench.connection
        self._vault = bench.vault
        self._log = log
        self._report = report
        self._has_rows = False

    def begin(self, first: int, end: int) -> None:
        """Look whether there is any vault row in the range."""
        query = select(_VAULT.c.leaf_index).where(
            _VAULT.c.log_number == self._log.number, is_whole(_VAULT.c.leaf_index, first, end)
        )
        self._has_rows = self._connection.execute(query.limit(1)).first() is not None

    def check(self, begin: int, stop: int, indices: Sequence[int], records: list[Record]) -> None:
        """Check the vault rows of entries [begin, stop), whose records are given."""
        rows = self._read(begin, stop) if self._has_rows else {}
        if not rows and not any("c" in record for record in records):
            return
        for index, record in zip(indices, records, strict=True):
            self._entry(index, record, rows.pop(index, None))
        for index in rows:
            self._found(index, "a vault row without an entry")

    def _read(self, begin: int, stop: int) -> dict[int, _Row]:
        place = {"number": self._log.number, "begin": begin, "stop": stop}
        rows = self._connection.execute(_ROWS, place)
        return {index: (subject, ciphertext) for index, subject, ciphertext in rows}

    def _entry(self, index: int, record: Record, row: _Row | None) -> None:
        self._report.summary.vault_rows += row is not None
        if not record:  # damaged, or in an archive
            return
        commitments = record.get("c")
        if not commitments and row is not None:
            self._found(index, "an entry without sealed fields has a vault row")
        elif commitments and row is None:
            if any(first <= index < end for first, end in self._log.restored):
                self._report.summary.unopenable += 1
            else:
                self._found(index, "the entry's sealed values are missing from the vault")
        elif row is not None and self._vault is not None:
            try:
                self._openings(self._vault, row, index, record)
            except Erased:
                self._report.summary.erased += 1

    def _openings(self, vault: Vault, row: _Row, index: int, record: Record) -> None:
        subject, ciphertext = raw(row[0]) or b"", raw(row[1]) or b""
        commitments = record["c"]
        try:
            place = place_of(record["writer_id"], record["seq"])
            openings = vault.unseal(subject, ciphertext, self._log.origin, place)
            found = {opening.path: commit(opening).hex() for opening in openings}
            if found == commitments:
                return
            wrong = {path for path in {*found, *commitments} if _differ(path, found, commitments)}
        except VaultDamaged as error:
            self._found(index, error.message)
        except _UNUSABLE:
            self._found(index, "the entry's own fields do not lead to its values")
        else:
            for path in sorted(wrong):
                self._found(index, f"the sealed {path!r:.80} is not what the entry committed to")

    def _found(self, index: Any, detail: str) -> None:
        where = f"index {index!r:.40}"
        self._report.findings.append(Finding(self._log.run_id, "vault", where, detail))


def _differ(path: str, found: dict[str, str], commitments: dict[str, Any]) -> bool:
    return found.get(path) != commitments.get(path)
