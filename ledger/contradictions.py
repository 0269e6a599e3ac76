"""What the store, the signed tree heads, the witnesses and the chain can hold against each other.

Standard library only, since the auditor's command meets these findings too.
"""

from __future__ import annotations

from rlhf_audit_trail.ledger.proof.errors import AuditTrailError

__all__ = ["Forked", "RolledBack"]


class RolledBack(AuditTrailError):
    """The store holds less than was signed or anchored: an old copy was put in place."""


class Forked(AuditTrailError):
    """The store holds another history than the one that was signed or anchored."""
