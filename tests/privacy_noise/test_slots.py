"""Noise slots: the tree is RFC 6962's, all follows from the secret, and the secret stays one."""

from __future__ import annotations

import copy
import hmac
import pickle
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

import pytest

from rlhf_audit_trail.ledger.proof.merkle import leaf_hash, root_hash
from rlhf_audit_trail.privacy.bits import slot_seed
from rlhf_audit_trail.privacy.errors import (
    InvalidParameter,
    NoiseProtocolError,
    PrivacyError,
    RestrictedField,
    WrongSlotOpening,
)
from rlhf_audit_trail.privacy.slots import OPENING_BYTES_MAX, SLOTS_MAX, NoiseSlots, SlotOpening

sys.path.insert(0, str(Path(__file__).parent))
from leaks import Secrets, leaks

SECRET, COIN, OTHER = b"k" * 32, b"c" * 32, b"o" * 32


def words(bits: object) -> list[int]:
    return [bits.word() for _ in range(9)]  # type: ignore[attr-defined]


@pytest.mark.parametrize("count", [*range(1, 20), 64, 65, 1000])
def test_each_slot_is_proven_in_trees_of_any_size(count: int) -> None:
    slots = NoiseSlots(SECRET, count)
    seeds = [hmac.digest(SECRET, slot.to_bytes(8), "sha256") for slot in range(count)]
    leaves = [leaf_hash(b"noise-slot" + j.to_bytes(8) + seed) for j, seed in enumerate(seeds)]
    assert slots.root == root_hash(leaves)
    for slot in {0, 1 % count, count // 2, count - 1}:
        opening = slots.open(slot)
        assert opening.check(slots.root, count) == seeds[slot]
        assert SlotOpening.from_json(opening.to_json()) == opening
        assert words(opening.bits(COIN)) == words(slots.bits(slot, COIN))


def test_made_again_from_the_vault_all_is_the_same() -> None:
    drawn = NoiseSlots.draw(10)
    again = NoiseSlots(drawn.secret, drawn.count)
    assert (again.root, again.open(7)) == (drawn.root, drawn.open(7))
    assert words(again.bits(7, COIN)) == words(drawn.bits(7, COIN))


def test_slot_coin_and_secret_each_decide_the_noise() -> None:
    slots = NoiseSlots(SECRET, 10)
    streams = [
        words(slots.bits(7, COIN)),
        words(slots.bits(7, OTHER)),
        words(slots.bits(8, COIN)),
        words(NoiseSlots(OTHER, 10).bits(7, COIN)),
    ]
    assert len({word for stream in streams for word in stream}) == 4 * 9
    assert slot_seed(slots.open(7).seed, COIN, 7) != slot_seed(slots.open(7).seed, COIN, 8)


def test_every_draw_has_its_own_secret() -> None:
    drawn = [NoiseSlots.draw(1) for _ in range(100)]
    assert len({slots.secret for slots in drawn}) == len({slots.root for slots in drawn}) == 100


@pytest.mark.parametrize(
    ("call", "error"),
    [
        (lambda: NoiseSlots(SECRET[1:], 1), NoiseProtocolError),
        (lambda: NoiseSlots(bytearray(SECRET), 1), NoiseProtocolError),  # type: ignore[arg-type]
        (lambda: NoiseSlots(SECRET, 0), InvalidParameter),
        (lambda: NoiseSlots(SECRET, SLOTS_MAX + 1), InvalidParameter),
        (lambda: NoiseSlots(SECRET, count=True), InvalidParameter),
        (lambda: NoiseSlots(SECRET, 3).bits(3, COIN), NoiseProtocolError),
        (lambda: NoiseSlots(SECRET, 3).bits(-1, COIN), NoiseProtocolError),
        (lambda: NoiseSlots(SECRET, 3).bits(coin=COIN, slot=True), NoiseProtocolError),
        (lambda: NoiseSlots(SECRET, 3).bits(0, COIN[1:]), NoiseProtocolError),
        (lambda: NoiseSlots(SECRET, 3).bits(0, "c" * 32), NoiseProtocolError),  # type: ignore[arg-type]
        (lambda: NoiseSlots(SECRET, 3).open(3), NoiseProtocolError),
        (lambda: NoiseSlots(SECRET, 3).open(0).check(SECRET, 0), InvalidParameter),
        (lambda: NoiseSlots(SECRET, 3).open(0).check(SECRET[1:], 3), WrongSlotOpening),
        (lambda: SlotOpening(0, b"short", ()).check(SECRET, 1), WrongSlotOpening),
        (lambda: SlotOpening.from_json(b"\xff" * 40), WrongSlotOpening),
        (lambda: SlotOpening.from_json("[" * OPENING_BYTES_MAX), WrongSlotOpening),
        (lambda: SlotOpening.from_json("\ud800"), WrongSlotOpening),
        (lambda: SlotOpening.from_json('{"path":[],"seed":"","slot":' + "9" * 1900 + "}"), WrongSlotOpening),
    ],
)  # fmt: skip
def test_what_is_refused_says_nothing(
    call: Callable[[], object], error: type[PrivacyError]
) -> None:
    with pytest.raises(error) as refused:
        call()
    seeds = [hmac.digest(SECRET, slot.to_bytes(8), "sha256") for slot in range(3)]
    shown = "".join(traceback.format_exception_only(refused.value)) + repr(refused.value)
    assert leaks({"error": shown}, Secrets(keys=[SECRET, *seeds])) == []


def test_the_longest_opening_fits() -> None:
    longest = SlotOpening(SLOTS_MAX - 1, SECRET, (OTHER,) * 20)
    assert len(longest.to_json()) <= OPENING_BYTES_MAX
    assert SlotOpening.from_json(longest.to_json()) == longest


def test_secrets_are_neither_printed_nor_pickled_nor_copied() -> None:
    slots = NoiseSlots(SECRET, 4)
    opening = slots.open(2)
    for holder in (slots, opening):
        shown = f"{holder} {holder!r} {[holder]} {holder:}" + repr(getattr(holder, "__dict__", ""))
        seeds = [slots.open(slot).seed for slot in range(4)]
        assert leaks({"shown": repr(holder) + str(holder)}, Secrets(keys=[SECRET, *seeds])) == []
        assert SECRET.hex() not in shown
        for way in (pickle.dumps, copy.copy, copy.deepcopy):
            with pytest.raises(RestrictedField):
                way(holder)
    assert not hasattr(slots, "__dict__")
