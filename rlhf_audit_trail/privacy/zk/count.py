"""Commit to bits and private coins, open their sum, and verify both.

The order is that of level 1: commitments are anchored, then the coin B comes, then the sum is
opened. A private coin v is committed to; the public one p follows from B; v xor p is fair if
either is, so neither the operator nor who made B chooses the noise. Flipping is linear, so the
sum of all is committed to as well:

    p = 0: C        p = 1: H - C                              for each coin's commitment C
    sum over participants of C, and over coins of the flipped C  =  (count + coins / 2) H + R G

Soundness rests on discrete logarithms in secp256k1 and SHA-256 as a random oracle; hiding of
the commitments on nothing; the blindings here come from a secret by HMAC, so they hide as
long as that is a pseudo-random function. Nothing here shows that the raw bits are true.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Sequence
from os import urandom
from typing import Final, NoReturn

from coincurve import PublicKey

from rlhf_audit_trail.privacy.bits import SEED_BYTES, SeededBits
from rlhf_audit_trail.privacy.errors import (
    InvalidParameter,
    NoiseProtocolError,
    RestrictedField,
    WrongProof,
)
from rlhf_audit_trail.privacy.zk.bit_proof import (
    COIN,
    PARTICIPANT,
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
    scalar_bytes,
    second_generator,
)
from rlhf_audit_trail.privacy.zk.published import Commitments, OpenedCount, Proven
from rlhf_audit_trail.privacy.zk.statement import CountStatement, tossed

__all__ = ["PrivateCount", "verify_commitments", "verify_count"]

_KEY_DOMAIN: Final = b"rlhf-audit/zk/key/v1"
_COINS: Final = b"coins"


class PrivateCount:
    """The prover's side of one count: bits, private coins and blindings, none of them printed.

    Made again from the secret and the same bits it has the same commitments. With other bits
    or for another statement it has unrelated ones, which therefore never show a difference.
    """

    __slots__ = ("_bits", "_blindings", "_coin", "_points", "_secret", "statement")

    def __init__(self, statement: CountStatement, bits: Sequence[int], secret: bytes) -> None:
        """Commit to one bit of each participant, in the order of their entries.

        Raises:
            InvalidParameter: there is another number of bits, or one is not 0 or 1.
            NoiseProtocolError: the secret is not 32 bytes.
        """
        if not isinstance(secret, bytes) or len(secret) != SEED_BYTES:
            raise NoiseProtocolError(f"a count's secret must be {SEED_BYTES} bytes")
        given = list(bits)
        if len(given) != statement.participants or any(bit not in (0, 1) for bit in given):
            raise InvalidParameter("each participant has one bit, 0 or 1")
        self.statement = statement
        self._secret = secret
        values = bytes(map(int, given))
        bound = _KEY_DOMAIN + statement.digest() + hashlib.sha256(values).digest()
        key = hmac.digest(secret, bound, "sha256")
        coins = tossed(SeededBits(hmac.digest(key, _COINS, "sha256")), statement.coins)
        self._bits = values + bytes(coins)
        self._blindings = tuple(_blinding(key, at) for at in range(len(self._bits)))
        pairs = zip(self._bits, self._blindings, strict=True)
        self._points = tuple(commit_bit(bit, blinding).format() for bit, blinding in pairs)
        self._coin: bytes | None = None

    @classmethod
    def draw(cls, statement: CountStatement, bits: Sequence[int]) -> PrivateCount:
        """Commit with a new secret from the operating system.

        Raises:
            InvalidParameter: as above.
        """
        return cls(statement, bits, urandom(SEED_BYTES))

    @property
    def secret(self) -> bytes:
        """What all coins and blindings follow from, for the vault and nobody else."""
        return self._secret

    def proven(self) -> Commitments:
        """Return all commitments with proofs that each holds 0 or 1."""
        context = Context(self.statement.digest())
        people = self.statement.participants
        proofs = []
        for at, commitment in enumerate(self._points):
            kind, index = (PARTICIPANT, at) if at < people else (COIN, at - people)
            bit, blinding = self._bits[at], self._blindings[at]
            proofs.append(
                prove_bit(context, kind, index, bit=bit, blinding=blinding, commitment=commitment)
            )
        return Commitments(self.statement, self._points, tuple(proofs))

    def open(self, coin: bytes) -> OpenedCount:
        """Return the noised count for the coin; the charge comes before.

        Raises:
            NoiseProtocolError: the coin is not 32 bytes, or the count was opened with another
                one: two noises on one count show more than either costs.
        """
        flips = [False] * self.statement.participants + self.statement.public_coins(coin)
        if self._coin not in (None, coin):
            raise NoiseProtocolError("a count is opened with one coin only")
        self._coin = coin
        ones = blinding = 0
        for bit, blind, flip in zip(self._bits, self._blindings, flips, strict=True):
            ones += bit ^ flip
            blinding += -blind if flip else blind
        return OpenedCount(ones - self.statement.coins // 2, blinding % ORDER)

    def __repr__(self) -> str:
        return f"PrivateCount({self.statement!r})"

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise RestrictedField("the secrets of a count are not pickled or copied")


def verify_commitments(data: bytes, statement: CountStatement) -> Proven:
    """Return the commitments in these bytes, each shown to hold 0 or 1.

    Raises:
        WrongProof: one is not shown, stands twice, or all are of another statement.
    """
    found = Commitments.from_bytes(data, statement)
    context = Context(statement.digest())
    people = statement.participants
    for at, (point, proof) in enumerate(zip(found.points, found.proofs, strict=True)):
        kind, index = (PARTICIPANT, at) if at < people else (COIN, at - people)
        verify_bit(context, kind, index, point, proof)
    return Proven(statement, found.points, found.proofs)


def verify_count(proven: Proven, coin: bytes, opened: OpenedCount) -> int:
    """Return the noised count, shown to be the sum of what was committed to.

    That the commitments' digest was anchored before the coin came is shown by
    `redraw.check_coin`.

    Args:
        proven: what `verify_commitments` returned.
        coin: 32 bytes of the `dp.coin` entry.
        opened: what was published.

    Raises:
        WrongProof: the sum is another one, or no sum of so many bits, or the commitments were
            only read, and not verified.
        NoiseProtocolError: the coin is not 32 bytes.
    """
    if not isinstance(proven, Proven):  # a sum of what may be no bits shows nothing
        raise WrongProof(
            "these commitments are not shown to hold bits", next_step="call verify_commitments"
        )
    statement = proven.statement
    flips = statement.public_coins(coin)
    half, people = statement.coins // 2, statement.participants
    if not -half <= opened.count <= people + half:
        raise _other_sum()
    coins = zip(proven.points[people:], flips, strict=True)
    points = [*proven.points[:people], *(negated(p) if flip else p for p, flip in coins)]
    total = added(*map(point_of, points), *_value_points(sum(flips) - opened.count - half))
    if total.format() != base_times(opened.blinding).format():
        raise _other_sum()
    return opened.count


def _value_points(value: int) -> list[PublicKey]:
    """Return value H, which for 0 is no point at all."""
    return [second_generator().multiply(scalar_bytes(value))] if value else []


def _blinding(key: bytes, at: int) -> int:
    """Return a scalar from 1 to n - 1; a number outside comes once in 2^128, and is passed over."""
    attempt = 0
    while True:
        digest = hmac.digest(key, b"blinding" + at.to_bytes(8) + bytes([attempt]), "sha256")
        if 0 < (found := int.from_bytes(digest)) < ORDER:
            return found
        attempt += 1  # pragma: no cover


def _other_sum() -> WrongProof:
    return WrongProof(
        "an opened count is not the sum of what was committed to",
        next_step="treat the release as made up",
    )
