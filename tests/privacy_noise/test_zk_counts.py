"""Verifiable counts: the opened sum is that of what was committed, with noise nobody chose."""

from __future__ import annotations

import copy
import hashlib
import json
import pickle
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from fractions import Fraction
from math import comb
from pathlib import Path

import pytest
from scipy.stats import chi2

from rlhf_audit_trail.privacy.errors import (
    InvalidParameter,
    NoiseProtocolError,
    PrivacyError,
    RestrictedField,
    WrongProof,
)
from rlhf_audit_trail.privacy.mechanisms import Binomial
from rlhf_audit_trail.privacy.zk.bit_proof import PARTICIPANT, PROOF_BYTES, Context, prove_bit
from rlhf_audit_trail.privacy.zk.count import PrivateCount, verify_commitments, verify_count
from rlhf_audit_trail.privacy.zk.group import ORDER, added, base_times, negated, second_generator
from rlhf_audit_trail.privacy.zk.published import Commitments, OpenedCount, Proven
from rlhf_audit_trail.privacy.zk.statement import CountStatement

sys.path.insert(0, str(Path(__file__).parent))
from leaks import Secrets, leaks

FEW = Binomial(10, Fraction(2), Fraction(1, 10))
STATEMENT = CountStatement("example.org/log", "thumbs up, round 3", 6, FEW)
BITS, SECRET = [1, 0, 0, 1, 1, 0], b"k" * 32
COIN, OTHER = hashlib.sha256(b"public").digest(), hashlib.sha256(b"other").digest()
PRIVATE = PrivateCount(STATEMENT, BITS, SECRET)
DATA = PRIVATE.proven().to_bytes()
PROVEN = verify_commitments(DATA, STATEMENT)
OPENED = PrivateCount(STATEMENT, BITS, SECRET).open(COIN)
BIT_BYTES = 33 + PROOF_BYTES
HEADER = len(DATA) - 16 * BIT_BYTES


def bit(at: int) -> slice:
    return slice(HEADER + at * BIT_BYTES, HEADER + (at + 1) * BIT_BYTES)


def put(at: int, data: bytes) -> bytes:
    return DATA[: bit(at).start] + data + DATA[bit(at).stop :]


def test_what_is_proven_verifies() -> None:
    assert verify_count(PROVEN, COIN, OPENED) == OPENED.count
    assert -5 <= OPENED.count - sum(BITS) <= 5
    assert PROVEN.to_bytes() == DATA
    assert OpenedCount.from_json(OPENED.to_json()) == OPENED


def test_made_again_from_the_vault_it_is_the_same() -> None:
    again = PrivateCount(STATEMENT, BITS, SECRET)
    assert again.proven().digest() == PROVEN.digest()
    assert again.open(COIN) == OPENED
    assert again.open(COIN) == OPENED  # and again: the same coin gives nothing new


def test_the_noise_is_the_binomial_s_and_follows_the_coin() -> None:
    found = Counter(
        PrivateCount(STATEMENT, BITS, SECRET).open(hashlib.sha256(b"%d" % n).digest()).count - 3
        for n in range(4000)
    )
    expected = {heads - 5: 4000 * comb(10, heads) / 2**10 for heads in range(11)}
    assert found.keys() <= expected.keys()
    statistic = sum((found[x] - e) ** 2 / e for x, e in expected.items())
    assert chi2.sf(statistic, 10) > 1e-9
    mean = sum(x * n for x, n in found.items()) / 4000
    assert abs(mean) < 6 * (10 / 4 / 4000) ** 0.5
    assert FEW.cost.delta_units > 0  # and is charged as what it is


def test_private_coins_chosen_by_the_operator_leave_the_noise_fair() -> None:
    """All private coins 1, as a cheat would like: the public ones decide then."""

    class Cheat(PrivateCount):
        def __init__(self, number: int) -> None:
            super().__init__(STATEMENT, BITS, number.to_bytes(32))
            self._bits = self._bits[:6] + b"\x01" * 10

    found = [Cheat(n).open(hashlib.sha256(b"%d" % n).digest()).count - 3 for n in range(600)]
    assert abs(sum(found) / 600) < 6 * (10 / 4 / 600) ** 0.5
    assert max(found) > 0 > min(found)


def altered() -> Iterator[tuple[str, bytes]]:
    first, second = DATA[bit(0)], DATA[bit(1)]
    person, coin = DATA[bit(2)], DATA[bit(9)]
    yield "proofs of two bits swapped", put(0, first[:33] + second[33:])
    yield "commitments of two bits swapped", put(0, second[:33] + first[33:])
    yield "a whole bit twice", put(0, second)
    both = DATA[: bit(0).start] + second + first + DATA[bit(1).stop :]
    yield "two participants swapped with their proofs", both
    yield "a coin in a participant's place", put(2, coin)
    yield "a commitment twice, the second proof its own", put(9, person[:33] + coin[33:])
    yield "a negated commitment", put(0, negated(first[:33]) + first[33:])
    yield "a bit left out", DATA[: bit(15).start]
    yield "a bit more", DATA + DATA[bit(15)]
    yield "a byte behind", DATA + b"\x00"
    yield "another version", DATA.replace(b"/v1\n", b"/v2\n", 1)
    yield "another context in the header", DATA[:40] + bytes([DATA[40] ^ 1]) + DATA[41:]
    yield "nothing", b""
    for at in (0, 5, 6, 15):  # first and last of both kinds
        start = bit(at).start
        yield f"the point of bit {at}", DATA[:start] + bytes([DATA[start] ^ 1]) + DATA[start + 1 :]
        for place in (33, 65, 97, 129, 160):
            found = bytearray(DATA)
            found[start + place] ^= 4
            yield f"byte {place} of bit {at}", bytes(found)


@pytest.mark.parametrize(
    ("about", "data"), list(altered()), ids=lambda x: x if isinstance(x, str) else ""
)
def test_altered_commitments_are_refused(about: str, data: bytes) -> None:
    assert data != DATA, about
    with pytest.raises(WrongProof):
        verify_commitments(data, STATEMENT)


@pytest.mark.parametrize(
    "changed",
    [
        {"origin": "example.org/other"},
        {"statistic": "thumbs up, round 4"},
        {"origin": "example.org/logthumbs", "statistic": " up, round 3"},
        {"participants": 7},
        {"participants": 5},
        {"mechanism": Binomial(12, Fraction(2), Fraction(1, 10))},
    ],
    ids=str,
)
def test_proofs_are_no_proofs_elsewhere(changed: dict[str, object]) -> None:
    """Replayed as they are, and with the header that the other statement would have."""
    other = replace(STATEMENT, **changed)  # type: ignore[arg-type]
    with pytest.raises(WrongProof):
        verify_commitments(DATA, other)
    bits = other.participants + other.coins
    header = PrivateCount(other, [0] * other.participants, SECRET).proven().to_bytes()[:HEADER]
    body = (DATA[HEADER:] * 2)[: bits * BIT_BYTES]
    with pytest.raises(WrongProof):
        verify_commitments(header + body, other)


def test_another_sum_is_refused() -> None:
    count, blinding = OPENED.count, OPENED.blinding
    for lie in (
        OpenedCount(count + 1, blinding),
        OpenedCount(count - 1, blinding),
        OpenedCount(count, blinding % ORDER + 1),
        OpenedCount(count, ORDER - blinding),
        OpenedCount(count + ORDER, blinding),
        OpenedCount(count - ORDER, blinding),
        OpenedCount(12, blinding),
        OpenedCount(-6, blinding),
    ):
        with pytest.raises(WrongProof):
            verify_count(PROVEN, COIN, lie)
    with pytest.raises(WrongProof):  # noise of another coin
        verify_count(PROVEN, OTHER, OPENED)
    with pytest.raises(WrongProof):  # another count's opening
        verify_count(PROVEN, COIN, PrivateCount(STATEMENT, BITS, OTHER).open(COIN))


def test_two_cheating_bits_that_cancel_out_are_caught_by_their_proofs() -> None:
    """A 2 and a -1 keep the sum plausible: linearity alone would let them pass."""
    proven = PRIVATE.proven()
    h = second_generator()
    points = list(proven.points)
    blindings = PRIVATE._blindings
    points[0] = added(base_times(blindings[0]), h, h).format()
    minus = type(h)(negated(h.format()))
    points[1] = added(base_times(blindings[1]), minus).format()
    context = Context(STATEMENT.digest())
    proofs = list(proven.proofs)
    for at in (0, 1):
        proofs[at] = prove_bit(
            context, PARTICIPANT, at, bit=1 - at, blinding=blindings[at], commitment=points[at]
        )
    forged = Commitments(STATEMENT, tuple(points), tuple(proofs))
    believed = Proven(STATEMENT, tuple(points), tuple(proofs))
    assert verify_count(believed, COIN, OPENED) == OPENED.count  # 2 - 1 = 1 + 0
    with pytest.raises(WrongProof):  # so commitments that were only read are not taken
        verify_count(forged, COIN, OPENED)  # type: ignore[arg-type]
    with pytest.raises(WrongProof):
        verify_commitments(forged.to_bytes(), STATEMENT)


def test_a_zero_sum_and_a_full_one_are_sums_like_others() -> None:
    """Values at which a multiple of a generator would vanish."""
    statement = replace(
        STATEMENT, participants=1, mechanism=Binomial(2, Fraction(3), Fraction(1, 2))
    )
    seen = set()
    for n in range(40):
        private = PrivateCount(statement, [n % 2], n.to_bytes(32))
        proven, coin = private.proven(), hashlib.sha256(b"%d" % n).digest()
        opened = private.open(coin)
        assert (
            verify_count(verify_commitments(proven.to_bytes(), statement), coin, opened)
            == opened.count
        )
        seen.add(opened.count)
    assert seen == {-1, 0, 1, 2}


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{}",
        "[]",
        OPENED.to_json() + " ",
        OPENED.to_json().replace(":", ": "),
        OPENED.to_json().replace("}", ',"more":1}'),
        json.dumps({"count": 3, "blinding": "01" * 32}, separators=(",", ":")),
        json.dumps({"blinding": "01" * 31, "count": 3}, separators=(",", ":")),
        json.dumps({"blinding": "AB" * 32, "count": 3}, separators=(",", ":")),
        json.dumps({"blinding": "00" * 32, "count": 3}, separators=(",", ":")),
        json.dumps({"blinding": "ff" * 32, "count": 3}, separators=(",", ":")),
        json.dumps({"blinding": "01" * 32, "count": 3.0}, separators=(",", ":")),
        json.dumps({"blinding": "01" * 32, "count": True}, separators=(",", ":")),
        json.dumps({"blinding": "01" * 32, "count": "3"}, separators=(",", ":")),
        json.dumps({"blinding": 1, "count": 3}, separators=(",", ":")),
        "9" * 129,
        "[" * 128,
    ],
)
def test_an_opened_count_has_one_spelling(text: str) -> None:
    with pytest.raises(WrongProof):
        OpenedCount.from_json(text)


@pytest.mark.parametrize(
    "make",
    [
        lambda: PrivateCount(STATEMENT, BITS[1:], SECRET),
        lambda: PrivateCount(STATEMENT, [2, *BITS[1:]], SECRET),
        lambda: PrivateCount(STATEMENT, BITS, SECRET[1:]),
        lambda: PrivateCount(STATEMENT, BITS, SECRET).open(COIN[1:]),
        lambda: verify_count(PROVEN, COIN[1:], OPENED),
        lambda: replace(STATEMENT, origin=""),
        lambda: replace(STATEMENT, statistic="x" * 1025),
        lambda: replace(STATEMENT, participants=0),
        lambda: replace(STATEMENT, participants=1 << 18),
        lambda: replace(STATEMENT, mechanism=Binomial(1000, Fraction(2), Fraction(1, 10), 3)),
    ],
)
def test_what_makes_no_count_is_refused(make: object) -> None:
    with pytest.raises((InvalidParameter, NoiseProtocolError)) as refused:
        make()  # type: ignore[operator]
    assert SECRET.hex() not in str(refused.value)


def test_a_second_coin_draws_no_second_noise() -> None:
    private = PrivateCount(STATEMENT, BITS, SECRET)
    private.open(COIN)
    with pytest.raises(NoiseProtocolError):
        private.open(OTHER)


def test_one_secret_twice_shows_no_difference() -> None:
    """The same secret for other bits, or another statistic, gives unrelated commitments."""
    h = second_generator()
    other_bits = PrivateCount(STATEMENT, [0, *BITS[1:]], SECRET)
    other_place = PrivateCount(replace(STATEMENT, statistic="round 4"), BITS, SECRET)
    for other in (other_bits, other_place):
        assert not set(other._points) & set(PRIVATE._points)
        lifted = {added(type(h)(point), h).format() for point in other._points}
        assert not lifted & set(PRIVATE._points)


def test_nothing_secret_is_published_printed_or_pickled() -> None:
    blindings = [blinding.to_bytes(32) for blinding in PRIVATE._blindings]
    public = {
        "commitments": DATA,
        "opened": OPENED.to_json(),
        "printed": f"{PRIVATE!r} {PRIVATE}",
        "proven": repr(PROVEN),
    }
    assert leaks(public, Secrets(keys=[SECRET, *blindings]), dictionary=()) == []
    for way in (pickle.dumps, copy.copy, copy.deepcopy):
        with pytest.raises(RestrictedField):
            way(PRIVATE)
    assert issubclass(WrongProof, PrivacyError)
