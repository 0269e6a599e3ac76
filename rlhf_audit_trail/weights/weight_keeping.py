"""Where a run's weights are stored: from the facade's `storage_backend` to a checkpoint store."""

from __future__ import annotations

from rlhf_audit_trail.capture import WrongArgument
from rlhf_audit_trail.ledger.appending import now_text
from rlhf_audit_trail.ledger.blobs import BlobStore
from rlhf_audit_trail.ledger.log import Ledger, Log
from rlhf_audit_trail.ledger.object_stores import place_of
from rlhf_audit_trail.ledger.remote_ledger import RemoteLedger
from rlhf_audit_trail.ledger.weights.checkpoints import CheckpointStore
from rlhf_audit_trail.weights.byte_arithmetic import NUMPY
from rlhf_audit_trail.weights.checkpointing import WeightKeeping

__all__ = ["check_backend", "weight_keeping"]


def check_backend(ledger: Ledger | RemoteLedger, backend: str) -> str:
    """Return the URL that `backend` stands for, empty for the ledger's own directory.

    Raises:
        WrongArgument: the ledger is on another machine.
        InvalidPlace: the word, or the URL, names no object store.
    """
    if not isinstance(ledger, Ledger):
        raise WrongArgument(
            "weights can only be stored where the ledger is, and it is on another machine",
            next_step="leave storage_backend out: digests are recorded all the same",
        )
    return place_of(backend, ledger.blobs.url)


def weight_keeping(ledger: Ledger, log: Log, backend: str) -> WeightKeeping:
    """Return where the weights of a run go; raises as `check_backend`."""
    url = check_backend(ledger, backend)
    blobs = BlobStore(ledger.engine, ledger.directory / "blobs", url)
    store = CheckpointStore(ledger.engine, blobs, NUMPY)
    return WeightKeeping(store, log.number, ledger.directory, now_text)
