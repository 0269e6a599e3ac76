"""Replaying a run's weights: whole weights and every difference since, each against its entry.

It proves that the stored states lead from one to the next and are the ones recorded. It does not
prove that the training made them.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from rlhf_audit_trail.ledger.blobs import BlobStore
from rlhf_audit_trail.ledger.proof.errors import AuditTrailError, Inconsistent
from rlhf_audit_trail.ledger.proof.note import VerifierKey
from rlhf_audit_trail.ledger.proof.verify import TrustPolicy, verify_bundle
from rlhf_audit_trail.ledger.reading import StoredEntry, StoredLog
from rlhf_audit_trail.ledger.weights.checkpoints import CheckpointStore
from rlhf_audit_trail.ledger.weights.manifest import parse_manifest
from rlhf_audit_trail.ledger.weights.reader import HeldWeights
from rlhf_audit_trail.ledger.weights.scratch import Scratch
from rlhf_audit_trail.ledger.weights.stored import StoredCheckpoint

__all__ = ["ReplayedStep", "check_signed", "replay"]


@dataclass(frozen=True)
class ReplayedStep:
    """One checkpoint of a run.

    Attributes:
        leaf_index: of its entry.
        name: of the checkpoint.
        weights_digest: hex, of the entry.
        state: proved, not stored, or failed.
        how: whole, or from which checkpoint it was led here.
        finding: why it failed.
    """

    leaf_index: int
    name: str
    weights_digest: str
    state: str
    how: str = ""
    finding: AuditTrailError | None = None


def replay(log: StoredLog, store: CheckpointStore, blobs: BlobStore) -> Iterator[ReplayedStep]:
    """Rebuild every stored checkpoint of a run in turn, each from the one that it starts from.

    Args:
        log: of the run.
        store: with its weights.
        blobs: with its manifests.
    """
    left = store.stored(log.number)
    held: dict[int, HeldWeights] = {}
    names: dict[int, str] = {}
    for entry in log.entries(kind="checkpoint.saved"):
        event = entry.event
        digest = event["weights_digest"]
        if digest is None:
            continue
        fields = (entry.leaf_index, event["name"], digest)
        stored = _stored(left, event["name"], digest)
        if stored is None:
            yield ReplayedStep(*fields, "not stored")
            continue
        left = left[left.index(stored) + 1 :]
        names[stored.number] = stored.name
        try:
            _check_manifest(entry, stored, store, blobs)
            made = _led(store, stored, held)
        except AuditTrailError as error:
            yield ReplayedStep(*fields, "failed", finding=error)
            continue
        needed = {x.base for x in left}
        held = {x: at for x, at in {**held, stored.number: made}.items() if x in needed}
        how = "whole" if stored.base is None else f"from {names.get(stored.base, 'an older one')}"
        yield ReplayedStep(*fields, "proved", how)


def check_signed(
    log: StoredLog, steps: Iterable[ReplayedStep], keys: tuple[VerifierKey, ...]
) -> int:
    """Prove that the steps' entries stand under the newest signed tree head; return its size.

    Steps that came after it are left out: they are signed by the next one.

    Args:
        log: of the run.
        steps: of `replay`.
        keys: that must have signed; none are pinned where there are none.

    Raises:
        ProofError: a signature is wrong or missing, or an entry is not what was signed.
    """
    signed = log.published()
    size = signed.head.size if signed else 0
    digests = {x.leaf_index: x.weights_digest for x in steps if x.leaf_index < size}
    if not digests:
        return size
    trust = TrustPolicy(keys=keys, accept_unpinned=not keys)
    proven = verify_bundle(log.bundle(digests), trust)
    for index, digest in digests.items():
        found = json.loads(proven.entries[index])["weights_digest"]
        if found != digest:
            raise Inconsistent("an entry is not what was signed", expected=digest, actual=found)
    return size


def _stored(left: list[StoredCheckpoint], name: str, digest: str) -> StoredCheckpoint | None:
    return next((x for x in left if x.name == name and x.weights_digest == digest), None)


def _led(
    store: CheckpointStore, stored: StoredCheckpoint, held: Mapping[int, HeldWeights]
) -> HeldWeights:
    """Rebuild one into a scratch file of its own, and return it for those that start from it."""
    reader = store.reader(stored, held=held)
    room = Scratch(reader.layout)
    reader.restore(room=room.read)
    records = [tensor.record for tensor in reader.header.tensors]
    return HeldWeights(stored.number, records, room.read)


def _check_manifest(
    entry: StoredEntry, stored: StoredCheckpoint, store: CheckpointStore, blobs: BlobStore
) -> None:
    """Compare what is stored with what the entry committed to, byte for byte."""
    if "manifest_digest" not in entry.event:
        return
    data = blobs.get(entry.event["manifest_digest"])
    said = parse_manifest(data, entry.event["weights_digest"]).storage
    if said is None:
        return
    if (said.header, said.segments) != (stored.header_digest, store.segments(stored)):
        raise Inconsistent(
            f"what is stored of {stored.name} is not what its entry committed to",
            expected=said.header,
            actual=stored.header_digest,
        )
