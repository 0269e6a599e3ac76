"""An operator who wants a certain result: each way is open to none of the checks together."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from fractions import Fraction

import pytest

from rlhf_audit_trail.privacy.audit_sample import chosen_events, openings_needed
from rlhf_audit_trail.privacy.errors import (
    EarlyCoin,
    PrivacyError,
    ReleaseDiffers,
    SlotReused,
    SlotSkipped,
    TamperedParameters,
    WrongSlotOpening,
)
from rlhf_audit_trail.privacy.mechanisms import DiscreteGaussian, RandomisedResponse
from rlhf_audit_trail.privacy.redraw import (
    CoinOrder,
    Noised,
    check_coin,
    check_release,
    check_slots,
    drawn,
)
from rlhf_audit_trail.privacy.slots import NoiseSlots

COUNT = 32
MECHANISM = DiscreteGaussian(Fraction(100))
COIN = hashlib.sha256(b"the public coin").digest()
HONEST = NoiseSlots(hashlib.sha256(b"honest").digest(), COUNT)
# root at entry 0, values at 1 to 8, all of them in the anchored tree of 9; the coin at 9
ORDER = CoinOrder(committed=range(9), anchored_size=9, coin_index=9)


def secret(number: int) -> bytes:
    return hashlib.sha256(b"attempt" + number.to_bytes(4)).digest()


def release(slots: NoiseSlots, slot: int, raw: int) -> Noised:
    found = drawn(MECHANISM, [raw], slots.bits(slot, COIN))
    return Noised(MECHANISM.public(), slots.root, COUNT, slot, COIN, found)


def noise(slots: NoiseSlots, slot: int = 0) -> int:
    return release(slots, slot, 0).released[0]  # type: ignore[index]


def test_the_honest_round_passes() -> None:
    check_coin(ORDER)
    assert check_slots(range(5), count=COUNT) == 5
    for slot in range(5):
        shown = check_release(release(HONEST, slot, 1000 + slot), [1000 + slot], HONEST.open(slot))
        assert (shown.mechanism, shown.slot, shown.same_code) == (MECHANISM, slot, True)


def test_choosing_the_secret_when_the_coin_is_known() -> None:
    """It works: the noise is whatever was wanted, and opens as it should. The order shows it."""
    tried = (NoiseSlots(secret(number), COUNT) for number in range(300))
    best = max(tried, key=noise)
    assert noise(best) > 20  # two standard deviations, against zero on average
    check_release(release(best, 0, 1000), [1000], best.open(0))
    with pytest.raises(EarlyCoin):  # its root can only stand behind the coin
        check_coin(replace(ORDER, committed=[10, *range(1, 9)], coin_index=9))
    with pytest.raises(EarlyCoin):  # a head that holds the new root holds the coin, too
        check_coin(replace(ORDER, committed=[10, *range(1, 9)], anchored_size=11))
    with pytest.raises(EarlyCoin):  # a second entry of the coin, from a block before the anchor
        check_coin(CoinOrder([10], 11, 11, anchored_at=500, coin_at=400))
    with pytest.raises(WrongSlotOpening):  # and under the root that was anchored nothing opens
        check_release(replace(release(best, 0, 1000), root=HONEST.root), [1000], best.open(0))


def test_choosing_a_slot_when_the_coin_is_known() -> None:
    best = max(range(COUNT), key=lambda slot: noise(HONEST, slot))
    assert noise(HONEST, best) > 10
    check_release(release(HONEST, best, 1000), [1000], HONEST.open(best))
    with pytest.raises(SlotSkipped):
        check_slots([best], count=COUNT)
    with pytest.raises(SlotReused):
        check_slots([0, 1, 2, 2], count=COUNT)


def test_choosing_the_values_when_the_coin_is_known() -> None:
    with pytest.raises(EarlyCoin):
        check_coin(replace(ORDER, committed=[0, 1, 2, 12]))


def test_publishing_another_number() -> None:
    noised = release(HONEST, 3, 1000)
    for lie in (
        [noised.released[0] + 1],
        [1000],
        noised.released[0],
        [],
        [float(noised.released[0])],
    ):  # type: ignore[index]
        with pytest.raises(ReleaseDiffers):
            check_release(replace(noised, released=lie), [1000], HONEST.open(3))  # type: ignore[arg-type]


def test_less_noise_than_was_charged() -> None:
    weak = DiscreteGaussian(Fraction(1))
    fields = MECHANISM.public() | {"parameters": weak.parameters()}
    noised = replace(
        release(HONEST, 0, 1000),
        mechanism=fields,
        released=drawn(weak, [1000], HONEST.bits(0, COIN)),
    )
    with pytest.raises(TamperedParameters):
        check_release(noised, [1000], HONEST.open(0))


def test_a_different_coin_or_slot_for_each_audience() -> None:
    noised = release(HONEST, 0, 1000)
    with pytest.raises(ReleaseDiffers):
        check_release(replace(noised, coin=secret(1)), [1000], HONEST.open(0))
    with pytest.raises(WrongSlotOpening):
        check_release(replace(noised, slot=1), [1000], HONEST.open(0))
    with pytest.raises(WrongSlotOpening):
        check_release(noised, [1000], HONEST.open(1))


def test_an_audit_of_459_finds_one_in_a_hundred() -> None:
    """5,000 answers, 1% of them turned round: the openings an auditor asks for catch it."""
    response = RandomisedResponse(Fraction(1))
    events, false = 5000, set(range(7, 5000, 100))
    slots = NoiseSlots(secret(0), events)
    raw = [slot % 2 for slot in range(events)]
    opened = chosen_events(
        secret(9), secret(8), events=events, openings=openings_needed("1/100", "0.99")
    )
    caught = set()
    for slot in opened:
        answer = response.respond(slots.bits(slot, COIN), raw[slot])
        shown = 1 - answer if slot in false else answer
        noised = Noised(response.public(), slots.root, events, slot, COIN, shown)
        try:
            check_release(noised, raw[slot], slots.open(slot))
        except ReleaseDiffers:
            caught.add(slot)
    assert caught == false & set(opened) != set()


def test_no_refusal_tells_the_value() -> None:
    noised = release(HONEST, 0, 8_371_402)
    with pytest.raises(PrivacyError) as refused:
        check_release(noised, [8_371_403], HONEST.open(0))
    seed = HONEST.open(0).seed
    shown = f"{refused.value}{refused.value!r}{refused.value.__cause__!r}"
    assert "83714" not in shown
    assert seed.hex() not in shown
