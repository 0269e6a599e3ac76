"""Signed tree heads and their cosignatures, row by row: signatures, and note against columns."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

from sqlalchemy import ColumnElement, Connection, RowMapping, func, select

from rlhf_audit_trail.ledger.cosignature import CosignerKey, parse_cosigned_head, verify_cosignature
from rlhf_audit_trail.ledger.findings import Finding, Summary
from rlhf_audit_trail.ledger.fsck.columns import raw, table, text_bytes
from rlhf_audit_trail.ledger.fsck.ranges import CheckedLog
from rlhf_audit_trail.ledger.proof.errors import MalformedBundle, ProofError
from rlhf_audit_trail.ledger.proof.merkle import HASH_BYTES
from rlhf_audit_trail.ledger.proof.note import MAX_NOTE_BYTES, parse_note
from rlhf_audit_trail.ledger.proof.tree_head import SignedTreeHead, open_tree_head
from rlhf_audit_trail.ledger.store import models

__all__ = ["HeadCheck"]

_HEADS = table(models.TreeHeadRow)
_COSIGNATURES = table(models.CosignatureRow)
_PAGE_ROWS: Final = 64  # a signed note has about 3.6 kB
_BLOB_BYTES_MAX: Final = 4_096  # an ML-DSA-44 signature and its time have 2,428


class HeadCheck:
    """Reads the tree heads of a log, each with its cosignatures."""

    def __init__(self, connection: Connection, log: CheckedLog, summary: Summary) -> None:
        """Count into `summary`."""
        self._connection = connection
        self._log = log
        self._summary = summary

    def sizes(self, within: ColumnElement[bool]) -> list[int]:
        """Return the tree sizes of the rows in question, growing."""
        query = select(_HEADS.c.tree_size).where(_HEADS.c.log_number == self._log.number, within)
        return list(self._connection.scalars(query.order_by(_HEADS.c.tree_size)))

    def read(
        self, within: ColumnElement[bool]
    ) -> Iterator[tuple[SignedTreeHead | None, list[Finding]]]:
        """Yield each head, None if it is not sound, and what is wrong with it."""
        columns = _HEADS.c
        # as bytes: a damaged text need not be UTF-8, and must not end the whole query
        query = select(
            columns.tree_size,
            func.substr(columns.root, 1, HASH_BYTES + 1).label("root"),
            func.substr(text_bytes(self._connection, columns.note), 1, MAX_NOTE_BYTES + 1).label(
                "note"
            ),
        ).where(columns.log_number == self._log.number, within)
        result = self._connection.execute(query.order_by(columns.tree_size))
        for row in result.yield_per(_PAGE_ROWS).mappings():
            yield self._examine(row)

    def _examine(self, row: RowMapping) -> tuple[SignedTreeHead | None, list[Finding]]:
        """Check a stored head against itself."""
        self._summary.tree_heads += 1
        findings: list[Finding] = []
        size = row["tree_size"]

        def found(detail: str) -> None:
            findings.append(Finding(self._log.run_id, "tree_head", f"size {size!r:.40}", detail))

        keys = self._log.keys.at(max(0, size) if isinstance(size, int) else 0)
        try:
            signed = open_tree_head(_text(row["note"]), keys)
        except ProofError as error:
            found(f"the signed note: {error.message}")
            return None, findings
        if signed.signed_by != keys:
            found("the note is not signed by all of the log's own keys")
        if signed.head.origin != self._log.origin:
            found(f"the note is of another log, {signed.head.origin!r:.120}")
        if signed.head.size != size:
            found(f"the note signs size {signed.head.size:,}, the column says another")
        if raw(row["root"]) != signed.head.root:
            found("the root column is not the root that was signed")
        return (None if findings else signed), findings

    # --- cosignatures -----------------------------------------------------------------

    def cosignatures(self, within: ColumnElement[bool]) -> Iterator[Finding]:
        """Yield every cosignature that is not what its witness signed."""
        columns = _COSIGNATURES.c
        query = (
            select(
                columns.tree_size,
                text_bytes(self._connection, columns.witness).label("witness"),
                text_bytes(self._connection, columns.key_id).label("key_id"),
                text_bytes(self._connection, columns.vkey).label("vkey"),
                func.substr(columns.blob, 1, _BLOB_BYTES_MAX).label("blob"),
                columns.cosigned_at_s,
                text_bytes(self._connection, _HEADS.c.note).label("note"),
            )
            .outerjoin(
                _HEADS,
                (_HEADS.c.log_number == columns.log_number)
                & (_HEADS.c.tree_size == columns.tree_size),
            )
            .where(columns.log_number == self._log.number, within)
            .order_by(columns.tree_size, columns.witness, columns.key_id)
        )
        for row in self._connection.execute(query).yield_per(_PAGE_ROWS):
            self._summary.cosignatures += 1
            try:
                _verify(row)
            except ProofError as error:
                where = f"size {row.tree_size!r:.40}, {_text(row.witness)!r:.120}"
                yield Finding(self._log.run_id, "cosignature", where, error.message)


def _verify(row: Any) -> None:
    """Show that a row is its witness's signature over the stored head, or raise."""
    if raw(row.note) is None:
        raise MalformedBundle("no tree head of this size was signed")
    key = CosignerKey.parse(_text(row.vkey))
    if (key.name, key.key_id.hex()) != (_text(row.witness), _text(row.key_id)):
        raise MalformedBundle("the witness's name or key id is not that of its key")
    head = parse_cosigned_head(parse_note(_text(row.note)).text)
    time_s = verify_cosignature(key, head, raw(row.blob) or b"")
    if time_s != row.cosigned_at_s:
        raise MalformedBundle("the time column is not the time that was signed")


def _text(note: Any) -> str:
    # what is not UTF-8 becomes a character that no note may hold, and is refused as such
    return (raw(note) or b"\x00").decode("utf-8", "surrogateescape")
