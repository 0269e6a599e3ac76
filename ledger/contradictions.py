"""What the store, the signed tree heads, the witnesses and the chain can hold against each other.

Standard library only, since the auditor's command meets these findings too.
"""

from __future__ import annotations

from typing import Final

from rlhf_audit_trail.ledger.proof.errors import AuditTrailError

__all__ = ["WAY_OUT_OF_FORK", "WAY_OUT_OF_ROLLBACK", "WAY_OUT_OF_THEFT", "Forked", "RolledBack"]

WAY_OUT_OF_ROLLBACK: Final = (
    "append nothing; bring back what is missing from an export or mirror of this log: "
    "rlhf-audit import SOURCE"
)
WAY_OUT_OF_FORK: Final = (
    "keep this copy as evidence; go back to the newest sound backup, then bring back what was "
    "published from an export or mirror: rlhf-audit import SOURCE"
)

WAY_OUT_OF_THEFT: Final = (
    "; if you never had those entries, somebody else has the publisher's key: take a new key, "
    "and set chain.publisher in rlhf-audit.toml to its address (OPERATING.md says how)"
)


class RolledBack(AuditTrailError):
    """The store holds less than was signed or anchored: an old copy was put in place."""


class Forked(AuditTrailError):
    """The store holds another history than the one that was signed or anchored."""
