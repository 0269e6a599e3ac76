"""How epsilon and delta trade off, each mechanism by its own exact curve.

A curve here answers in whole units, rounded so that no claim is better than the truth:
a delta or an epsilon up, a budget or a count down. Floats only ever choose *where* to look (which
order alpha of a Renyi bound to use: every order gives a valid bound); whether a bound holds
is decided by `exact`.

Papers: Bun, Steinke 2016 (zCDP); Canonne, Kamath, Steinke 2020 (its conversion, and the
discrete Gaussian); Kairouz, Oh, Viswanath 2015 (composition of pure mechanisms); Balle, Wang
2018 (the continuous Gaussian).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from decimal import Decimal
from fractions import Fraction
from functools import lru_cache
from typing import Final

from rlhf_audit_trail.privacy.errors import InvalidDelta, InvalidEpsilon, InvalidParameter
from rlhf_audit_trail.privacy.exact import (
    DOWN,
    UP,
    bounds,
    ceil_units,
    exp_down,
    exp_up,
    ln_down,
    power,
)

__all__ = [
    "DELTA_UNITS",
    "EPSILON_UNITS",
    "RHO_UNITS",
    "binomial_delta_units",
    "gaussian_delta",
    "gaussian_delta_units",
    "kov_count",
    "kov_delta_units",
    "kov_epsilon_units",
    "rho_budget_units",
    "smallest",
    "zcdp_delta_holds",
    "zcdp_epsilon_units",
]

EPSILON_UNITS: Final = 10**12  # per 1: decimal, so that a hundred charges of 0.1 make exactly 10
RHO_UNITS: Final = 2**40
DELTA_UNITS: Final = 10**18

EPSILON_MAX: Final = 1000  # beyond it a claim says nothing, and sums could outgrow 64 bits
COUNT_MAX: Final = 100_000  # responses of one annotator under one fixed epsilon
COINS_MAX: Final = 1 << 20
_VARIANCE_MAX: Final = 10**11  # a tail of ten standard deviations is summed term by term
_NEGLIGIBLE: Final = Decimal(10) ** -40
_PI_DOWN: Final = Decimal("3.14159265358979323846264338327950288419716939937510")


def smallest(holds: Callable[[int], bool], low: int, high: int) -> int:
    """Return the smallest whole number in [low, high] that holds; `high` is taken to.

    `holds` is False up to some number and True from it on.
    """
    while low < high:
        middle = (low + high) // 2
        if holds(middle):
            high = middle
        else:
            low = middle + 1
    return high


# --- zCDP -------------------------------------------------------------------------------


def zcdp_delta_holds(rho: Fraction, epsilon: Fraction, delta: Fraction) -> bool:
    """Tell whether rho-zCDP is shown to imply (epsilon, delta)-DP (CKS 2020, proposition 12).

    For any order alpha > 1, ln delta <= (alpha - 1)(alpha rho - epsilon)
    + (alpha - 1) ln(alpha - 1) - alpha ln alpha. The best order is searched with floats, the
    sum is rounded up.
    """
    if rho <= 0:
        return True
    if epsilon <= 0 or delta <= 0:
        return False
    alpha = Fraction(_order(float(rho), float(epsilon)))
    more = alpha - 1
    found = bounds(more * (alpha * rho - epsilon))[1]
    found = UP.add(found, _x_ln_x_up(more))
    found = UP.subtract(found, _x_ln_x_down(alpha))
    return found <= ln_down(delta)


def _order(rho: float, epsilon: float) -> float:
    """Return the best order alpha: the zero of the bound's increasing derivative."""
    low, high = 2.0**-40, 2.0**40  # of alpha - 1
    for _ in range(100):
        middle = math.sqrt(low * high)
        if (2 * middle + 1) * rho - epsilon - math.log1p(1 / middle) < 0:
            low = middle
        else:
            high = middle
    return 1 + low


def _x_ln_x_up(value: Fraction) -> Decimal:
    low, high = bounds(value)
    found = UP.next_plus(UP.ln(high))
    return UP.multiply(high if found > 0 else low, found)


def _x_ln_x_down(value: Fraction) -> Decimal:
    low, high = bounds(value)
    found = DOWN.next_minus(DOWN.ln(low))
    return DOWN.multiply(low if found > 0 else high, found)


@lru_cache(maxsize=1024)
def zcdp_epsilon_units(rho_units: int, delta_units: int) -> int:
    """Return epsilon so that this much zCDP is (epsilon, delta)-DP, rounded up.

    Raises:
        InvalidDelta: delta is not above 0 and below 1.
        InvalidEpsilon: epsilon would be above 1,000.
    """
    delta = _delta(delta_units)
    rho = Fraction(rho_units, RHO_UNITS)
    high = EPSILON_MAX * EPSILON_UNITS
    if not zcdp_delta_holds(rho, Fraction(EPSILON_MAX), delta):
        raise InvalidEpsilon("so much was spent that epsilon is above 1,000")
    return smallest(lambda e: zcdp_delta_holds(rho, Fraction(e, EPSILON_UNITS), delta), 0, high)


@lru_cache(maxsize=1024)
def rho_budget_units(epsilon_units: int, delta_units: int) -> int:
    """Return the largest rho that is (epsilon, delta)-DP, rounded down; 0 where delta is 0.

    The order found is at a flat optimum, so a float's last digit moves the bound by 1e-28 of
    itself, and every machine finds the same unit of 2^-40.
    """
    if delta_units == 0:
        return 0
    delta, epsilon = _delta(delta_units), Fraction(epsilon_units, EPSILON_UNITS)
    high = 2 * ceil_units(epsilon, RHO_UNITS) + 1
    too_much = smallest(
        lambda r: not zcdp_delta_holds(Fraction(r, RHO_UNITS), epsilon, delta), 1, high
    )
    return too_much - 1


def _delta(delta_units: int) -> Fraction:
    if not 0 < delta_units < DELTA_UNITS:
        raise InvalidDelta("delta must be above 0 and below 1 here")
    return Fraction(delta_units, DELTA_UNITS)


# --- many responses with one fixed epsilon ---------------------------------------------


def kov_delta_units(count: int, response: Fraction, epsilon: Fraction) -> int:
    """Return delta of `count` mechanisms, each `response`-DP, at `epsilon`; rounded up.

    Kairouz, Oh, Viswanath 2015, theorem 3.3, as its privacy curve: the sum over j of
    C(k, j) [e^((k - j) e0) - e^(e + j e0)]+ / (1 + e^e0)^k. Reached by binary randomised
    response, so no tighter answer exists for a fixed e0.
    """
    keep_up = UP.divide(Decimal(1), UP.add(Decimal(1), exp_down(-response)))
    keep_up = min(keep_up, Decimal(1))
    flip_down = DOWN.divide(Decimal(1), DOWN.add(Decimal(1), exp_up(response)))
    less, more, factor = exp_up(-response), exp_down(response), exp_down(epsilon)
    truth = power(keep_up, count, UP)  # C(k, j) keep^(k - j) flip^j, from above
    other = power(flip_down, count, DOWN)  # C(k, j) flip^(k - j) keep^j, from below
    total = Decimal(0)
    for j in range(count + 1):
        if (count - 2 * j) * response <= epsilon:  # this bracket and all later ones are 0
            break
        total = UP.add(total, UP.subtract(truth, DOWN.multiply(factor, other)))
        rise, fall = Decimal(count - j), Decimal(j + 1)
        truth = UP.divide(UP.multiply(UP.multiply(truth, less), rise), fall)
        other = DOWN.divide(DOWN.multiply(DOWN.multiply(other, more), rise), fall)
    return min(ceil_units(total, DELTA_UNITS), DELTA_UNITS)


@lru_cache(maxsize=1024)
def kov_count(response_units: int, epsilon_units: int, delta_units: int) -> int:
    """Return how many responses of one fixed epsilon are (epsilon, delta)-DP together.

    Never less than plain division of the epsilons; at most 100,000.
    """
    response = Fraction(response_units, EPSILON_UNITS)
    epsilon = Fraction(epsilon_units, EPSILON_UNITS)
    plain = min(epsilon_units // response_units, COUNT_MAX)
    high = max(plain, 1)
    while high < COUNT_MAX and kov_delta_units(high, response, epsilon) <= delta_units:
        plain, high = high, min(2 * high, COUNT_MAX)
    too_many = smallest(
        lambda k: kov_delta_units(k, response, epsilon) > delta_units, plain + 1, high + 1
    )
    return too_many - 1


@lru_cache(maxsize=1024)
def kov_epsilon_units(count: int, response_units: int, delta_units: int) -> int:
    """Return epsilon of `count` responses of one fixed epsilon at this delta, rounded up."""
    response = Fraction(response_units, EPSILON_UNITS)
    return smallest(
        lambda e: kov_delta_units(count, response, Fraction(e, EPSILON_UNITS)) <= delta_units,
        0,
        count * response_units,
    )


# --- one release ------------------------------------------------------------------------


def gaussian_delta_units(epsilon: Fraction, variance: Fraction, sensitivity: int) -> int:
    """Return delta of one discrete Gaussian release at `epsilon`, rounded up.

    The tail is summed over the integers (CKS 2020, theorem 7): P[X > c - s/2]
    - e^eps P[X > c + s/2] with c = epsilon variance / s. The curve of the continuous
    Gaussian is a little lower, and would understate. Neighbours that differ by less than the
    sensitivity are covered: the best event is a tail, and the tail of a smaller shift is smaller.

    Raises:
        InvalidParameter: variance is above 10^11; compose in rho instead.
    """
    if not 0 < variance <= _VARIANCE_MAX or sensitivity < 1:
        raise InvalidParameter("this Gaussian is too wide for its exact tail, or has none")
    centre = epsilon * variance / sensitivity
    first = (centre - Fraction(sensitivity, 2)).__floor__() + 1
    upper = _tail_up(variance, first)
    lower = _tail_down(variance, first + sensitivity)
    total = UP.subtract(upper, DOWN.multiply(exp_down(epsilon), lower))
    return min(ceil_units(UP.divide(total, _mass_down(variance)), DELTA_UNITS), DELTA_UNITS)


def _tail_up(variance: Fraction, first: int) -> Decimal:
    """Return the sum of exp(-x^2 / 2 variance) over x >= first, from above."""
    if first <= 0:  # all of it, less what lies on the other side
        whole = UP.add(Decimal(1), UP.multiply(Decimal(2), _tail_up(variance, 1)))
        return UP.subtract(whole, _tail_down(variance, 1 - first))
    term = exp_up(-Fraction(first * first) / (2 * variance))
    ratio = exp_up(-Fraction(2 * first + 1) / (2 * variance))
    step = exp_up(-1 / variance)
    total, floor = Decimal(0), UP.multiply(term, _NEGLIGIBLE)
    while term > floor:
        total = UP.add(total, term)
        term = UP.multiply(term, ratio)
        ratio = UP.multiply(ratio, step)
    return UP.add(total, UP.divide(term, DOWN.subtract(Decimal(1), ratio)))  # a geometric rest


def _tail_down(variance: Fraction, first: int) -> Decimal:
    """Return the sum of exp(-x^2 / 2 variance) over x >= first, from below; first >= 1."""
    term = exp_down(-Fraction(first * first) / (2 * variance))
    ratio = exp_down(-Fraction(2 * first + 1) / (2 * variance))
    step = exp_down(-1 / variance)
    total, floor = Decimal(0), DOWN.multiply(term, _NEGLIGIBLE)
    while term > floor:
        total = DOWN.add(total, term)
        term = DOWN.multiply(term, ratio)
        ratio = DOWN.multiply(ratio, step)
    return total


def _mass_down(variance: Fraction) -> Decimal:
    """Return the sum of exp(-x^2 / 2 variance) over all integers, from below.

    By Poisson summation it is above sqrt(2 pi variance), and below it plus one part in
    10^80 once the variance is 10; a narrower one is summed.
    """
    if variance < 10:  # noqa: PLR2004 - the bound just named
        return DOWN.add(Decimal(1), DOWN.multiply(Decimal(2), _tail_down(variance, 1)))
    area = DOWN.multiply(DOWN.multiply(Decimal(2), _PI_DOWN), bounds(variance)[0])
    return DOWN.next_minus(DOWN.sqrt(area))


def binomial_delta_units(epsilon: Fraction, coins: int, sensitivity: int) -> int:
    """Return delta of a count plus `coins` centred fair coins at `epsilon`, rounded up.

    The exact sum of [b(k) - e^eps b(k - s)]+ over k, b being the binomial's mass. Both directions
    are alike, because the coins are fair.

    Raises:
        InvalidParameter: coins are not an even number from 2 to 2^20.
    """
    if not 2 <= coins <= COINS_MAX or coins % 2 or sensitivity < 1:  # noqa: PLR2004 - two coins
        raise InvalidParameter(f"coins are an even number from 2 to {COINS_MAX}")
    factor = exp_down(epsilon)
    k = min((coins + sensitivity) // 2, coins)  # above it the bracket is negative
    here = _mass(coins, k, up=True)
    there = _mass(coins, k - sensitivity, up=False) if k >= sensitivity else Decimal(0)
    total = Decimal(0)
    while k >= 0:
        total = UP.add(total, max(UP.subtract(here, DOWN.multiply(factor, there)), Decimal(0)))
        if here < _NEGLIGIBLE and 2 * k < coins:
            rest = UP.divide(Decimal(k), Decimal(coins - k + 1))
            return _binomial_units(UP.add(total, UP.divide(here, DOWN.subtract(Decimal(1), rest))))
        here = UP.divide(UP.multiply(here, Decimal(k)), Decimal(coins - k + 1))
        below = k - sensitivity
        there = (
            DOWN.divide(DOWN.multiply(there, Decimal(below)), Decimal(coins - below + 1))
            if below > 0
            else Decimal(0)
        )
        k -= 1
    return _binomial_units(total)


def _binomial_units(total: Decimal) -> int:
    return min(ceil_units(total, DELTA_UNITS), DELTA_UNITS)


@lru_cache(maxsize=256)
def _mass(coins: int, heads: int, *, up: bool) -> Decimal:
    """Return C(coins, heads) / 2^coins, from above or from below."""
    rounded = UP if up else DOWN
    found = Decimal(1)
    for i in range(1, coins // 2 + 1):  # C(n, n/2) / 2^n is the product of (2i - 1) / 2i
        found = rounded.divide(rounded.multiply(found, Decimal(2 * i - 1)), Decimal(2 * i))
    for k in range(coins // 2, max(heads, coins - heads)):
        found = rounded.divide(rounded.multiply(found, Decimal(coins - k)), Decimal(k + 1))
    return found


def gaussian_delta(epsilon: float, sigma: float) -> float:
    """Return delta of one continuous Gaussian of sensitivity 1 (Balle, Wang 2018, theorem 8).

    A float, for figures of a model trained with continuous noise and for finding where to
    look; nothing that is charged rests on it.
    """
    near = _normal(1 / (2 * sigma) - epsilon * sigma)
    far = _normal(-1 / (2 * sigma) - epsilon * sigma)
    return near - (math.exp(epsilon + math.log(far)) if far else 0.0)


def _normal(value: float) -> float:
    return math.erfc(-value / math.sqrt(2)) / 2
