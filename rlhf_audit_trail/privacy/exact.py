"""Exponentials and logarithms of rationals, with the side of the rounding proven.

Everything rests on three promises of the `decimal` module: `add`, `multiply` and `divide`
are correctly rounded in the direction the context names; `exp` and `ln` are correctly
rounded to the nearest; `next_minus` and `next_plus` step by one unit in the last place. So
the true exponential lies between the neighbours of the computed one, and a sum whose every
step is rounded up is never too small. No float takes part.
"""

from __future__ import annotations

from collections.abc import Callable
from decimal import (
    MAX_EMAX,
    MIN_EMIN,
    ROUND_CEILING,
    ROUND_FLOOR,
    Context,
    Decimal,
    DivisionByZero,
    InvalidOperation,
    Overflow,
)
from fractions import Fraction
from typing import Final

from rlhf_audit_trail.privacy.errors import InvalidParameter

__all__ = [
    "DOWN",
    "UP",
    "bounds",
    "ceil_units",
    "exp_down",
    "exp_up",
    "floor_of",
    "floor_units",
    "ln_down",
    "ln_up",
    "power",
    "rational",
]

DIGITS: Final = 50  # sums of a million terms keep 40 of them; the units need 18
MAX_RATIONAL_BITS: Final = 4096  # a float has at most 2,098; more is an attack, not a parameter
_DIGITS_MAX: Final = 6400


def _context(digits: int, rounding: str) -> Context:
    """Make a context without practical limits on exponents: nothing underflows silently."""
    traps = [InvalidOperation, DivisionByZero, Overflow]
    return Context(prec=digits, rounding=rounding, Emin=MIN_EMIN, Emax=MAX_EMAX, traps=traps)


UP: Final = _context(DIGITS, ROUND_CEILING)
DOWN: Final = _context(DIGITS, ROUND_FLOOR)


def rational(value: Fraction | float | str, *, name: str) -> Fraction:
    """Return a setting as the rational it was written as: 0.1 is 1/10.

    A float is read as the shortest decimal that prints it, which is what its author typed;
    its binary value would put 3602879701896397/36028797018963968 into every record.

    Raises:
        InvalidParameter: it is no finite number, or has more than 4,096 bits.
    """
    try:
        # a bool counts as a number in Python; "True" does not
        found = Fraction(repr(value) if isinstance(value, bool | float) else value)
    except (TypeError, ValueError, ZeroDivisionError) as error:
        raise InvalidParameter(f"{name} must be a finite number") from error
    if max(found.numerator.bit_length(), found.denominator.bit_length()) > MAX_RATIONAL_BITS:
        raise InvalidParameter(f"{name} has more digits than any measurement")
    return found


def bounds(value: Fraction, *, digits: int = DIGITS) -> tuple[Decimal, Decimal]:
    """Return the nearest decimals below and above; the same one twice if it is exact."""
    low, high = _context(digits, ROUND_FLOOR), _context(digits, ROUND_CEILING)
    numerator, denominator = Decimal(value.numerator), Decimal(value.denominator)
    return low.divide(numerator, denominator), high.divide(numerator, denominator)


def exp_down(value: Fraction, *, digits: int = DIGITS) -> Decimal:
    """Return a decimal not above e^value, and above it by no more than a few last places."""
    context = _context(digits, ROUND_FLOOR)
    found = context.next_minus(context.exp(bounds(value, digits=digits)[0]))
    return max(found, Decimal(0))


def exp_up(value: Fraction, *, digits: int = DIGITS) -> Decimal:
    """Return a decimal not below e^value."""
    context = _context(digits, ROUND_CEILING)
    return context.next_plus(context.exp(bounds(value, digits=digits)[1]))


def ln_down(value: Fraction, *, digits: int = DIGITS) -> Decimal:
    """Return a decimal not above ln(value); value > 0."""
    context = _context(digits, ROUND_FLOOR)
    return context.next_minus(context.ln(bounds(value, digits=digits)[0]))


def ln_up(value: Fraction, *, digits: int = DIGITS) -> Decimal:
    """Return a decimal not below ln(value); value > 0."""
    context = _context(digits, ROUND_CEILING)
    return context.next_plus(context.ln(bounds(value, digits=digits)[1]))


def floor_of(function: Callable[[Fraction], Fraction], exponent: Fraction) -> int:
    """Return floor(function(e^exponent)) exactly; `function` is monotone and increasing.

    The interval around e^exponent is narrowed until both its ends have the same floor. That
    ends because e^exponent is transcendental for every rational exponent but 0 (Lindemann),
    so a rational function of it never is a whole number.

    Raises:
        InvalidParameter: 6,400 digits do not tell.
    """
    digits = DIGITS
    while digits <= _DIGITS_MAX:
        low = function(Fraction(exp_down(exponent, digits=digits)))
        high = function(Fraction(exp_up(exponent, digits=digits)))
        if low.__floor__() == high.__floor__():
            return low.__floor__()
        digits *= 2
    raise InvalidParameter("an exponent is too extreme to be computed exactly")


def power(base: Decimal, exponent: int, context: Context) -> Decimal:
    """Return base^exponent, every step rounded as the context says; base >= 0.

    `Context.power` is not used: it promises one unit in the last place, and no direction.
    """
    found, square = Decimal(1), base
    while exponent:
        if exponent & 1:
            found = context.multiply(found, square)
        square = context.multiply(square, square)
        exponent >>= 1
    return found


def ceil_units(value: Fraction | Decimal, per_one: int) -> int:
    """Return how many units of 1 / per_one hold the value: rounded up, as costs are."""
    return -((-Fraction(value) * per_one).__floor__())


def floor_units(value: Fraction | Decimal, per_one: int) -> int:
    """Return how many whole units of 1 / per_one the value holds: rounded down, as budgets are."""
    return (Fraction(value) * per_one).__floor__()
