"""A stored log in the words of the anchorer, and the tree head of it that is to be anchored."""

from __future__ import annotations

from collections.abc import Sequence

from rlhf_audit_trail.ledger.proof.tree_head import TreeHead
from rlhf_audit_trail.ledger.reading import StoredLog

__all__ = ["LogView"]


class LogView:
    """An `AnchorableLog`; reads the store when it is asked.

    Attributes:
        origin: the log's name.
        log_id: 32 bytes, see `proof.tree_head.log_id`.
    """

    def __init__(self, log: StoredLog, head: TreeHead | None) -> None:
        """Offer this head, or none."""
        self._log = log
        self._head = head
        self.origin = log.origin
        self.log_id = log.log_id

    @property
    def size(self) -> int:
        """Count of durable entries."""
        return self._log.size

    def latest_head(self) -> tuple[int, bytes] | None:
        """Return size and root of the head to anchor."""
        return None if self._head is None else (self._head.size, self._head.root)

    def root_at(self, tree_size: int, /) -> bytes:
        """Return the root over the first entries."""
        return self._log.root_at(tree_size)

    def consistency_proof(self, old: int, new: int) -> Sequence[bytes]:
        """Return the RFC 9162 proof between two sizes."""
        return self._log.prove_consistency(old, new)
