"""The contract's proof checking against the kernel's: same answers, on every small tree and beyond.

Calls are encoded by eth_abi here, so that our own encoder is not its own judge.
"""

from __future__ import annotations

import hashlib
import random

import pytest
from eth_abi import encode

from benchmarks.gas import synthetic_growth
from rlhf_audit_trail.ledger.chain.contract.abi import encode_anchor
from rlhf_audit_trail.ledger.chain.contract.compiled import load_artifact
from rlhf_audit_trail.ledger.proof.errors import ProofError
from rlhf_audit_trail.ledger.proof.merkle import verify_consistency, verify_inclusion
from tests.chain_fixtures import GrowingLog

pytestmark = pytest.mark.chain

CONSISTENCY = "verifyConsistency(uint64,uint64,bytes32,bytes32,bytes32[])"
INCLUSION = "verifyInclusion(bytes32,uint64,uint64,bytes32,bytes32[])"
LARGEST = 33


def ask(reader, function, *values):
    types = function[function.index("(") + 1 : -1].split(",")
    data = load_artifact().functions[function] + encode(types, values)
    answer = reader.rpc.call(
        "eth_call", {"to": reader.contract, "data": f"0x{data.hex()}"}, "latest"
    )
    return bool(int(answer, 16))


def kernel_says(check, *values):
    try:
        check(*values)
    except ProofError:
        return False
    return True


def test_every_consistency_proof_of_small_trees(reader):
    """All 1 <= m <= n <= 33; folded into one constant, so that any change of a proof shows."""
    tree = GrowingLog("example.org/rlhf/small").grow(LARGEST)
    fold = bytes(32)
    for n in range(1, LARGEST + 1):
        for m in range(1, n + 1):
            proof = tree.consistency_proof(m, n)
            roots = tree.root_at(m), tree.root_at(n)
            assert ask(reader, CONSISTENCY, m, n, *roots, proof), (m, n)
            verify_consistency(m, roots[0], n, roots[1], proof)
            if m < n:  # each proof must fail for the wrong root on either side
                assert not ask(reader, CONSISTENCY, m, n, *roots[::-1], proof), (m, n)
            for item in proof:
                fold = hashlib.sha256(fold + len(item).to_bytes(4) + item).digest()
    assert fold.hex() == "aab29c5fa1afd53ab96ec73304109722c428194e8dec397b8220b2218bb683c2"


def test_every_inclusion_proof_of_small_trees(reader):
    tree = GrowingLog("example.org/rlhf/small").grow(LARGEST)
    for n in range(1, LARGEST + 1):
        for index in range(n):
            proof, root = tree.inclusion_proof(index, n), tree.root_at(n)
            assert ask(reader, INCLUSION, tree.leaves[index], index, n, root, proof), (index, n)
            other = tree.leaves[(index + 1) % n] if n > 1 else bytes(32)
            assert not ask(reader, INCLUSION, other, index, n, root, proof), (index, n)
            assert not ask(reader, INCLUSION, tree.leaves[index], n, n, root, proof)


def test_kernel_and_contract_agree_on_damaged_proofs(reader):
    """Random damage to random proofs; the two verifiers must say the same, whatever that is."""
    rng = random.Random(9162)
    tree = GrowingLog("example.org/rlhf/damage").grow(LARGEST)
    answers = []
    for _ in range(300):
        m = rng.randint(0, LARGEST)
        n = rng.randint(max(1, m - 1), LARGEST)
        proof = list(tree.consistency_proof(m, n)) if 1 <= m <= n else []
        roots = [tree.root_at(m), tree.root_at(n)]
        damage = rng.choice(("none", "node", "drop", "add", "swap", "sizes", "roots"))
        if damage == "node" and proof:
            proof[rng.randrange(len(proof))] = rng.choice((bytes(32), rng.randbytes(32)))
        elif damage == "drop" and proof:
            del proof[rng.randrange(len(proof))]
        elif damage == "add":
            proof.insert(rng.randint(0, len(proof)), rng.choice((bytes(32), roots[0])))
        elif damage == "swap":
            rng.shuffle(proof)
        elif damage == "sizes":
            m, n = max(0, m + rng.randint(-1, 1)), n + rng.randint(-1, 1)
        elif damage == "roots":
            roots[rng.randrange(2)] = rng.randbytes(32)
        answer = kernel_says(verify_consistency, m, roots[0], n, roots[1], proof)
        assert ask(reader, CONSISTENCY, m, n, *roots, proof) == answer, (damage, m, n)
        answers.append(answer)
    assert 40 < sum(answers) < 260  # both answers were really asked for


def test_large_trees(reader):
    rng = random.Random(6962)
    for _ in range(60):
        old = rng.randint(1, 2 ** rng.randint(1, 40))
        new = old + rng.randint(1, 2 ** rng.randint(1, 40))
        if rng.random() < 0.2:
            old = 1 << (old.bit_length() - 1)  # the shape without a first node
        growth = synthetic_growth(old, new, rng)
        values = old, new, growth.old_root, growth.new_root
        assert ask(reader, CONSISTENCY, *values, growth.proof), (old, new)
        assert not ask(reader, CONSISTENCY, *values, growth.proof[:-1])
        assert not ask(reader, CONSISTENCY, *values, (*growth.proof, bytes(32)))
        bad = [*growth.proof]
        bad[rng.randrange(len(bad))] = rng.randbytes(32)
        assert not ask(reader, CONSISTENCY, *values, bad)


def test_inclusion_of_one_path_in_other_positions(reader):
    """A path binds no position by itself: the two verifiers agree even on the surprising ones."""
    tree = GrowingLog("example.org/rlhf/small").grow(8)
    leaf, root, proof = tree.leaves[5], tree.root_at(8), tree.inclusion_proof(5, 8)
    fits = []
    for n in range(1, 24):
        for index in range(n):
            answer = kernel_says(verify_inclusion, leaf, index, n, proof, root)
            assert ask(reader, INCLUSION, leaf, index, n, root, proof) == answer, (index, n)
            fits += [(index, n)] * answer
    assert (5, 8) in fits
    assert (5, 7) in fits


def test_our_encoder_agrees_with_eth_abi():
    rng = random.Random(1)
    for length in (0, 1, 5, 60):
        values = rng.randbytes(32), rng.getrandbits(64), rng.randbytes(32)
        proof = [rng.randbytes(32) for _ in range(length)]
        expected = encode(["bytes32", "uint64", "bytes32", "bytes32[]"], [*values, proof])
        assert encode_anchor(*values, proof)[4:] == expected
    with pytest.raises(ValueError, match="64 bits"):
        encode_anchor(bytes(32), 2**64, bytes(32), ())
    with pytest.raises(ValueError, match="32 bytes"):
        encode_anchor(bytes(32), 1, bytes(31), ())
