"""Proofs that a committed bit is 0 or 1: for that bit, there and nowhere else; all else fails."""

from __future__ import annotations

import hashlib
import sys
from collections import Counter
from pathlib import Path

import pytest
from coincurve import PublicKey

from rlhf_audit_trail.privacy.errors import InvalidParameter, WrongProof
from rlhf_audit_trail.privacy.zk.bit_proof import (
    COIN,
    PARTICIPANT,
    PROOF_BYTES,
    Context,
    commit_bit,
    prove_bit,
    verify_bit,
)
from rlhf_audit_trail.privacy.zk.group import (
    ORDER,
    added,
    base_times,
    negated,
    point_of,
    random_scalar,
    scalar_bytes,
    scalar_of,
    second_generator,
)

sys.path.insert(0, str(Path(__file__).parent))
from leaks import Secrets, leaks

CONTEXT = Context(hashlib.sha256(b"one").digest())
FIELD = 2**256 - 2**32 - 977
G = "0279be667ef9dcbbac55a06295ce870b07029bfcdb2dce28d959f2815b16f81798"


def proven(bit: int, index: int = 3, kind: int = PARTICIPANT) -> tuple[bytes, bytes]:
    blinding = random_scalar()
    commitment = commit_bit(bit, blinding).format()
    return commitment, prove_bit(
        CONTEXT, kind, index, bit=bit, blinding=blinding, commitment=commitment
    )


def parts(proof: bytes) -> list[bytes]:
    return [proof[at : at + 32] for at in range(0, PROOF_BYTES, 32)]


@pytest.mark.parametrize("bit", [0, 1])
def test_both_bits_are_proven(bit: int) -> None:
    for index in (0, 1, 2**40):
        commitment, proof = proven(bit, index)
        assert len(proof) == PROOF_BYTES
        assert verify_bit(CONTEXT, PARTICIPANT, index, commitment, proof) == commitment


def test_the_second_generator_is_the_first_point_of_its_hash() -> None:
    """Computed here without the curve's library: Euler's criterion, then the even root."""
    for attempt in range(256):
        digest = hashlib.sha256(b"rlhf-audit/zk/second-generator/v1" + bytes([attempt])).digest()
        x = int.from_bytes(digest)
        square = (x**3 + 7) % FIELD
        if x < FIELD and pow(square, (FIELD - 1) // 2, FIELD) == 1:
            break
    assert attempt == 1
    y = pow(square, (FIELD + 1) // 4, FIELD)
    y = y if y % 2 == 0 else FIELD - y
    assert second_generator().point() == (x, y)
    assert second_generator().format().hex() != G


def test_commitments_are_what_they_are_said_to_be() -> None:
    blinding = random_scalar()
    assert commit_bit(0, blinding).format() == base_times(blinding).format()
    lifted = added(base_times(blinding), second_generator())
    assert commit_bit(1, blinding).format() == lifted.format()
    assert base_times(1).format().hex() == G


def test_a_proof_is_for_one_context_kind_index_and_commitment() -> None:
    commitment, proof = proven(1)
    other, other_proof = proven(1)
    for call in (
        (Context(hashlib.sha256(b"two").digest()), PARTICIPANT, 3, commitment, proof),
        (CONTEXT, COIN, 3, commitment, proof),
        (CONTEXT, PARTICIPANT, 4, commitment, proof),
        (CONTEXT, PARTICIPANT, 3, other, proof),
        (CONTEXT, PARTICIPANT, 3, commitment, other_proof),
        (CONTEXT, PARTICIPANT, 3, negated(commitment), proof),
    ):
        with pytest.raises(WrongProof):
            verify_bit(*call)


def test_no_part_of_a_proof_can_be_changed() -> None:
    for bit in (0, 1):
        commitment, proof = proven(bit)
        e0, s0, e1, s1 = parts(proof)
        n = ORDER.to_bytes(32)
        minus = [scalar_bytes(-scalar_of(part)) for part in (e0, s0, e1, s1)]
        changed = [
            e1 + s1 + e0 + s0,
            s0 + e0 + s1 + e1,
            e1 + s0 + e0 + s1,
            e0 + s1 + e1 + s0,
            b"".join(minus),
            minus[0] + s0 + e1 + s1,
            e0 + minus[1] + e1 + s1,
            e0 + s0 + e1 + minus[3],
            bytes(32) + s0 + e1 + s1,
            e0 + bytes(32) + e1 + s1,
            n + s0 + e1 + s1,
            e0 + s0 + e1 + n,
            e0 + b"\xff" * 32 + e1 + s1,
            scalar_bytes(scalar_of(e0) + 1) + s0 + scalar_bytes(scalar_of(e1) - 1) + s1,
            proof[:-1],
            proof + b"\x00",
            b"",
        ]
        changed += [
            proof[:at] + bytes([proof[at] ^ 1 << at % 8]) + proof[at + 1 :]
            for at in range(PROOF_BYTES)
        ]
        # the same numbers, plus n: what a reader that reduces would take for the same proof
        changed += [
            proof[:at] + (scalar_of(part) + ORDER).to_bytes(33)[1:] + proof[at + 32 :]
            for at, part in zip(range(0, PROOF_BYTES, 32), parts(proof), strict=True)
            if scalar_of(part) + ORDER < 2**256
        ]
        for other in changed:
            with pytest.raises(WrongProof):
                verify_bit(CONTEXT, PARTICIPANT, 3, commitment, other)


def test_points_have_one_spelling_and_infinity_has_none() -> None:
    blinding = random_scalar()
    good = commit_bit(0, blinding)
    x = good.format()[1:]
    off_curve = next(
        x.to_bytes(32) for x in range(1, 50) if pow(x**3 + 7, (FIELD - 1) // 2, FIELD) != 1
    )
    for data in (
        b"",
        bytes(33),
        b"\x00",
        good.format(compressed=False),
        b"\x04" + x,
        b"\x06" + x,
        b"\x00" + x,
        b"\x02" + off_curve,
        b"\x02" + (FIELD + 1).to_bytes(32),
        b"\x02" + b"\xff" * 32,
        good.format() + b"\x00",
    ):
        with pytest.raises(WrongProof):
            point_of(data)
    with pytest.raises(WrongProof):
        added(good, point_of(negated(good.format())))
    with pytest.raises(WrongProof):
        base_times(0)
    _, proof = proven(0)
    with pytest.raises(WrongProof):  # C = H: the second statement is about infinity
        verify_bit(CONTEXT, PARTICIPANT, 3, second_generator().format(), proof)


def test_a_two_cannot_be_proven() -> None:
    """Every way that the equations leave: an honest prover's steps on a false statement."""
    for wrong in (2, -1, 1000):
        blinding = random_scalar()
        lift = second_generator().multiply(scalar_bytes(wrong))
        commitment = added(base_times(blinding), lift).format()
        for bit in (0, 1):
            proof = prove_bit(
                CONTEXT, PARTICIPANT, 0, bit=bit, blinding=blinding, commitment=commitment
            )
            with pytest.raises(WrongProof):
                verify_bit(CONTEXT, PARTICIPANT, 0, commitment, proof)
    for bit in (2, -1, 0.5, "1"):
        with pytest.raises(InvalidParameter):
            commit_bit(bit, 5)  # type: ignore[arg-type]
        with pytest.raises(InvalidParameter):
            prove_bit(CONTEXT, 0, 0, bit=bit, blinding=5, commitment=b"")  # type: ignore[arg-type]


def test_simulating_both_halves_needs_the_challenge_before_the_hash() -> None:
    """A forger who knows no opening chooses e0, s0, e1, s1, and meets the hash once in 2^256."""
    commitment = added(base_times(random_scalar()), second_generator().multiply(scalar_bytes(2)))
    for _ in range(50):
        forged = b"".join(scalar_bytes(random_scalar()) for _ in range(4))
        with pytest.raises(WrongProof):
            verify_bit(CONTEXT, PARTICIPANT, 0, commitment.format(), forged)


def test_bits_and_blindings_do_not_show() -> None:
    """Nothing of the secret in the bytes, and the numbers of both bits look alike."""
    blinding = random_scalar()
    secrets = Secrets(keys=[blinding.to_bytes(32)])
    tops: dict[int, Counter[tuple[int, int]]] = {0: Counter(), 1: Counter()}
    for bit in (0, 1):
        commitment = commit_bit(bit, blinding).format()
        seen = set()
        for _ in range(300):
            proof = prove_bit(
                CONTEXT, PARTICIPANT, 0, bit=bit, blinding=blinding, commitment=commitment
            )
            seen |= set(parts(proof))
            tops[bit].update((at, part[0] >> 6) for at, part in enumerate(parts(proof)))
        assert len(seen) == 4 * 300  # fresh randomness: two equal nonces would give the blinding
        assert leaks({"proof": commitment + proof}, secrets, dictionary=()) == []
    for counts in tops.values():  # four parts in four quarters each: 75 +- 7.5, six of them
        assert all(30 < counts[at, quarter] < 120 for at in range(4) for quarter in range(4))


def test_equal_bits_have_unequal_commitments() -> None:
    found = {commit_bit(bit, random_scalar()).format() for bit in (0, 1) for _ in range(100)}
    assert len(found) == 200
    assert isinstance(PublicKey(next(iter(found))), PublicKey)
