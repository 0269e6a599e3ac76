"""One tensor, or one chunk of it, proven alone; the shape of a proof is never believed."""

from __future__ import annotations

import dataclasses

import pytest

from rlhf_audit_trail.ledger.proof.errors import MalformedBundle, ProofError
from rlhf_audit_trail.ledger.weights.digest import (
    CHUNK_BYTES,
    InvalidTensor,
    tensor_record,
    weights_digest,
)
from rlhf_audit_trail.ledger.weights.proof import (
    ChunkProof,
    prove_chunk,
    prove_tensor,
    verify_chunk,
    verify_tensor,
)

DATA = bytes(range(256)) * (4 * CHUNK_BYTES // 256) + b"tail"
RECORDS = [
    *(tensor_record(f"t{n}", "U8", [3], bytes([n] * 3)) for n in range(6)),
    tensor_record("large", "U8", [len(DATA)], DATA),
]
DIGEST = weights_digest(RECORDS)


@pytest.mark.parametrize("record", RECORDS, ids=lambda record: record.name)
def test_every_tensor_is_proven_alone(record) -> None:
    proof = prove_tensor(RECORDS[::-1], record.name)
    assert verify_tensor(proof, tensors=7, weights_digest=DIGEST) == record


@pytest.mark.parametrize("index", range(5))
def test_every_chunk_is_proven_alone(index: int) -> None:
    chunk = DATA[index * CHUNK_BYTES : (index + 1) * CHUNK_BYTES]
    proof = prove_chunk(DATA, index)
    verify_chunk(proof, chunk, RECORDS[-1])
    with pytest.raises(ProofError):
        verify_chunk(proof, bytes([chunk[0] ^ 1]) + chunk[1:], RECORDS[-1])


def test_what_is_not_shown() -> None:
    proof = prove_tensor(RECORDS, "t2")
    other = dataclasses.replace(proof, record=RECORDS[3])
    for wrong, count in ((other, 7), (dataclasses.replace(proof, index=0), 7), (proof, 9)):
        with pytest.raises(ProofError):
            verify_tensor(wrong, tensors=count, weights_digest=DIGEST)
    with pytest.raises(MalformedBundle, match="length"):
        verify_chunk(prove_chunk(DATA, 0), b"short", RECORDS[-1])
    with pytest.raises(ProofError):
        verify_chunk(ChunkProof(9, ()), b"", RECORDS[-1])
    with pytest.raises(InvalidTensor):
        prove_tensor(RECORDS, "nobody")
    with pytest.raises(InvalidTensor):
        prove_chunk(DATA, 5)
