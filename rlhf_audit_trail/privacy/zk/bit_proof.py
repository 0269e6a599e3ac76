"""One committed bit: C = b H + r G, and a proof that b is 0 or 1 which does not tell which.

Of the two statements D_0 = C = r G and D_1 = C - H = r G one is true; the prover shows the
logarithm of that one, and simulates the other (Cramer, Damgard, Schoenmakers 1994), made
non-interactive by SHA-256 (Fiat, Shamir 1986). A proof is 128 bytes, e_0 || s_0 || e_1 || s_1:

    A_j     = s_j G - e_j D_j
    e_0 + e_1 = SHA-256(context || kind || index || C || A_0 || A_1)     modulo the order n

The context binds whatever the caller says, G and H; the A are computed by the verifier, so
that no part of a proof can be changed: with any other number the hash is another one. (The
paper's form sends the A, too: 194 bytes, and no quicker to check.)

Both values of a bit take the same operations in the same order, those on secrets in
constant time. Python's integers are not, so do not let strangers time the proving of one bit.
"""

from __future__ import annotations

import hashlib
from functools import cache
from struct import Struct
from typing import Final

from coincurve import PublicKey

from rlhf_audit_trail.privacy.errors import InvalidParameter, WrongProof
from rlhf_audit_trail.privacy.zk.group import (
    ORDER,
    SCALAR_BYTES,
    added,
    base_times,
    negated,
    point_of,
    random_scalar,
    scalar_bytes,
    scalar_of,
    second_generator,
)

__all__ = ["COIN", "PARTICIPANT", "PROOF_BYTES", "Context", "commit_bit", "prove_bit", "verify_bit"]

PROOF_BYTES: Final = 4 * SCALAR_BYTES
PARTICIPANT: Final = 0
COIN: Final = 1

_DOMAIN: Final = b"rlhf-audit/zk/bit/v1"
_PLACE: Final = Struct(">BQ")
# generator of the curve, as SEC 2 has it
_G: Final = bytes.fromhex("0279be667ef9dcbbac55a06295ce870b07029bfcdb2dce28d959f2815b16f81798")


class Context:
    """What all proofs of one batch are bound to.

    Args:
        digest: SHA-256 of everything that a proof must not be used for again elsewhere.
    """

    __slots__ = ("_begun",)

    def __init__(self, digest: bytes) -> None:
        self._begun = hashlib.sha256(_DOMAIN + digest + _G + second_generator().format())

    def challenge(self, kind: int, index: int, *points: bytes) -> int:
        """Return the challenge for one bit, modulo the order of the group."""
        found = self._begun.copy()
        found.update(_PLACE.pack(kind, index) + b"".join(points))
        return int.from_bytes(found.digest()) % ORDER


def commit_bit(bit: int, blinding: int) -> PublicKey:
    """Return C = bit H + blinding G.

    Raises:
        InvalidParameter: the bit is not 0 or 1.
    """
    if bit not in (0, 1):
        raise InvalidParameter("a bit is 0 or 1")
    blind = base_times(blinding)
    raised = added(blind, second_generator())  # for a 0 too, so that both take as long
    return raised if bit else blind


def prove_bit(
    context: Context, kind: int, index: int, *, bit: int, blinding: int, commitment: bytes
) -> bytes:
    """Prove a commitment's bit: 128 bytes, fresh randomness in each.

    Args:
        context: what the proof is bound to.
        kind: `PARTICIPANT` or `COIN`.
        index: place of the bit among those of its kind, from 0.
        bit: what was committed to.
        blinding: as above, 1 to n - 1.
        commitment: what `commit_bit` gave, 33 bytes.

    Raises:
        InvalidParameter: the bit is not 0 or 1.
    """
    if bit not in (0, 1):
        raise InvalidParameter("a bit is 0 or 1")
    nonce, masked, false_e = random_scalar(), random_scalar(), random_scalar()
    # the false one is D = r G + H for bit 1, r G - H for bit 0: A = (s - e r) G -+ e H, and the
    # multiple of G is drawn instead of s, since it must not be taken by an operation in variable
    # time: with s and e, which are public, it gives r
    lifted = second_generator().multiply(scalar_bytes(-false_e if bit else false_e))
    true_a = base_times(nonce).format()
    false_a = added(base_times(masked), lifted).format()
    answers = (true_a, false_a) if bit == 0 else (false_a, true_a)
    total = context.challenge(kind, index, commitment, *answers)
    true_e = (total - false_e) % ORDER
    true_half = scalar_bytes(true_e) + scalar_bytes(nonce + true_e * blinding)
    false_half = scalar_bytes(false_e) + scalar_bytes(masked + false_e * blinding)
    return true_half + false_half if bit == 0 else false_half + true_half


def verify_bit(context: Context, kind: int, index: int, commitment: bytes, proof: bytes) -> bytes:
    """Return the commitment, shown to hold 0 or 1.

    Raises:
        WrongProof: the proof is for another bit, place or context, or has another form.
    """
    if len(proof) != PROOF_BYTES:
        raise WrongProof(f"a proof of a bit is {PROOF_BYTES} bytes")
    e0, s0, e1, s1 = (
        scalar_of(proof[at : at + SCALAR_BYTES]) for at in range(0, PROOF_BYTES, SCALAR_BYTES)
    )
    zero = point_of(commitment)
    one = added(zero, _minus_h())
    answers = _answer(zero, e0, s0), _answer(one, e1, s1)
    if (e0 + e1) % ORDER != context.challenge(kind, index, commitment, *answers):
        raise WrongProof(
            "a commitment is not shown to hold 0 or 1",
            next_step="believe nothing of the count that it is part of",
        )
    return commitment


def _answer(point: PublicKey, e: int, s: int) -> bytes:
    """Return A = s G - e D."""
    try:
        return point.multiply(scalar_bytes(-e)).add(scalar_bytes(s)).format()
    except ValueError:  # infinity, which no honest prover meets
        raise WrongProof("a proof leads to the point at infinity") from None


@cache
def _minus_h() -> PublicKey:
    return point_of(negated(second_generator().format()))
