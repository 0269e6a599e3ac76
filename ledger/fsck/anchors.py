"""Anchors as the store has them, against the tree heads that were signed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from sqlalchemy import Connection, func, select

from rlhf_audit_trail.ledger.findings import Finding, Summary
from rlhf_audit_trail.ledger.fsck.columns import raw, table
from rlhf_audit_trail.ledger.store import models

__all__ = ["anchor_findings"]

_HEADS = table(models.TreeHeadRow)
_ANCHORS = table(models.AnchorRow)
_PAGE_ROWS: Final = 256


def anchor_findings(connection: Connection, summary: Summary) -> Iterator[Finding]:
    """Yield every anchor that is not of a signed tree head; the rest is the chain's to confirm."""
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
    for row in connection.execute(query).yield_per(_PAGE_ROWS):
        summary.anchors += 1
        where = f"row {row.id}"
        if row.signed_root is None:
            detail = f"no tree head of size {row.tree_size} was signed in log {row.log_number}"
            yield Finding("", "anchor", where, detail)
        elif raw(row.root) != raw(row.signed_root):
            detail = f"its root is not the one signed at size {row.tree_size}"
            yield Finding("", "anchor", where, detail)
