"""Directed rounding: against mpmath at 120 digits, every bound is on its side and close."""

from __future__ import annotations

from decimal import Decimal
from fractions import Fraction

import mpmath
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlhf_audit_trail.privacy import exact
from rlhf_audit_trail.privacy.errors import InvalidParameter

EXPONENTS = st.fractions(min_value=-300, max_value=300, max_denominator=10**15)


def precise(value: Fraction | Decimal) -> mpmath.mpf:
    fraction = Fraction(value)
    return mpmath.mpf(fraction.numerator) / fraction.denominator


@settings(deadline=None, max_examples=300)
@given(EXPONENTS)
def test_an_exponential_lies_between_its_bounds(value: Fraction) -> None:
    with mpmath.workdps(400):
        truth = mpmath.exp(precise(value))
        low, high = precise(exact.exp_down(value)), precise(exact.exp_up(value))
        assert low <= truth <= high
        assert high - low < truth * mpmath.mpf(10) ** -44


@settings(deadline=None, max_examples=300)
@given(st.fractions(min_value=Fraction(1, 10**12), max_value=10**12))
def test_a_logarithm_lies_between_its_bounds(value: Fraction) -> None:
    with mpmath.workdps(400):
        truth = mpmath.log(precise(value))
        low, high = precise(exact.ln_down(value)), precise(exact.ln_up(value))
        assert low <= truth <= high
        assert high - low < mpmath.mpf(10) ** -45


@settings(deadline=None, max_examples=100)
@given(st.fractions(min_value=0, max_value=2), st.integers(0, 5000))
def test_a_power_lies_between_its_bounds(base: Fraction, exponent: int) -> None:
    low, high = exact.bounds(base)
    with mpmath.workdps(400):
        truth = precise(base) ** exponent
        found = exact.power(low, exponent, exact.DOWN), exact.power(high, exponent, exact.UP)
        assert precise(found[0]) <= truth <= precise(found[1])


def test_extreme_exponents_neither_overflow_nor_vanish() -> None:
    assert exact.exp_down(Fraction(-(10**6))) > 0
    assert exact.exp_up(Fraction(10**6)).is_finite()


def test_units_round_costs_up_and_budgets_down() -> None:
    assert (exact.ceil_units(Fraction(1, 3), 10), exact.floor_units(Fraction(1, 3), 10)) == (4, 3)
    assert (exact.ceil_units(Fraction(1, 2), 10), exact.floor_units(Fraction(1, 2), 10)) == (5, 5)
    assert exact.ceil_units(Decimal("1e-30"), 10**12) == 1


@pytest.mark.parametrize(("value", "expected"), [(0.1, Fraction(1, 10)), ("0.25", Fraction(1, 4)), (3, Fraction(3)), ("1/3", Fraction(1, 3)), (1e-6, Fraction(1, 10**6))])  # fmt: skip
def test_a_setting_is_the_rational_that_was_written(value: object, expected: Fraction) -> None:
    assert exact.rational(value, name="x") == expected  # type: ignore[arg-type]


@pytest.mark.parametrize("value", [True, None, "one", float("nan"), float("inf"), "1/0", [1], pytest.param(2**5000, id="huge"), pytest.param(Fraction(1, 2**5000), id="fine")])  # fmt: skip
def test_what_is_no_setting_is_refused(value: object) -> None:
    with pytest.raises(InvalidParameter, match="epsilon"):
        exact.rational(value, name="epsilon")  # type: ignore[arg-type]


def test_a_floor_that_cannot_be_told_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """A step within the narrowest interval looked at: its two ends never agree."""
    monkeypatch.setattr(exact, "_DIGITS_MAX", 200)
    step = Fraction(exact.exp_down(Fraction(1), digits=500))
    with pytest.raises(InvalidParameter, match="extreme"):
        exact.floor_of(lambda y: Fraction(y > step), Fraction(1))
