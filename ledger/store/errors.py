"""What can be wrong with a database as a whole."""

from __future__ import annotations

from rlhf_audit_trail.ledger.proof.errors import AuditTrailError

__all__ = ["LedgerTooNew", "NotDurable", "StoreError"]


class StoreError(AuditTrailError):
    """The database cannot be opened, read or written."""


class LedgerTooNew(StoreError):
    """The database was written by a newer version of this software."""


class NotDurable(StoreError):
    """The database acknowledges commits before they are on disk."""
