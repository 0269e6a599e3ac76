"""Mutual binding: the log's head inside a trainer's state, the state's digest in the log."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Self

from rlhf_audit_trail.ledger.proof.errors import AuditTrailError
from rlhf_audit_trail.ledger.remote_ledger import NotHere
from rlhf_audit_trail.record.recorder import RunRecorder

__all__ = ["KnownHead", "check_head"]


@dataclass(frozen=True)
class KnownHead:
    """How far a log was durable when a checkpoint was saved; the root is hex."""

    origin: str
    tree_size: int
    root: str

    @classmethod
    def of(cls, run: RunRecorder) -> Self | None:
        """Return where a run stands; None if its log is on another machine."""
        try:
            log = run.log
        except NotHere:
            return None
        size = log.size
        return cls(log.origin, size, log.root_at(size).hex())

    @classmethod
    def parse(cls, said: Any) -> Self | None:
        """Read what `to_json` wrote into a trainer's state; None for anything else."""
        if not isinstance(said, Mapping):
            return None
        origin, size, root = (said.get(name) for name in ("origin", "tree_size", "root"))
        if not (isinstance(origin, str) and isinstance(size, int) and isinstance(root, str)):
            return None
        return cls(origin, size, root)

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON types."""
        return asdict(self)


def check_head(run: RunRecorder, head: KnownHead) -> None:
    """Compare what a checkpoint knew with the log that goes on; a difference is an alert."""
    try:
        log = run.log
    except NotHere:
        return
    if head.origin != log.origin:
        run.alert("other_log", "the checkpoint that is resumed from belongs to another log")
        return
    try:
        is_known = head.tree_size <= log.size and log.root_at(head.tree_size).hex() == head.root
    except AuditTrailError:
        is_known = False
    if not is_known:
        detail = f"the checkpoint that is resumed from knew {head.tree_size:,} entries of this log"
        run.alert("unknown_tree_head", f"{detail}, which it lacks", severity="critical")
