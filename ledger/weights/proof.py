"""Proofs that one tensor, or one chunk of it, belongs to a model, without the rest of it.

How many tensors a model has stands in its entry (`tensors`), and how many chunks a tensor has
follows from its record: no size is taken from a proof (FORMAT.md, section 4.3).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rlhf_audit_trail.ledger.proof.errors import MalformedBundle
from rlhf_audit_trail.ledger.proof.merkle import (
    inclusion_proof,
    leaf_hash,
    root_hash,
    verify_inclusion,
)
from rlhf_audit_trail.ledger.weights.digest import (
    CHUNK_BYTES,
    Bytes,
    InvalidTensor,
    TensorRecord,
    chunk_hash,
    chunk_hashes,
)

__all__ = [
    "ChunkProof",
    "TensorProof",
    "prove_chunk",
    "prove_tensor",
    "verify_chunk",
    "verify_tensor",
]


@dataclass(frozen=True)
class TensorProof:
    """A tensor's record, its place in order of names, and the path to the weights digest."""

    record: TensorRecord
    index: int
    path: tuple[bytes, ...]


@dataclass(frozen=True)
class ChunkProof:
    """A chunk's place in its tensor, and the path to the tensor's root."""

    index: int
    path: tuple[bytes, ...]


def prove_tensor(records: Sequence[TensorRecord], name: str) -> TensorProof:
    """Prove one of a model's tensors; raises InvalidTensor if it has none of this name."""
    ordered = sorted(records, key=lambda record: record.name.encode())
    for index, record in enumerate(ordered):
        if record.name == name:
            leaves = [leaf_hash(item.encode()) for item in ordered]
            return TensorProof(record, index, _path(leaves, index))
    raise InvalidTensor(f"there is no tensor {name!r:.200}")


def verify_tensor(proof: TensorProof, *, tensors: int, weights_digest: bytes) -> TensorRecord:
    """Return the record that is shown to be one of the model's.

    Args:
        proof: from anybody.
        tensors: how many the model has, from its entry.
        weights_digest: from the same entry.

    Raises:
        MalformedBundle, NotIncluded: it is not shown.
    """
    leaf = leaf_hash(proof.record.encode())
    verify_inclusion(leaf, proof.index, tensors, proof.path, weights_digest)
    return proof.record


def prove_chunk(data: Bytes, index: int) -> ChunkProof:
    """Prove one chunk of a tensor's bytes; raises InvalidTensor if there is no such chunk."""
    leaves = chunk_hashes(data)
    if not 0 <= index < len(leaves):
        raise InvalidTensor(f"the tensor has {len(leaves):,} chunks, and none {index}")
    return ChunkProof(index, _path(leaves, index))


def verify_chunk(proof: ChunkProof, chunk: Bytes, record: TensorRecord) -> None:
    """Show that a chunk stands at its place in a tensor, whose record was verified before.

    Raises:
        MalformedBundle, NotIncluded: it is not shown.
    """
    count = -(-record.size_bytes // CHUNK_BYTES)
    wanted = min(CHUNK_BYTES, record.size_bytes - proof.index * CHUNK_BYTES)
    if memoryview(chunk).nbytes != wanted:
        raise MalformedBundle("the chunk does not have the length that its place demands")
    verify_inclusion(chunk_hash(chunk), proof.index, count, proof.path, record.root)


def _path(leaves: Sequence[bytes], index: int) -> tuple[bytes, ...]:
    def read(level: int, at: int) -> bytes:
        return root_hash(leaves[at << level : (at + 1) << level])

    return inclusion_proof(index, len(leaves), read)
