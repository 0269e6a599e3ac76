"""Sealed values: every vault row opened, and compared with what its entry committed to."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from sqlalchemy import bindparam, func, select

from rlhf_audit_trail.ledger.findings import Finding
from rlhf_audit_trail.ledger.fsck.columns import is_whole, raw, table
from rlhf_audit_trail.ledger.fsck.ranges import Bench, CheckedLog, RangeReport, Record
from rlhf_audit_trail.ledger.proof.commitment import commit
from rlhf_audit_trail.ledger.proof.errors import MalformedBundle
from rlhf_audit_trail.ledger.reading import place_of
from rlhf_audit_trail.ledger.store import models
from rlhf_audit_trail.ledger.store.entries import FILED_ENTRIES
from rlhf_audit_trail.ledger.vault import Erased, Vault, VaultDamaged

__all__ = ["SealedCheck"]

_VAULT = table(models.VaultRow)
_SUBJECTS = table(models.SubjectTileRow)
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
_EMPTIED: Final = (b"", b"")  # what an erasure leaves of a row
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
        self._filed: dict[int, set[Any]] = {}  # by tile
        self._subjects: set[Any] = set()  # of the tile's sound rows
        self._is_damaged = False

    def begin(self, first: int, end: int) -> None:
        """Look whether there is any vault row in the range."""
        query = select(_VAULT.c.leaf_index).where(
            _VAULT.c.log_number == self._log.number, is_whole(_VAULT.c.leaf_index, first, end)
        )
        self._has_rows = self._connection.execute(query.limit(1)).first() is not None
        filed = _SUBJECTS.c
        tiles = is_whole(filed.tile_index, first // FILED_ENTRIES, -(-end // FILED_ENTRIES))
        found = select(filed.tile_index, func.substr(filed.subject, 1)).where(
            filed.log_number == self._log.number, tiles
        )
        self._filed = {}
        for tile_index, subject in self._connection.execute(found):
            self._filed.setdefault(tile_index, set()).add(subject)

    def check(self, begin: int, stop: int, indices: Sequence[int], records: list[Record]) -> None:
        """Check the vault rows of entries [begin, stop), whose records are given."""
        rows = self._read(begin, stop) if self._has_rows else {}
        self._subjects, self._is_damaged = set(), len(indices) < stop - begin
        is_sealed = rows or any("c" in record for record in records)
        if not is_sealed and begin // FILED_ENTRIES not in self._filed:
            return
        for index, record in zip(indices, records, strict=True):
            self._entry(index, record, rows.pop(index, None))
        for index in rows:
            self._found(index, "a vault row without an entry")
        self._compare_filed(begin)

    def _compare_filed(self, begin: int) -> None:
        """Compare the subjects of a tile's rows with those that it is filed under."""
        filed = self._filed.get(begin // FILED_ENTRIES, set())
        if self._subjects - filed:
            self._found(begin, "a subject of these 256 entries is not filed", "subject_tile")
        if not self._is_damaged and filed - self._subjects:
            self._found(begin, "a subject is filed that none of these is about", "subject_tile")

    def _read(self, begin: int, stop: int) -> dict[int, _Row]:
        place = {"number": self._log.number, "begin": begin, "stop": stop}
        rows = self._connection.execute(_ROWS, place)
        # of no bytes at all SQLite's substr makes NULL, which these columns cannot hold
        return {index: (_whole(subject), _whole(text)) for index, subject, text in rows}

    def _entry(self, index: int, record: Record, row: _Row | None) -> None:
        is_emptied = row == _EMPTIED
        self._report.summary.vault_rows += row is not None
        self._report.summary.erased += is_emptied
        self._report.emptied += is_emptied
        if not record:  # damaged, or in an archive
            self._is_damaged = True
            return
        commitments = record.get("c")
        before = len(self._report.findings)
        self._judge(index, record, row, commitments)
        if row is not None and not is_emptied and len(self._report.findings) == before:
            self._subjects.add(row[0])

    def _judge(
        self, index: int, record: Record, row: _Row | None, commitments: dict[str, Any] | None
    ) -> None:
        if not commitments and row is not None:
            self._found(index, "an entry without sealed fields has a vault row")
        elif commitments and row is None:
            if any(first <= index < end for first, end in self._log.restored):
                self._is_damaged = True  # the store as it was before is not known
                self._report.summary.unopenable += 1
            else:
                self._found(index, "the entry's sealed values are missing from the vault")
        elif row not in (None, _EMPTIED) and self._vault is not None:
            try:
                self._openings(self._vault, row, index, record)
            except Erased:
                self._report.summary.erased += 1
                self._report.keyless += 1

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

    def _found(self, index: Any, detail: str, what: str = "vault") -> None:
        self._is_damaged = True
        where = f"index {index!r:.40}"
        self._report.findings.append(Finding(self._log.run_id, what, where, detail))


def _whole(column: Any) -> Any:
    return b"" if column is None else column


def _differ(path: str, found: dict[str, str], commitments: dict[str, Any]) -> bool:
    return found.get(path) != commitments.get(path)
