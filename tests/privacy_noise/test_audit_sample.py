"""Sampling audits: how many openings are enough, and that nobody picks them by hand."""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Callable
from fractions import Fraction
from itertools import combinations

import pytest

from rlhf_audit_trail.privacy.audit_sample import chosen_events, missed_with, openings_needed
from rlhf_audit_trail.privacy.errors import InvalidParameter

ROOT = b"r" * 32


def seed(number: int) -> bytes:
    return number.to_bytes(32)


@pytest.mark.parametrize(
    ("fraction", "confidence", "needed"),
    [("1/100", "0.99", 459), (0.001, 0.99, 4603), (0.5, 0.99, 7), (1, 0.99, 1), (0.01, 0.95, 299)],
)
def test_reference_figures(fraction: float | str, confidence: float | str, needed: int) -> None:
    assert openings_needed(fraction, confidence) == needed
    missed = 1 - Fraction(confidence)
    assert missed_with(fraction, needed) <= missed
    assert needed == 1 or (1 - Fraction(fraction)) ** (needed - 1) > missed


@pytest.mark.parametrize("events", [1, 7, 100, 1000, 20_000])
def test_without_replacement_it_is_the_exact_least_number(events: int) -> None:
    false = math.ceil(events / 100)
    needed = openings_needed("1/100", "0.99", events=events)

    def missed(openings: int) -> Fraction:
        return Fraction(math.comb(events - false, openings), math.comb(events, openings))

    assert missed(needed) <= Fraction(1, 100)
    assert needed == 1 or missed(needed - 1) > Fraction(1, 100)
    assert needed <= 459


def test_an_audit_misses_as_rarely_as_it_says() -> None:
    events, rounds = 2000, 600
    rng = random.Random(5)
    needed = openings_needed("1/100", "0.9", events=events)
    missed = 0
    for number in range(rounds):
        false = set(rng.sample(range(events), 20))
        missed += not false & set(chosen_events(seed(number), ROOT, events=events, openings=needed))
    assert 0.04 * rounds < missed < 0.16 * rounds  # 10%, four standard errors either way


def test_every_set_is_chosen_alike() -> None:
    counts = Counter(
        chosen_events(seed(number), ROOT, events=5, openings=2) for number in range(20_000)
    )
    assert set(counts) == set(combinations(range(5), 2))
    statistic = sum((found - 2000) ** 2 / 2000 for found in counts.values())
    assert statistic < 55  # chi-square of 9 degrees: one in 10^8


def test_seed_and_root_decide() -> None:
    chosen = chosen_events(seed(1), ROOT, events=10**9, openings=50)
    assert chosen == chosen_events(seed(1), ROOT, events=10**9, openings=50)
    assert chosen == tuple(sorted(set(chosen)))
    others = [(seed(2), ROOT), (seed(1), b"s" * 32)]
    assert all(chosen != chosen_events(*x, events=10**9, openings=50) for x in others)


@pytest.mark.parametrize(
    "call",
    [
        lambda: openings_needed(0, 0.99),
        lambda: openings_needed(1.1, 0.99),
        lambda: openings_needed(0.01, 1),
        lambda: openings_needed(0.01, 0),
        lambda: openings_needed("nan", 0.5),
        lambda: openings_needed("1e-12", 0.99),
        lambda: openings_needed(0.01, 0.99, events=0),
        lambda: missed_with(0.1, -1),
        lambda: chosen_events(b"short", ROOT, events=5, openings=2),
        lambda: chosen_events(seed(1), "r" * 32, events=5, openings=2),  # type: ignore[arg-type]
        lambda: chosen_events(seed(1), ROOT, events=5, openings=6),
        lambda: chosen_events(seed(1), ROOT, events=10**12, openings=6),
    ],
)
def test_what_makes_no_audit_is_refused(call: Callable[[], object]) -> None:
    with pytest.raises(InvalidParameter):
        call()
