"""fsck, witnesses: every stored cosignature, verified again over its tree head."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

from sqlalchemy import Connection, func, select

from rlhf_audit_trail.ledger.cosignature import CosignerKey, parse_cosigned_head, verify_cosignature
from rlhf_audit_trail.ledger.fsck_store import Finding, raw, text_bytes
from rlhf_audit_trail.ledger.proof.errors import MalformedBundle, ProofError
from rlhf_audit_trail.ledger.proof.note import parse_note
from rlhf_audit_trail.ledger.store import models

__all__ = ["cosignature_findings"]

_COSIGNATURES = models.CosignatureRow.__table__  # type: ignore[attr-defined]
_HEADS = models.TreeHeadRow.__table__  # type: ignore[attr-defined]
_PAGE_ROWS: Final = 64
_BLOB_BYTES_MAX: Final = 4_096  # an ML-DSA-44 signature and its time have 2,428


def cosignature_findings(connection: Connection, log: str, number: int) -> Iterator[Finding]:
    """Yield every cosignature of a log that is not what its witness signed."""
    columns = _COSIGNATURES.c
    query = (
        select(
            columns.tree_size,
            text_bytes(connection, columns.witness).label("witness"),
            text_bytes(connection, columns.key_id).label("key_id"),
            text_bytes(connection, columns.vkey).label("vkey"),
            func.substr(columns.blob, 1, _BLOB_BYTES_MAX).label("blob"),
            columns.cosigned_at_s,
            text_bytes(connection, _HEADS.c.note).label("note"),
        )
        .outerjoin(
            _HEADS,
            (_HEADS.c.log_number == columns.log_number) & (_HEADS.c.tree_size == columns.tree_size),
        )
        .where(columns.log_number == number)
        .order_by(columns.tree_size, columns.witness, columns.key_id)
    )
    for row in connection.execute(query).yield_per(_PAGE_ROWS):
        try:
            _verify(row)
        except ProofError as error:
            where = f"size {row.tree_size!r:.40}, {_text(row.witness)!r:.120}"
            yield Finding(log, "cosignature", where, error.message)


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


def _text(value: Any) -> str:
    return (raw(value) or b"").decode("utf-8", "surrogateescape")
