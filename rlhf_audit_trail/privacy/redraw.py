"""An auditor's check of noise that came from precommitted slots: by order, and by drawing again.

Four things are shown, each with its own error when it fails:

1. `check_coin`: slots and values were anchored before the coin was known (`EarlyCoin`). Else
   whoever knew the coin could have tried secrets until one drew the noise that was wanted.
2. `check_slots`: the slots of a round were used one after another, each once (`SlotReused`,
   `SlotSkipped`). Else one could draw many times, and publish the draw that suits.
3. `check_release`: an opened value, drawn again with its opened slot, is what was published, to
   the bit (`TamperedParameters`, `WrongSlotOpening`, `ReleaseDiffers`).
4. `openings_needed` of `audit_sample`: how many of those tell about the rest.

The opened value itself is shown by its own commitment (`FORMAT.md`, 3.2). All of this needs a
reader to whom values are disclosed, and who is not bound by the epsilon.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Final

from rlhf_audit_trail.privacy.bits import BitSource
from rlhf_audit_trail.privacy.errors import (
    EarlyCoin,
    InvalidParameter,
    NonFiniteValue,
    ReleaseDiffers,
    SlotReused,
    SlotSkipped,
    WrongSlotOpening,
)
from rlhf_audit_trail.privacy.mechanisms import (
    Binomial,
    DiscreteGaussian,
    Geometric,
    Mechanism,
    RandomisedResponse,
    RoundedResponse,
)
from rlhf_audit_trail.privacy.slots import SlotOpening
from rlhf_audit_trail.privacy.stated import mechanism_of, same_code

__all__ = [
    "CELLS_MAX",
    "CoinOrder",
    "Noised",
    "Raw",
    "Redrawn",
    "Released",
    "check_coin",
    "check_release",
    "check_slots",
    "drawn",
]

CELLS_MAX: Final = 1 << 20  # of one statistic; more is an attack on the auditor's time

Raw = int | float | Fraction | Sequence[int]
Released = int | list[int]


@dataclass(frozen=True)
class CoinOrder:
    """Where, in one log, a round's commitments, their anchor and its coin stand.

    Attributes:
        committed: leaf indices of the `dp.noise_root` entry and of every entry that commits to
            a value of the round.
        anchored_size: tree size of the head whose anchor is final.
        coin_index: leaf index of the `dp.coin` entry.
        anchored_at: when that anchor was seen to be final, or None: in blocks of the chain from
            which the coin comes, or seconds of the beacon's clock.
        coin_at: when the coin came to be, in the same unit; None for one whose only time is
            its entry's.
    """

    committed: Collection[int]
    anchored_size: int
    coin_index: int
    anchored_at: int | None = None
    coin_at: int | None = None


@dataclass(frozen=True)
class Noised:
    """What is public of one release or answer that was drawn from a slot.

    Attributes:
        mechanism: fields of its `dp.mechanism` entry.
        root: of the round's slots, 32 bytes, from the anchored `dp.noise_root` entry.
        count: how many slots the round has, from the same entry.
        slot: from the `dp.spend` or annotation entry.
        coin: 32 bytes of the `dp.coin` entry.
        released: what was published: a number, or one for each cell.
    """

    mechanism: Mapping[str, Any]
    root: bytes
    count: int
    slot: int
    coin: bytes
    released: int | Sequence[int]


@dataclass(frozen=True)
class Redrawn:
    """What a check has shown.

    Attributes:
        mechanism: whose parameters and cost follow from each other.
        slot: whose seed was committed to.
        same_code: the entry names the very samplers that drew it again. If not, the draw agrees
            all the same.
    """

    mechanism: Mechanism
    slot: int
    same_code: bool


def check_coin(order: CoinOrder) -> CoinOrder:
    """Return the order, shown to leave nothing open when the coin came.

    Raises:
        EarlyCoin: a commitment is not below the anchored size, the coin's entry is, or the
            coin is not later than the anchor.
        InvalidParameter: there is nothing committed, or only one of both times.
    """
    if not order.committed or (order.anchored_at is None) != (order.coin_at is None):
        raise InvalidParameter("a coin is compared with what was committed, in one unit of time")
    late = max(order.committed) >= order.anchored_size
    early = order.coin_index < order.anchored_size
    if order.coin_at is not None and order.anchored_at is not None:
        early = early or order.coin_at <= order.anchored_at
    if late or early or min(order.committed) < 0:
        raise EarlyCoin(
            "a coin was there before the slots and values that it is for were anchored",
            next_step="treat the round's noise as chosen by the operator",
        )
    return order


def check_slots(used: Iterable[int], *, count: int, burnt: Collection[int] = ()) -> int:
    """Return the next free slot of a round, all before it shown to be accounted for.

    Args:
        used: slots in the order of their entries; a `dp.skipped` entry uses its slot up, too.
        count: how many the round has.
        burnt: slots opened before their use, as a test of the tree; they are passed over.

    Raises:
        SlotReused: a slot comes twice, was burnt, or comes after a later one.
        SlotSkipped: a slot was passed over, or the round has no such slot.
    """
    passed = set(burnt)
    following = _beyond(0, passed)
    for slot in used:
        if slot < following or slot in passed:
            raise SlotReused(
                "a noise slot was used twice",
                next_step="treat the values behind both releases as disclosed",
            )
        if slot > following or slot >= count:
            raise SlotSkipped(
                "a noise slot was passed over without an entry",
                next_step="treat the round's noise as chosen by the operator",
            )
        following = _beyond(slot + 1, passed)
    return following


def check_release(noised: Noised, raw: Raw, opening: SlotOpening) -> Redrawn:
    """Show that what was published is the opened value with the noise of its slot.

    Args:
        noised: the public part.
        raw: the opened value: of randomised response its level, of a rounded response the
            reward, of a statistic its cells.
        opening: of the slot.

    Raises:
        TamperedParameters: the mechanism's numbers do not follow from each other.
        WrongSlotOpening: it opens another slot, or is not what was committed to.
        ReleaseDiffers: value and slot give something else, or the value is none that this
            mechanism takes.
        NoiseProtocolError: the coin is not 32 bytes.
    """
    mechanism = mechanism_of(noised.mechanism)
    if opening.slot != noised.slot:
        raise WrongSlotOpening("the opened noise slot is not the one that the entry names")
    opening.check(noised.root, noised.count)
    try:
        found = drawn(mechanism, raw, opening.bits(noised.coin))
    except (InvalidParameter, NonFiniteValue):
        raise _differs() from None  # the cause tells about the value
    if not _alike(found, noised.released):
        raise _differs()
    return Redrawn(mechanism, noised.slot, same_code(noised.mechanism))


def drawn(mechanism: Mechanism, raw: Raw, bits: BitSource) -> Released:
    """Draw what a mechanism makes of a raw value: the one way for writer and auditor.

    Raises:
        InvalidParameter: the value is none that this mechanism takes.
        NonFiniteValue: a reward is no finite number.
    """
    if isinstance(mechanism, RoundedResponse):
        if isinstance(raw, Sequence):
            raise InvalidParameter("a rounded response is to one reward")
        return mechanism.respond(bits, raw)
    if isinstance(mechanism, RandomisedResponse):
        return mechanism.respond(bits, _whole(raw))
    if isinstance(mechanism, Binomial):
        return mechanism.release(bits, _whole(raw))
    if isinstance(mechanism, Geometric | DiscreteGaussian):
        if not isinstance(raw, Sequence) or isinstance(raw, str | bytes):
            raise InvalidParameter("a statistic is a list of cells")
        if not 1 <= len(raw) <= CELLS_MAX:
            raise InvalidParameter(f"a statistic has 1 to {CELLS_MAX:,} cells")
        return mechanism.release(bits, [_whole(cell) for cell in raw])
    raise InvalidParameter("this mechanism draws from no slot")


def _whole(value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        raise InvalidParameter("this mechanism takes whole numbers")
    return value


def _alike(found: Released, published: object) -> bool:
    if isinstance(found, int):
        return type(published) is int and published == found
    return (
        isinstance(published, list | tuple)
        and all(type(cell) is int for cell in published)
        and list(published) == found
    )


def _beyond(slot: int, passed: Collection[int]) -> int:
    while slot in passed:
        slot += 1
    return slot


def _differs() -> ReleaseDiffers:
    return ReleaseDiffers(
        "a published value is not the opened one with the noise of its slot",
        next_step="count this event as altered, and audit all others of the round",
    )
