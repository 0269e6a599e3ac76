"""Weights that a ledger's own runs recorded, and perhaps stored."""

from __future__ import annotations

from collections.abc import Iterator

from rlhf_audit_trail.ledger.log import Ledger
from rlhf_audit_trail.ledger.proof.errors import AuditTrailError
from rlhf_audit_trail.ledger.weights.checkpoints import CheckpointStore
from rlhf_audit_trail.ledger.weights.manifest import Manifest, parse_manifest
from rlhf_audit_trail.weights.byte_arithmetic import NUMPY
from rlhf_audit_trail.weights.recorded_weights import (
    WEIGHT_KINDS,
    Place,
    Recorded,
    StoredTensors,
    recorded_of,
)

__all__ = ["LedgerWeights"]


class LedgerWeights:
    """What a ledger recorded of one run, or of all."""

    def __init__(self, ledger: Ledger, run: str = "") -> None:
        """Look in `run` only, or in all runs where that is empty."""
        self._ledger, self._run = ledger, run

    def recorded(self) -> Iterator[Recorded]:
        """Yield every entry with a weights digest, oldest first in each run."""
        for run in [self._run] if self._run else self._ledger.runs():
            log = self._ledger.find(run)
            found = [entry for kind in WEIGHT_KINDS for entry in log.entries(kind=kind)]
            for entry in sorted(found, key=lambda x: x.leaf_index):
                known = recorded_of(
                    entry.event,
                    run=log.run_id,
                    origin=log.origin,
                    leaf_index=entry.leaf_index,
                    manifest=self._manifest,
                )
                if known is not None:
                    yield known

    def _manifest(self, listed: str, digest: str) -> Manifest | None:
        try:
            return parse_manifest(self._ledger.blobs.get(listed), digest)
        except AuditTrailError:  # fsck names it; the digest in the entry stands all the same
            return None

    def tensors(self, recorded: Recorded) -> StoredTensors | None:
        """Return the stored weights, None where there are none, or they are damaged."""
        store = CheckpointStore(self._ledger.engine, self._ledger.blobs, NUMPY)
        for stored in store.stored(self._ledger.find(recorded.run).number):
            if stored.weights_digest == recorded.weights_digest:
                try:
                    return store.reader(stored)
                except AuditTrailError:  # what is damaged is fsck's to name
                    return None
        return None

    def place(self, recorded: Recorded) -> Place:
        """Say how the run's log stands at an entry."""
        log = self._ledger.find(recorded.run)
        signed = log.published()
        covering = [x for x in log.anchors() if x.tree_size > recorded.leaf_index]
        state = covering[-1].state if covering else "none"
        if signed is None or signed.head.size <= recorded.leaf_index:
            return Place(None, None, state)
        return Place(signed.head.size, signed.head.root.hex(), state)

    def prove(self, recorded: Recorded) -> bytes:
        """Return a bundle of the entry, with the newest anchored tree head that covers it."""
        log = self._ledger.find(recorded.run)
        covering = [size for size in log.anchored_sizes() if size > recorded.leaf_index]
        return log.bundle([recorded.leaf_index], anchored_sizes=covering[-1:])
