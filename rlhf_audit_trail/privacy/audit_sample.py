"""How many openings tell how much about the rest, and which ones an auditor asks for.

Every opening shows one annotator's value to the auditor, so an audit opens few: if a fraction
f of the events is false, m events chosen at random miss all of them with (1 - f)^m at most.
They are chosen from a seed of the auditor's, drawn after the events are anchored, so that the
operator cannot know them before, and anyone can see later that nothing was picked by hand:

    stream = `bits.SeededBits` of SHA-256("dp-audit-sample/1" || seed || root)
    for j = n - m, ..., n - 1:  t = below(j + 1);  take t, or j if t was taken already

which gives every set of m out of n alike (Floyd 1987, in Bentley, Programming Pearls).
"""

from __future__ import annotations

import hashlib
from decimal import ROUND_CEILING, Decimal
from fractions import Fraction
from typing import Final

from rlhf_audit_trail.privacy.bits import SEED_BYTES, SeededBits
from rlhf_audit_trail.privacy.draw import below
from rlhf_audit_trail.privacy.errors import InvalidParameter
from rlhf_audit_trail.privacy.exact import DOWN, UP, ln_down, ln_up, power, rational

__all__ = ["EVENTS_MAX", "chosen_events", "missed_with", "openings_needed"]

EVENTS_MAX: Final = 10**9
OPENINGS_MAX: Final = 10**7
_DOMAIN: Final = b"dp-audit-sample/1"


def openings_needed(
    fraction: Fraction | float | str,
    confidence: Fraction | float | str,
    *,
    events: int | None = None,
) -> int:
    """Return how many openings find at least one false event with that confidence.

    Args:
        fraction: of false events that must not be missed, above 0 and up to 1.
        confidence: above 0 and below 1.
        events: how many there are; None for a count that holds for any number of them. With
            it, ceil(fraction * events) are false, and none is opened twice, so fewer do.

    Raises:
        InvalidParameter: a number is out of range, or more than 10^7 openings are needed.
    """
    part, missed = _part(fraction, name="fraction"), 1 - _part(confidence, name="confidence")
    if missed == 0:
        raise InvalidParameter("certainty needs every event to be opened")
    found = 1 if part == 1 else _openings(part, missed)
    if events is not None:
        found = _openings_of(-(-part.numerator * events // part.denominator), events, missed)
    if found > OPENINGS_MAX:
        raise InvalidParameter(f"an audit opens at most {OPENINGS_MAX:,} events")
    return found


def missed_with(fraction: Fraction | float | str, openings: int) -> Decimal:
    """Return with what probability that many openings miss all false events: (1 - f)^m, up.

    Raises:
        InvalidParameter: a number is out of range.
    """
    part = _part(fraction, name="fraction")
    if not 0 <= openings <= OPENINGS_MAX:
        raise InvalidParameter(f"an audit opens 0 to {OPENINGS_MAX:,} events")
    one_minus = UP.divide(part.denominator - part.numerator, part.denominator)
    return min(Decimal(1), power(one_minus, openings, UP))


def chosen_events(seed: bytes, root: bytes, *, events: int, openings: int) -> tuple[int, ...]:
    """Return the events an auditor opens, in ascending order, each from 0 to events - 1.

    Args:
        seed: 32 random bytes of the auditor's; published with the audit.
        root: of the signed and anchored tree head in which the events stand, 32 bytes.
        events: how many there are, 1 to 10^9, in the order of their entries.
        openings: how many to choose, 1 to `events`.

    Raises:
        InvalidParameter: a length or a number is out of range.
    """
    for given in (seed, root):
        if not isinstance(given, bytes) or len(given) != SEED_BYTES:
            raise InvalidParameter(f"an audit's seed and root are {SEED_BYTES} bytes each")
    if not 1 <= openings <= events <= EVENTS_MAX or openings > OPENINGS_MAX:
        raise InvalidParameter("an audit opens at least one event, and at most all")
    bits = SeededBits(hashlib.sha256(_DOMAIN + seed + root).digest())
    chosen: set[int] = set()
    for last in range(events - openings, events):
        event = below(bits, last + 1)
        chosen.add(last if event in chosen else event)
    return tuple(sorted(chosen))


def _part(value: Fraction | float | str, *, name: str) -> Fraction:
    found = rational(value, name=name)
    if not 0 < found <= 1:
        raise InvalidParameter(f"{name} is above 0, and at most 1")
    return found


def _openings(part: Fraction, missed: Fraction) -> int:
    """Return the least m with (1 - part)^m <= missed, or one more where 50 digits do not tell."""
    # both logarithms are negative: the quotient is largest with the numerator down, the other up
    quotient = UP.divide(ln_down(missed), ln_up(1 - part))
    return max(1, int(quotient.to_integral_value(rounding=ROUND_CEILING)))


def _openings_of(false: int, events: int, missed: Fraction) -> int:
    """Return the least m for which m of `events`, none twice, miss all `false` ones so rarely."""
    if not 1 <= events <= EVENTS_MAX:
        raise InvalidParameter(f"an audit is of 1 to {EVENTS_MAX:,} events")
    remaining, bound = Decimal(1), DOWN.divide(missed.numerator, missed.denominator)
    for opened in range(events - false + 1):
        if remaining <= bound or opened > OPENINGS_MAX:
            return max(1, opened)
        remaining = UP.divide(
            UP.multiply(remaining, events - false - opened), events - opened
        )  # what is left of the chance to have opened true ones only
    return events - false + 1
