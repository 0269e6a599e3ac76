"""Kernel and contract are two verifiers: on each proof, whole or broken, they say the same."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from typing import TypeAlias

import pytest

from benchmarks.gas import synthetic_growth
from rlhf_audit_trail.ledger.chain.contract.abi import WORD_BYTES
from rlhf_audit_trail.ledger.chain.contract.compiled import load_artifact
from rlhf_audit_trail.ledger.chain.contract.reader import AnchorReader
from rlhf_audit_trail.ledger.proof import merkle
from rlhf_audit_trail.ledger.proof.errors import ProofError
from tests.chain_fixtures import GrowingLog

pytestmark = pytest.mark.chain

Claim: TypeAlias = "tuple[int, bytes, int, bytes, Sequence[bytes]]"

FLIPPED_BITS = (0, 7, 8, 127, 128, 255)  # first and last of a node, of a byte, of a half


def kernel_accepts(claim: Claim) -> bool:
    old_size, old_root, new_size, new_root, proof = claim
    try:
        merkle.verify_consistency(old_size, old_root, new_size, new_root, proof)
    except ProofError:
        return False
    return True


def contract_accepts(reader: AnchorReader, claim: Claim) -> bool:
    old_size, old_root, new_size, new_root, proof = claim
    signature = "verifyConsistency(uint64,uint64,bytes32,bytes32,bytes32[])"
    sizes = [size.to_bytes(WORD_BYTES) for size in (old_size, new_size)]
    tail = [(5 * WORD_BYTES).to_bytes(WORD_BYTES), len(proof).to_bytes(WORD_BYTES), *proof]
    data = load_artifact().functions[signature] + b"".join((*sizes, old_root, new_root, *tail))
    answer = reader.rpc.call(
        "eth_call", {"to": reader.contract, "data": f"0x{data.hex()}"}, "latest"
    )
    return bool(int(answer, 16))


def verdict(reader: AnchorReader, claim: Claim) -> bool:
    said = contract_accepts(reader, claim)
    assert kernel_accepts(claim) is said, claim
    return said


def broken(claim: Claim, rng: random.Random) -> Iterator[Claim]:
    """Each way to break a proof, or what it is said to prove."""
    old_size, old_root, new_size, new_root, proof = claim
    for place, node in enumerate(proof):
        number = int.from_bytes(node)
        for bit in FLIPPED_BITS:
            flipped = (number ^ 1 << bit).to_bytes(WORD_BYTES)
            yield old_size, old_root, new_size, new_root, _put(proof, place, flipped)
        for other in (bytes(WORD_BYTES), old_root, new_root, rng.randbytes(WORD_BYTES)):
            if other != node:
                yield old_size, old_root, new_size, new_root, _put(proof, place, other)
        yield old_size, old_root, new_size, new_root, (*proof[:place], *proof[place + 1 :])
        yield old_size, old_root, new_size, new_root, (*proof[:place], node, *proof[place:])
        for with_ in range(place):
            swapped = _put(_put(proof, place, proof[with_]), with_, node)
            yield old_size, old_root, new_size, new_root, swapped
    yield old_size, old_root, new_size, new_root, (*proof, bytes(WORD_BYTES))
    yield old_size, old_root, new_size, new_root, (old_root, *proof)
    yield old_size, new_root, new_size, old_root, proof
    for bit in FLIPPED_BITS:
        yield old_size, _flip(old_root, bit), new_size, new_root, proof
        yield old_size, old_root, new_size, _flip(new_root, bit), proof


def other_sizes(claim: Claim) -> Iterator[Claim]:
    old_size, old_root, new_size, new_root, proof = claim
    for old in {0, old_size - 1, old_size + 1, 2 * old_size, new_size} - {old_size}:
        yield old, old_root, new_size, new_root, proof
    for new in {0, old_size, new_size - 1, new_size + 1, new_size + 2, 2 * new_size} - {new_size}:
        yield old_size, old_root, new, new_root, proof
    yield new_size, new_root, old_size, old_root, proof


def test_broken_proofs_of_small_trees(reader: AnchorReader, log: GrowingLog) -> None:
    log.grow(17)
    rng = random.Random("small")
    accepted = refused = 0
    for new in range(2, 18):
        for old in range(1, new):
            proof = log.consistency_proof(old, new)
            claim = (old, log.root_at(old), new, log.root_at(new), proof)
            assert verdict(reader, claim)
            accepted += 1
            if rng.random() < 0.2:
                refused += sum(not verdict(reader, bad) for bad in broken(claim, rng))
    assert accepted == 136
    assert refused > 500


@pytest.mark.parametrize("number", range(3))
def test_broken_proofs_of_trees_up_to_2_to_the_40(reader: AnchorReader, number: int) -> None:
    rng = random.Random(f"large {number}")
    for _ in range(12):
        old, new = sorted(rng.sample(range(1, 2 ** rng.randint(2, 40)), 2))
        growth = synthetic_growth(old, new, rng)
        claim = (old, growth.old_root, new, growth.new_root, growth.proof)
        assert verdict(reader, claim)
        candidates = list(broken(claim, rng))
        for bad in rng.sample(candidates, min(30, len(candidates))):
            assert not verdict(reader, bad)
        for other in other_sizes(claim):
            verdict(reader, other)  # a neighbouring size may share the shape; see the next test


def test_some_neighbouring_sizes_share_a_proof(reader: AnchorReader, log: GrowingLog) -> None:
    """What binds a size is the signed tree head, not the proof: both verifiers are alike here."""
    log.grow(40)
    shared = []
    for old in range(1, 20):
        for new in range(old + 1, 40):
            claim = (
                old, log.root_at(old), new + 1, log.root_at(new), log.consistency_proof(old, new)
            )  # fmt: skip
            if verdict(reader, claim):
                shared.append((old, new))
    assert (1, 2) not in shared  # another length
    assert (2, 5) in shared  # one left node, one right one, whatever 5 to 8 leaves there are
    assert (4, 6) in shared


def _put(proof: Sequence[bytes], place: int, node: bytes) -> tuple[bytes, ...]:
    return (*proof[:place], node, *proof[place + 1 :])


def _flip(node: bytes, bit: int) -> bytes:
    return (int.from_bytes(node) ^ 1 << bit).to_bytes(WORD_BYTES)
