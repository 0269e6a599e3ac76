"""An audit that only watches: it never exceeds a true claim, and does catch false ones."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction

import pytest
from scipy import stats

from rlhf_audit_trail.privacy.aggregates import MeanSum
from rlhf_audit_trail.privacy.bits import SeededBits
from rlhf_audit_trail.privacy.empirical import epsilon_lower_bound, interval_high, interval_low
from rlhf_audit_trail.privacy.errors import InvalidParameter
from rlhf_audit_trail.privacy.interval import Interval
from rlhf_audit_trail.privacy.mechanisms import (
    DiscreteGaussian,
    Geometric,
    RandomisedResponse,
    RoundedResponse,
)

COUNT = 12_000
BOUNDS = Interval.of(0, 1)
Release = Callable[[SeededBits, int], int]


def audited(release: Release, *, dp_delta: float = 0.0) -> float:
    """The bound found by releasing for two neighbouring inputs, 0 and 1, many times."""
    first, second = (
        [release(bits, side) for _ in range(COUNT)]
        for side, bits in enumerate((SeededBits(b"1" * 32), SeededBits(b"2" * 32)))
    )
    return epsilon_lower_bound(first, second, dp_delta=dp_delta)


def response(epsilon: str, levels: int = 2) -> Release:
    mechanism = RandomisedResponse(Fraction(epsilon), levels)
    return lambda bits, side: mechanism.respond(bits, side * (levels - 1))


def rounded(bounds: Interval, rewards: tuple[float, float]) -> Release:
    mechanism = RoundedResponse(Fraction(1), bounds)
    return lambda bits, side: mechanism.respond(bits, rewards[side])


def geometric(epsilon: str, distance: int = 1) -> Release:
    mechanism = Geometric(Fraction(epsilon), 1)
    return lambda bits, side: mechanism.release(bits, [side * distance])[0]


def gaussian(variance: Fraction, distance: int = 1) -> Release:
    mechanism = DiscreteGaussian(variance)
    return lambda bits, side: mechanism.release(bits, [side * distance])[0]


def mean_of(statistic: MeanSum, rewards: tuple[float, float], variance: Fraction) -> Release:
    mechanism = DiscreteGaussian(variance, statistic.sensitivity_squared)
    sums = [statistic.statistic({"other": [0.5], "someone": [reward]}) for reward in rewards]
    return lambda bits, side: mechanism.release(bits, sums[side])[0]


STATISTIC = MeanSum(BOUNDS, steps=8)
SIGMA_ONE = Fraction(64)  # sigma is one sensitivity: epsilon 4.377 at 1e-5, so well below 5


@pytest.mark.parametrize(
    ("release", "claim", "dp_delta"),
    [
        (response("1"), 1.0, 0.0),
        (response("1", 5), 1.0, 0.0),
        (response("4"), 4.0, 0.0),
        (rounded(BOUNDS, (0.0, 1.0)), 1.0, 0.0),
        (rounded(BOUNDS, (-50.0, 50.0)), 1.0, 0.0),
        (geometric("1/2"), 0.5, 0.0),
        (geometric("1"), 1.0, 0.0),
        (gaussian(Fraction(1)), 4.4, 1e-5),
        (mean_of(STATISTIC, (-9.0, 9.0), SIGMA_ONE), 4.4, 1e-5),
    ],
)
def test_a_true_claim_stands(release: Release, claim: float, dp_delta: float) -> None:
    found = audited(release, dp_delta=dp_delta)
    assert found <= claim
    assert found > claim * 0.3  # and the audit sees something


@pytest.mark.parametrize(
    ("release", "claim", "dp_delta"),
    [
        pytest.param(response("2"), 1.0, 0.0, id="inflated parameter"),
        pytest.param(response("1.3"), 1.0, 0.0, id="slightly inflated parameter"),
        pytest.param(geometric("1"), 0.5, 0.0, id="half the noise"),
        pytest.param(geometric("1/2", 3), 0.5, 0.0, id="sensitivity forgotten"),
        pytest.param(gaussian(Fraction(1, 16)), 4.4, 1e-5, id="a quarter of the noise"),
        pytest.param(gaussian(Fraction(1), 4), 4.4, 1e-5, id="no clipping"),
        pytest.param(lambda bits, side: side + 2 * geometric("1")(bits, 0), 1.0, 0.0, id="gaps in the support"),
        pytest.param(lambda _, side: side, 10.0, 0.0, id="no noise at all"),
    ],
)  # fmt: skip
def test_a_false_claim_is_caught(release: Release, claim: float, dp_delta: float) -> None:
    assert audited(release, dp_delta=dp_delta) > claim if claim < 10 else audited(release) > 6


def test_a_correct_mechanism_is_hardly_ever_accused() -> None:
    """Two hundred audits of a true claim at 99 %: above it in far fewer than one in twenty."""
    mechanism, accused = RandomisedResponse(Fraction(1)), 0
    for number in range(200):
        bits = SeededBits(number.to_bytes(32))
        first, second = ([mechanism.respond(bits, side) for _ in range(400)] for side in (0, 1))
        accused += epsilon_lower_bound(first, second, confidence=0.99) > 1
    assert accused <= 8


@pytest.mark.parametrize(("hits", "draws"), [(0, 10), (1, 10), (5, 10), (10, 10), (0, 5000), (17, 5000), (2500, 5000), (4999, 5000)])  # fmt: skip
@pytest.mark.parametrize("miss", [0.0005, 0.025])
def test_the_intervals_are_those_of_clopper_and_pearson(hits: int, draws: int, miss: float) -> None:
    high = 1.0 if hits == draws else stats.beta.isf(miss, hits + 1, draws - hits)
    low = 0.0 if hits == 0 else stats.beta.ppf(miss, hits, draws - hits + 1)
    assert interval_high(hits, draws, miss) == pytest.approx(high, rel=1e-9)
    assert interval_low(hits, draws, miss) == pytest.approx(low, rel=1e-9, abs=1e-12)


def test_one_draw_is_no_audit() -> None:
    with pytest.raises(InvalidParameter):
        epsilon_lower_bound([1], [1, 2])
