"""What can be wrong with stored weights; apart, so that who only compares digests needs no more."""

from __future__ import annotations

from rlhf_audit_trail.ledger.proof.errors import AuditTrailError

__all__ = ["BaseDiscarded", "CheckpointDamaged", "CheckpointMissing"]


class CheckpointMissing(AuditTrailError):
    """The weights of no such checkpoint are stored."""


class BaseDiscarded(AuditTrailError):
    """The weights that a difference was to start from were discarded meanwhile."""


class CheckpointDamaged(AuditTrailError):
    """What is stored does not give the weights that it is said to give."""
