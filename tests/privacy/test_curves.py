"""The curves against published figures, mpmath, and each other; never on the wrong side."""

from __future__ import annotations

import math
from fractions import Fraction

import mpmath
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlhf_audit_trail.privacy import curves
from rlhf_audit_trail.privacy.cost import response_cost
from rlhf_audit_trail.privacy.curves import (
    DELTA_UNITS,
    EPSILON_UNITS,
    RHO_UNITS,
    binomial_delta_units,
    gaussian_delta,
    gaussian_delta_units,
    kov_count,
    kov_delta_units,
    kov_epsilon_units,
    rho_budget_units,
    zcdp_delta_holds,
    zcdp_epsilon_units,
)
from rlhf_audit_trail.privacy.draw import keep_threshold
from rlhf_audit_trail.privacy.errors import InvalidDelta, InvalidEpsilon, InvalidParameter

TEN, MILLIONTH = 10 * EPSILON_UNITS, DELTA_UNITS // 10**6


def solved(wanted: float, function: object, low: float, high: float) -> float:
    """The point where a falling function takes a value."""
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if function(middle) > wanted else (low, middle)  # type: ignore[operator]
    return high


# --- figures ----------------------------------------------------------------------------


def test_randomised_response_figures() -> None:
    assert math.log(3) == pytest.approx(1.0986122887, rel=1e-9)
    keep = keep_threshold(Fraction(10986122887, 10**10), 2) / 2**64
    assert keep == pytest.approx(0.75, rel=1e-9)
    keep = keep_threshold(Fraction(1), 4) / 2**64
    assert keep == pytest.approx(0.4753668864, abs=5e-11)
    assert (1 - keep) / 3 == pytest.approx(0.1748777045, abs=5e-11)


def test_the_geometric_law_tends_to_laplace() -> None:
    """Laplace of scale 1 has delta(.5) = .2211992169; on a grid of 1/4000 it is nearly reached."""
    assert 1 - math.exp(-0.25) == pytest.approx(0.2211992169, rel=1e-9)
    steps = 4000
    alpha = math.exp(-1 / steps)
    mass = [(1 - alpha) / (1 + alpha) * alpha ** abs(x) for x in range(-40_000, 40_000)]
    found = math.fsum(max(p - math.exp(0.5) * q, 0.0) for p, q in zip(mass, mass[steps:], strict=False))  # fmt: skip
    mirrored = math.fsum(max(q - math.exp(0.5) * p, 0.0) for p, q in zip(mass, mass[steps:], strict=False))  # fmt: skip
    assert max(found, mirrored) == pytest.approx(0.2211992169, rel=1e-3)


def test_continuous_gaussian_figures() -> None:
    assert gaussian_delta(1, 1) == pytest.approx(0.126936737507, rel=1e-11)
    for sigma, epsilon in ((1, 4.37717809568), (1.1, 3.92125025286), (2, 1.99309140442)):
        found = solved(1e-5, lambda e, s=sigma: gaussian_delta(e, s), 0, 20)
        assert found == pytest.approx(epsilon, rel=1e-9)
    for delta, sigma in ((1e-5, 3.73063163482), (1e-6, 4.22467888933)):
        assert solved(delta, lambda s: gaussian_delta(1, s), 0.1, 50) == pytest.approx(sigma, rel=1e-9)  # fmt: skip
    assert gaussian_delta(900, 0.02) <= 1  # e^900 is no float


def test_zcdp_figures() -> None:
    half = RHO_UNITS // 2
    assert zcdp_epsilon_units(half, 10 * MILLIONTH) == pytest.approx(4.72838698494e12, rel=1e-11)
    assert zcdp_epsilon_units(half, MILLIONTH) == pytest.approx(5.22153444453e12, rel=1e-11)
    assert rho_budget_units(TEN, MILLIONTH) / RHO_UNITS == pytest.approx(1.53928, abs=5e-6)
    rho = round(RHO_UNITS / (2 * 4.530877117**2))
    assert zcdp_epsilon_units(rho, MILLIONTH) == pytest.approx(1e12, rel=1e-9)


def test_a_hundred_responses() -> None:
    """KOV 4.7746, below what Renyi divergences give (5.073), below zCDP (5.2215), below the sum."""
    tenth = EPSILON_UNITS // 10
    kov = kov_epsilon_units(100, tenth, MILLIONTH)
    assert kov == pytest.approx(4.774567588e12, rel=1e-10)
    renyi = min(
        (100 * divergence(0.1, a) + math.log(1e6) / (a - 1) + math.log1p(-1 / a) - math.log(a) / (a - 1))
        for a in (1 + i / 1000 for i in range(1, 30_000))
    )  # fmt: skip
    assert renyi == pytest.approx(5.073, abs=1e-3)
    pure = zcdp_epsilon_units(RHO_UNITS // 2, MILLIONTH)
    assert kov < renyi * 1e12 < pure == pytest.approx(5.2215e12, rel=1e-5)
    assert pure < 100 * tenth == TEN


@pytest.mark.parametrize(
    ("response", "basic", "zcdp", "kov"),
    [
        ("0.05", 200, 1231, 1370),
        ("0.1", 100, 308, 346),
        ("0.25", 40, 49, 60),
        ("0.5", 20, 12, 20),
        ("1", 10, 3, 10),
        ("2", 5, 1, 5),
    ],
)
def test_the_labels_that_ten_and_a_millionth_allow(response: str, basic: int, zcdp: int, kov: int) -> None:  # fmt: skip
    one = Fraction(response)
    units = int(one * EPSILON_UNITS)
    assert TEN // units == basic
    assert rho_budget_units(TEN, MILLIONTH) // response_cost(one).rho_units == zcdp
    assert kov_count(units, TEN, MILLIONTH) == kov


def test_the_discrete_gaussian_is_not_the_continuous_one() -> None:
    assert gaussian_delta_units(Fraction(1), Fraction(1), 1) / DELTA_UNITS == pytest.approx(0.14135, abs=5e-6)  # fmt: skip
    narrow = gaussian_delta_units(Fraction(1, 10), Fraction(363047, 10_000) ** 2, 1)
    assert gaussian_delta(0.1, 36.3047) <= 1e-6 < narrow / DELTA_UNITS
    assert narrow / DELTA_UNITS == pytest.approx(1.00025e-6, rel=1e-5)
    assert gaussian_delta_units(Fraction(1, 10), Fraction(3631, 100) ** 2, 1) <= MILLIONTH


def test_binomial_figure() -> None:
    """262,144 coins at delta 1e-10: epsilon .0201."""
    tenth_billionth = DELTA_UNITS // 10**10
    assert binomial_delta_units(Fraction(201, 10_000), 262_144, 1) <= tenth_billionth
    assert binomial_delta_units(Fraction(200, 10_000), 262_144, 1) > tenth_billionth


# --- against mpmath, exactly on their side ----------------------------------------------


def m(value: Fraction) -> mpmath.mpf:
    return mpmath.mpf(value.numerator) / value.denominator


SMALL = st.fractions(min_value=Fraction(1, 100), max_value=4, max_denominator=1000)


@settings(deadline=None, max_examples=60)
@given(SMALL, st.integers(1, 60), SMALL)
def test_kov_is_the_sum_rounded_up(response: Fraction, count: int, epsilon: Fraction) -> None:
    with mpmath.workdps(120):
        x, e = m(response), m(epsilon)
        total = mpmath.fsum(
            math.comb(count, j) * max(mpmath.exp((count - j) * x) - mpmath.exp(e + j * x), 0)
            for j in range(count + 1)
        )
        truth = total / (1 + mpmath.exp(x)) ** count * DELTA_UNITS
        found = kov_delta_units(count, response, epsilon)
        assert truth <= found <= truth + 1.000001


@settings(deadline=None, max_examples=60)
@given(SMALL, st.fractions(min_value=Fraction(1, 20), max_value=400), st.integers(1, 4))
def test_the_gaussian_tail_is_summed_and_rounded_up(epsilon: Fraction, variance: Fraction, sensitivity: int) -> None:  # fmt: skip
    with mpmath.workdps(80):
        v, e = m(variance), m(epsilon)
        reach = int(20 * float(variance) ** 0.5 * 1.5) + 20 + sensitivity
        weights = {x: mpmath.exp(-mpmath.mpf(x * x) / (2 * v)) for x in range(-reach, reach + 1)}
        total = mpmath.fsum(weights.values())
        brackets = (
            weights[x] - mpmath.exp(e) * weights[x + sensitivity]
            for x in range(-reach, reach - sensitivity)
        )
        truth = mpmath.fsum(b for b in brackets if b > 0) / total * DELTA_UNITS
        found = gaussian_delta_units(epsilon, variance, sensitivity)
        # what lies beyond `reach` is below 1e-60
        assert truth - mpmath.mpf(10) ** -30 <= found <= truth + 1.000001


@settings(deadline=None, max_examples=60)
@given(SMALL, st.integers(1, 300), st.integers(1, 5))
def test_the_binomial_sum_is_exact_and_rounded_up(epsilon: Fraction, half: int, sensitivity: int) -> None:  # fmt: skip
    coins = 2 * half
    with mpmath.workdps(200):
        e = mpmath.exp(m(epsilon))
        row = {k: math.comb(coins, k) for k in range(coins + 1)}
        brackets = (row[k] - e * row.get(k - sensitivity, 0) for k in row)
        truth = mpmath.fsum(b for b in brackets if b > 0) / 2**coins * DELTA_UNITS
        found = binomial_delta_units(epsilon, coins, sensitivity)
        assert truth <= found <= truth + 1.000001


@settings(deadline=None, max_examples=40)
@given(SMALL, st.fractions(min_value=Fraction(1, 1000), max_value=3, max_denominator=1000))
def test_the_zcdp_bound_never_understates(epsilon: Fraction, rho: Fraction) -> None:
    """Against the infimum over a fine table of orders; ours is never below, and hardly above."""
    with mpmath.workdps(60):

        def log_delta(log_more: mpmath.mpf) -> mpmath.mpf:
            more = mpmath.exp(log_more)
            a = 1 + more
            return more * (a * m(rho) - m(epsilon)) + more * mpmath.log(more) - a * mpmath.log(a)

        low, high = mpmath.mpf(-28), mpmath.mpf(28)  # of ln(order - 1); it falls, then rises
        golden = (mpmath.sqrt(5) - 1) / 2
        for _ in range(200):
            left, right = high - golden * (high - low), low + golden * (high - low)
            low, high = (low, right) if log_delta(left) < log_delta(right) else (left, high)
        best = mpmath.exp(log_delta((low + high) / 2))
        exact = Fraction(str(mpmath.nstr(best, 40)))
        if exact >= 1:
            return
        assert not zcdp_delta_holds(rho, epsilon, exact * (1 - Fraction(1, 10**20)))
        assert zcdp_delta_holds(rho, epsilon, exact * (1 + Fraction(1, 10**12)))


def divergence(epsilon: float, order: float) -> float:
    """Renyi divergence of binary randomised response."""
    keep = 1 / (1 + math.exp(-epsilon))
    flip = 1 - keep
    return math.log(keep**order * flip ** (1 - order) + flip**order * keep ** (1 - order)) / (order - 1)  # fmt: skip


@pytest.mark.parametrize("levels", [2, 3, 5, 50])
@pytest.mark.parametrize("epsilon", [0.01, 0.1, 0.5, 1.0, 3.0, 8.0])
def test_the_rho_of_randomised_response_bounds_every_order(epsilon: float, levels: int) -> None:
    rho = response_cost(Fraction(epsilon)).rho_units / RHO_UNITS
    keep = math.exp(epsilon) / (math.exp(epsilon) + levels - 1)
    other = (1 - keep) / (levels - 1)
    for order in (1.0001, 1.01, 1.1, 1.5, 2, 3, 5, 10, 30, 60):
        moment = keep**order * other ** (1 - order) + other**order * keep ** (1 - order)
        moment += (levels - 2) * other
        assert math.log(moment) / (order - 1) <= order * rho * (1 + 1e-9) + 1e-9
    assert rho <= epsilon**2 / 2 + 2 / RHO_UNITS
    if levels == 2:  # tight: near order 1 hardly anything is given away
        assert divergence(epsilon, 1.0001) >= rho * 0.999


def test_a_larger_budget_never_admits_less() -> None:
    tenth = EPSILON_UNITS // 10
    counts = [kov_count(tenth, e * EPSILON_UNITS, MILLIONTH) for e in (1, 2, 5, 10)]
    rhos = [rho_budget_units(e * EPSILON_UNITS, MILLIONTH) for e in (1, 2, 5, 10)]
    assert counts == sorted(counts)
    assert rhos == sorted(rhos)
    for rho, whole in zip(rhos, (1, 2, 5, 10), strict=True):
        assert 0 <= whole * EPSILON_UNITS - zcdp_epsilon_units(rho, MILLIONTH) < 100


def test_the_largest_budgets_are_the_largest() -> None:
    """One unit more of rho, or one response more, is above the budget."""
    rho = rho_budget_units(3 * EPSILON_UNITS, MILLIONTH)
    assert zcdp_epsilon_units(rho, MILLIONTH) <= 3 * EPSILON_UNITS
    assert zcdp_epsilon_units(rho + 1, MILLIONTH) > 3 * EPSILON_UNITS
    quarter = EPSILON_UNITS // 4
    assert kov_epsilon_units(60, quarter, MILLIONTH) <= TEN < kov_epsilon_units(61, quarter, MILLIONTH)  # fmt: skip


def test_without_a_delta_only_the_plain_sum_counts() -> None:
    assert rho_budget_units(TEN, 0) == 0
    assert kov_count(EPSILON_UNITS // 10, TEN, 0) == 100
    assert kov_epsilon_units(100, EPSILON_UNITS // 10, 0) == TEN
    assert kov_count(1, EPSILON_UNITS, 0) == curves.COUNT_MAX


@pytest.mark.parametrize(
    ("error", "wrong"),
    [
        (InvalidDelta, lambda: zcdp_epsilon_units(1, 0)),
        (InvalidDelta, lambda: zcdp_epsilon_units(1, DELTA_UNITS)),
        (InvalidEpsilon, lambda: zcdp_epsilon_units(2000 * RHO_UNITS, MILLIONTH)),
        (InvalidParameter, lambda: gaussian_delta_units(Fraction(1), Fraction(10**12), 1)),
        (InvalidParameter, lambda: gaussian_delta_units(Fraction(1), Fraction(0), 1)),
        (InvalidParameter, lambda: gaussian_delta_units(Fraction(1), Fraction(1), 0)),
        (InvalidParameter, lambda: binomial_delta_units(Fraction(1), 3, 1)),
        (InvalidParameter, lambda: binomial_delta_units(Fraction(1), 2**21, 1)),
    ],
)
def test_what_has_no_curve_is_refused(error: type[Exception], wrong: object) -> None:
    with pytest.raises(error):
        wrong()  # type: ignore[operator]
