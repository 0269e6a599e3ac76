"""What one use of a mechanism costs, in whole units, each rounded up.

Papers: Bun, Steinke 2016 (zero-concentrated privacy); Canonne, Kamath, Steinke 2020.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import Final

from rlhf_audit_trail.privacy.curves import EPSILON_MAX, EPSILON_UNITS, RHO_UNITS
from rlhf_audit_trail.privacy.errors import InvalidDelta, InvalidEpsilon, InvalidParameter
from rlhf_audit_trail.privacy.exact import DOWN, UP, ceil_units, exp_up, rational

__all__ = [
    "UNBOUNDED",
    "Cost",
    "checked_delta",
    "checked_epsilon",
    "gaussian_cost",
    "pure_cost",
    "response_cost",
]

UNBOUNDED: Final = 2**61  # "no such guarantee"; two of them still fit into 64 signed bits


@dataclass(frozen=True)
class Cost:
    """What one use of a mechanism charges; every number is rounded up.

    Attributes:
        epsilon_units: of 10^-12; `UNBOUNDED` without a pure epsilon.
        rho_units: of 2^-40; `UNBOUNDED` without zero-concentrated privacy.
        delta_units: of 10^-18; above 0 only where the mechanism has an epsilon with a delta.
        is_response: it is randomised response, as `fixed_rr` counts it.
    """

    epsilon_units: int
    rho_units: int
    delta_units: int = 0
    is_response: bool = False

    def __post_init__(self) -> None:
        for units in (self.epsilon_units, self.rho_units, self.delta_units):
            if not isinstance(units, int) or not 0 <= units <= UNBOUNDED:
                raise InvalidParameter("a cost is a whole number of units, 0 or more")
        if self.epsilon_units == 0 or self.rho_units == 0:
            raise InvalidParameter("a mechanism that costs nothing releases nothing")
        if self.delta_units and self.rho_units != UNBOUNDED:
            # a second way with its own delta would need the delta split beforehand
            raise InvalidParameter("a cost with a delta has no rho")


def response_cost(epsilon: Fraction) -> Cost:
    """Return the cost of randomised response: rho = epsilon tanh(epsilon / 2).

    That is the divergence's limit at order 1, where its quotient by the order is largest: tight for
    two levels, and checked numerically for more. It is below epsilon^2 / 2.
    """
    # tanh(e/2) = (e^e - 1) / (e^e + 1) = 1 - 2 / (e^e + 1), which rises with e^e
    tanh = UP.subtract(UP.add(0, 1), DOWN.divide(2, UP.add(exp_up(epsilon), 1)))
    epsilon_units = ceil_units(epsilon, EPSILON_UNITS)
    return Cost(epsilon_units, ceil_units(epsilon * Fraction(tanh), RHO_UNITS), is_response=True)


def pure_cost(epsilon: Fraction) -> Cost:
    """Return the cost of any epsilon-DP mechanism: rho = epsilon^2 / 2 (Bun, Steinke 2016)."""
    return Cost(ceil_units(epsilon, EPSILON_UNITS), ceil_units(epsilon * epsilon / 2, RHO_UNITS))


def gaussian_cost(variance: Fraction, sensitivity_squared: int) -> Cost:
    """Return the cost of a discrete Gaussian: rho = sensitivity^2 / (2 variance).

    It holds for the discrete law exactly as for the continuous one (CKS 2020, theorem 4).
    There is no pure epsilon.
    """
    return Cost(UNBOUNDED, ceil_units(sensitivity_squared / (2 * variance), RHO_UNITS))


def checked_epsilon(value: Fraction | float | str, *, name: str = "epsilon") -> Fraction:
    """Return an epsilon as the rational that was written.

    Raises:
        InvalidEpsilon: it is not a number from 10^-12 to 1,000.
    """
    try:
        found = rational(value, name=name)
    except InvalidParameter as error:
        raise InvalidEpsilon(f"{name} must be a finite number above 0") from error
    if not Fraction(1, EPSILON_UNITS) <= found <= EPSILON_MAX:
        raise InvalidEpsilon(f"{name} must be from 10^-12 to {EPSILON_MAX:,}")
    return found


def checked_delta(value: Fraction | float | str, *, name: str = "delta") -> Fraction:
    """Return a delta as the rational that was written.

    Raises:
        InvalidDelta: it is not a number from 0 to below 1.
    """
    try:
        found = rational(value, name=name)
    except InvalidParameter as error:
        raise InvalidDelta(f"{name} must be a number from 0 to below 1") from error
    if not 0 <= found < 1:
        raise InvalidDelta(f"{name} must be a number from 0 to below 1")
    return found
