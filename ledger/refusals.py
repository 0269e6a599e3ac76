"""Why entries of another writer are refused: the same errors on both ends of the wire.

Raised where a log is, answered over HTTP by their names, and raised again by `RemoteLog`.
Standard library only.
"""

from __future__ import annotations

from rlhf_audit_trail.ledger.proof.errors import AuditTrailError

__all__ = [
    "BadToken",
    "ConflictingEntry",
    "LogMissing",
    "LogMoved",
    "NotPermitted",
    "RunClosed",
    "SequenceGap",
]


class BadToken(AuditTrailError):
    """There is no writer token, or it is not one of this ledger's, or it was revoked."""


class NotPermitted(AuditTrailError):
    """The writer token is good, and does not allow this."""


class LogMissing(AuditTrailError):
    """This ledger has no such log."""


class RunClosed(AuditTrailError):
    """The run's log was closed; its size and root stand in the registry log."""


class ConflictingEntry(AuditTrailError):
    """A writer's sequence number stands for another entry already."""


class SequenceGap(AuditTrailError):
    """A writer's entries before these are missing; `expected` is its next sequence number."""

    def __init__(self, message: str, *, expected: int, next_step: str = "") -> None:
        """Say which number comes next."""
        super().__init__(message, next_step=next_step)
        self.expected = expected


class LogMoved(AuditTrailError):
    """Somebody else appended meanwhile what these entries must take into account."""
